"""``backupfw keys``: the keys of projects."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backupfw.cmd import base, usecases
from backupfw.cmd.progress import counted
from backupfw.errors import BackupfwError, ConfigError, Conflict, DataKeyMissing, InvalidInput

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database
    from backupfw.keys.base import KeyStore
    from backupfw.manager.rows import DataKey, ProjectKey
    from backupfw.manager.usecases.keys import KeyManager
    from backupfw.worker.stores import Stores


class List(base.Lister):
    """List the keys of projects, those of one project together, the oldest first.

    Keys themselves are never shown.
    """

    columns = (
        "project_id",
        "key_id",
        "state",
        "created_at",
        "retired_at",
        "destroyed_at",
        "data_keys",
        "backups",
    )
    short = ("project_id", "key_id", "state", "created_at", "data_keys", "backups")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--project", metavar="P", type=usecases.project, help="only those of this project"
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield a record for each key."""
        from backupfw.manager.usecases.keys import KeyManager

        _conf, db = self.database(args)
        return (usecases.described(key) for key in KeyManager(db).list(args.project))


class _Rewrapping(base.Command):
    """A command that wraps data keys again, in the store and in the database.

    The old wrapping stays valid until the new one is recorded, so the command can end, or be killed, at any
    moment, and be run again.
    """

    def rewrap(self, conf: cfg.ConfigOpts, db: Database, key_store: KeyStore, project: str | None) -> None:
        """Let each project's current key wrap its data keys; says how many, and what failed.

        :param project: only those of this project; None: of all.
        """
        from backupfw.db.installation import installation_id
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.stores import Stores

        with db.read() as session:
            ours = installation_id(session)
        stores = self.open(contextlib.closing(Stores(conf)))
        manager = KeyManager(db)
        done = failed = 0
        after = ""
        while found := manager.outdated(project, after):
            for data_key, current in found:
                after = data_key.id
                try:
                    done += _rewrapped(manager, key_store, stores, data_key, current, ours)
                except BackupfwError as error:
                    failed += 1
                    print(f"backupfw: data key {data_key.id}: {error}", file=sys.stderr)
        self.app.stdout.write(f"{counted(done, 'data key')} wrapped again\n")
        if failed:
            self.status = 1
            print(
                f"backupfw: {counted(failed, 'data key')} could not be wrapped again; they stay readable with"
                " the earlier key: run 'backupfw keys rewrap' later",
                file=sys.stderr,
            )


def _rewrapped(
    manager: KeyManager, key_store: KeyStore, stores: Stores, data_key: DataKey, current: str, ours: str
) -> bool:
    """Let a project's current key wrap a data key; returns whether it now does.

    :param ours: this installation's id; what another one has put in a store is not changed.
    """
    from backupfw.chunkstore.base import Body
    from backupfw.engine.format.key_object import read_key
    from backupfw.keys.errors import ProjectKeyMissing
    from backupfw.worker.data_keys import put_as_recorded, stored_key

    old = stored_key(data_key)
    try:
        secret = key_store.unwrap(old.project_key_id, old.wrapped, old.context)
    except ProjectKeyMissing:
        # An older copy of the database names a key that was destroyed since; the store knows its successor.
        newer = read_key(stores.container(data_key.store, data_key.container), old.object_key)
        secret = key_store.unwrap(newer.project_key_id, newer.wrapped, old.context)
    wrapped = key_store.wrap(current, secret, old.context)
    new = replace(old, project_key_id=current, wrapped=wrapped)
    if data_key.installation_id == ours:
        places: set[tuple[str, str]] = set()
        # A copy that begins later takes what its source has then.
        while left := set(manager.containers_of(data_key)) - places:
            for place in sorted(left):
                container = stores.container(*place).locking_anew()
                container.put(new.object_key, Body.from_bytes(new.encode()))
            places |= left
    done = manager.rewrapped(data_key.id, old.project_key_id, current, wrapped)
    if not done and data_key.installation_id == ours:
        for place in sorted(places):
            put_as_recorded(manager, stores.container(*place), data_key.id)
    return done


class Rotate(_Rewrapping):
    """Give a project a new key, and let it wrap all data keys of the project again.

    No backup is read or written.  The earlier key stays in the key store, for copies of the database and of
    the store that are older.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--project", metavar="P", type=usecases.project, required=True, help="the project's id"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Make the key, record it, and wrap again."""
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.keys import open_keys

        project = parsed_args.project
        conf, db = self.database(parsed_args)
        key_store = self.open(contextlib.closing(open_keys(conf)))
        manager = KeyManager(db)
        old = manager.current(project)
        if old is None:
            raise InvalidInput(f"Project {project} has no key.")
        new = key_store.rotate(project)
        if manager.add_project_key(project, new, replaces=old) != new:
            key_store.destroy(new)
            raise Conflict(f"The key of project {project} was replaced meanwhile.")
        self.app.stdout.write(f"project {project}: its key is {new} now\n")
        self.rewrap(conf, db, key_store, project)


class Rewrap(_Rewrapping):
    """Finish a rotation that was interrupted: let each project's current key wrap its data keys."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--project", metavar="P", type=usecases.project, help="only those of this project"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Wrap again what an earlier key wraps."""
        from backupfw.worker.keys import open_keys

        conf, db = self.database(parsed_args)
        key_store = self.open(contextlib.closing(open_keys(conf)))
        self.rewrap(conf, db, key_store, parsed_args.project)


class Destroy(base.Command):
    """Destroy all keys of a project: nobody can ever read its encrypted backups again.

    Their status becomes error; they can still be deleted.  The next backup of the project makes a new key.

    Or destroy one key that a rotation has replaced.  It is refused while that key wraps a data key in the
    database or in a container of a store.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        which = parser.add_mutually_exclusive_group(required=True)
        which.add_argument("--project", metavar="P", type=usecases.project, help="the project's id")
        which.add_argument("--key", metavar="ID", type=usecases.text, help="the id of a replaced key")
        parser.add_argument("--yes", action="store_true", help="do not ask")

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Say what is lost, ask, and destroy."""
        from backupfw.manager.usecases.keys import KeyManager
        from backupfw.worker.keys import open_keys

        conf, db = self.database(parsed_args)
        key_store = self.open(contextlib.closing(open_keys(conf)))
        destroy = self._one if parsed_args.project is None else self._all
        destroy(parsed_args, conf, db, key_store, KeyManager(db))

    def _all(
        self,
        args: argparse.Namespace,
        conf: cfg.ConfigOpts,
        db: Database,
        key_store: KeyStore,
        manager: KeyManager,
    ) -> None:
        project = args.project
        keys = counted(len(manager.list(project)), "key")
        lost = counted(manager.encrypted_backups(project), "encrypted backup")
        print(f"project {project}: {keys}; nobody can read its {lost} any more, ever", file=sys.stderr)
        if not args.yes:
            self._ask("the project's id", project, "them")
        with usecases.opened(conf, db) as cases:
            found = cases.keys.begin_destruction(base.operator(project), project)
        # If it does not answer now, the keys stay in the state 'destroying', and the command is run again.
        for key_id in found.key_ids:
            key_store.destroy(key_id)
        manager.end_destruction(found.key_ids)
        done = counted(len(found.key_ids), "key")
        self.app.stdout.write(
            f"{done} destroyed, {counted(found.backups, 'backup')} set to error; copies of the key store and"
            " of its disks may still have them\n"
        )

    def _one(
        self,
        args: argparse.Namespace,
        conf: cfg.ConfigOpts,
        db: Database,
        key_store: KeyStore,
        manager: KeyManager,
    ) -> None:
        from backupfw.manager.rules.project_keys import RETIRED
        from backupfw.manager.usecases.keys import still_needed

        key = manager.retired(args.key)
        # One that is being destroyed, or is, was looked for before.
        if key.state == RETIRED:
            wrapped = [f"data key {one.id} in the database" for one in manager.wrapped_by(key.key_id)]
            if wrapped := wrapped or list(_wrapped_in_stores(conf, db, manager, key)):
                raise still_needed(key.key_id, wrapped)
        print(
            f"project {key.project_id}: nobody can read older copies of the database, or of stored data keys,"
            f" that need key {key.key_id} any more, ever",
            file=sys.stderr,
        )
        if not args.yes:
            self._ask("the key's id", key.key_id, "it")
        manager.begin_key_destruction(key.key_id)
        # If it does not answer now, the key stays in the state 'destroying', and the command is run again.
        key_store.destroy(key.key_id)
        manager.end_destruction([key.key_id])
        self.app.stdout.write("1 key destroyed; copies of the key store and of its disks may still have it\n")

    @staticmethod
    def _ask(what: str, answer: str, them: str) -> None:
        print(f"Type {what} to destroy {them}: ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().rstrip("\n") != answer:
            raise InvalidInput(f"That is not {what}: nothing was destroyed.")


def _wrapped_in_stores(
    conf: cfg.ConfigOpts, db: Database, manager: KeyManager, key: ProjectKey
) -> Iterator[str]:
    """Yield what the data keys are called that a project key wraps in the stores, whether known or not.

    :raises ConfigError: a store that has data keys of the project is not enabled here.
    :raises BackupfwError: not all of them can be read.
    """
    from backupfw import naming
    from backupfw.chunkstore.errors import NotFound
    from backupfw.cmd import store
    from backupfw.engine import removal
    from backupfw.engine.format.key_object import read_key
    from backupfw.engine.listing import data_key_keys

    known = manager.places(key.project_id)
    if missing := {name for name, _ in known} - set(conf.enabled_stores):
        raise ConfigError(f"stores that have data keys of the project are not enabled: {sorted(missing)}")
    project = naming.key_part(key.project_id)
    with store.places(conf, db, None) as places:
        for place in places:
            with place.looked_at("looking for data keys in") as (container, control):
                removal.settle(container, control)
                try:
                    # Those of other installations, too, of which backups may have been imported.
                    for found in data_key_keys(container, "", control):
                        if found.split("/")[1] != project:
                            continue
                        with contextlib.suppress(DataKeyMissing):
                            if read_key(container, found).project_key_id == key.key_id:
                                yield f"data key {found} in {place}"
                except NotFound:
                    if (place.store, place.container) in known:
                        raise
