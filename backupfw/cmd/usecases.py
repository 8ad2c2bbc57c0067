"""The API's use cases as commands call them: the same rules and messages, for an operator.

What a worker has to do is queued in the database, where a worker of the running service finds it.
"""

from __future__ import annotations

import argparse
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from backupfw import naming
from backupfw.cmd import base, waiting
from backupfw.errors import BackupfwError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.catalogue import Named
    from backupfw.db.session import Database
    from backupfw.manager.policies.manager import PolicyManager
    from backupfw.manager.rows import Page
    from backupfw.manager.usecases.backups import BackupManager
    from backupfw.manager.usecases.keys import KeyManager
    from backupfw.manager.usecases.snapshots import SnapshotManager
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.volume.catalogue import Catalogue

#: How many records of a listing are read at a time.
_PAGE = 1000


class UseCases:
    """The use cases on one database.

    :param wake: called after a transaction that queued or cancelled a task, or changed a backup policy.
    """

    def __init__(self, conf: cfg.ConfigOpts, db: Database, wake: Callable[[], None] = lambda: None) -> None:
        self.conf = conf
        self.db = db
        self._wake = wake

    @cached_property
    def _foreign(self) -> Mapping[str, Catalogue]:
        from backupfw.worker.backends import foreign_catalogues

        return foreign_catalogues(self.conf)

    @cached_property
    def backups(self) -> BackupManager:
        """The use cases of backups."""
        from backupfw.cmd import store
        from backupfw.manager.usecases.backups import BackupManager
        from backupfw.manager.usecases.mirrors import Mirrors

        mirrors = Mirrors(self.db, self.conf, self._foreign)
        patterns = store.container_patterns(self.conf)
        return BackupManager(self.db, self.conf, self._wake, patterns, mirrors=mirrors)

    @cached_property
    def policies(self) -> PolicyManager:
        """The use cases of backup policies."""
        from backupfw.manager.policies.manager import PolicyManager

        return PolicyManager(self.db, self.conf, self.backups, self._wake)

    @cached_property
    def volumes(self) -> VolumeManager:
        """The use cases of volumes."""
        from backupfw.manager.usecases.volumes import VolumeManager

        return VolumeManager(self.db, self.conf, self._wake, self._foreign.keys())

    @cached_property
    def snapshots(self) -> SnapshotManager:
        """The use cases of snapshots."""
        from backupfw.manager.usecases.snapshots import SnapshotManager

        return SnapshotManager(self.db, self.conf, self._wake)

    @cached_property
    def keys(self) -> KeyManager:
        """Project keys and data keys."""
        from backupfw.manager.usecases.keys import KeyManager

        return KeyManager(self.db, self._wake)

    def find(self, model: type[Named], text: str, project: str | None = None, **by_name: str | None) -> str:
        """Return the id of what an operator named; see :func:`catalogue.find_id`."""
        from backupfw.cmd import catalogue

        return catalogue.find_id(self.db, model, text, project, by_name=by_name)


def text(value: str) -> str:
    """Return a text that an operator gave, for argparse.

    :raises argparse.ArgumentTypeError: no database keeps it, or it is too long.
    """
    if problem := naming.input_problem(value, naming.MAX_NAME):
        raise argparse.ArgumentTypeError(f"{value!a} cannot be used: {problem}")
    return value


def add_project(parser: argparse.ArgumentParser) -> None:
    """Add ``--project``, which says in which project a name is looked up."""
    parser.add_argument("--project", metavar="P", type=text, help="look it up in this project only")


def project(value: str) -> str:
    """Return the id of a project that an operator gave, for argparse.

    :raises argparse.ArgumentTypeError: the API could not name it, so nobody would reach what it has.
    """
    if not value or not naming.is_name(value):
        raise argparse.ArgumentTypeError(f"{value!a} is not one line of 1 to {naming.MAX_NAME} characters")
    return value


@contextmanager
def opened(conf: cfg.ConfigOpts, db: Database) -> Iterator[UseCases]:
    """Yield the use cases on a database; workers are woken through the message bus, if there is one."""
    if not conf.transport_url:
        yield UseCases(conf, db)
        return
    from backupfw.cmd.service import make_dispatch

    with closing(make_dispatch(conf, listens=False)) as dispatch:
        yield UseCases(conf, db, dispatch.wake)


class Queueing(base.Command):
    """A command that has a worker do something, and waits for it."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        waiting.add_options(parser)

    def use_cases(self, args: argparse.Namespace) -> UseCases:
        """Return the use cases, which work until the command is over."""
        return self.open(opened(*self.database(args)))


class Deleting(Queueing):
    """A command that deletes what it is given, and goes on where one cannot be deleted."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", nargs="+", help="id or name, any number of them")
        add_project(parser)
        super().add_arguments(parser)

    def delete(self, cases: UseCases, args: argparse.Namespace, model: type[Named], noun: str) -> int:
        """Delete each; returns the exit status.  If one does not exist, nothing is deleted."""
        from backupfw.manager.lineage import lifecycle

        # One may be named twice: by its id and by its name.
        ids = list(dict.fromkeys(cases.find(model, text, args.project) for text in args.id))
        failed: list[str] = []
        begun: list[str] = []
        for one in ids:
            with failure_reported(failed, one):
                self.begin(cases, args, one)
                begun.append(one)
        for one in begun:
            operation = waiting.Operation(f"deleting {noun} {one}", model, one, (lifecycle.DELETED,))
            with failure_reported(failed, one):
                waiting.follow(cases.conf, cases.db, operation, wait=args.wait)
        return 1 if failed else 0

    @abstractmethod
    def begin(self, cases: UseCases, args: argparse.Namespace, resource_id: str) -> None:
        """Begin the deletion of one."""


@contextmanager
def failure_reported(failed: list[str], resource_id: str) -> Iterator[None]:
    """Report an error of one of several things, and go on with the others."""
    try:
        yield
    except BackupfwError as error:
        print(f"backupfw: {error}", file=sys.stderr)
        failed.append(resource_id)


def pages(list_page: Callable[..., Page[Any]], filters: dict[str, str | None]) -> Iterator[Any]:
    """Yield the records of a listing of all projects, oldest first, some read at a time.

    :param list_page: a manager's ``list``.
    :param filters: column to value; those that are None ask for nothing.
    """
    chosen = {name: value for name, value in filters.items() if value is not None}
    marker: str | None = None
    while True:
        page: Sequence[Any] = list_page(
            base.operator(),
            all_tenants=True,
            filters=chosen,
            sort=[("created_at", "asc")],
            limit=_PAGE,
            marker=marker,
        ).items
        yield from page
        if len(page) < _PAGE:
            return
        marker = page[-1].id


def described(record: Any) -> dict[str, Any]:
    """Return a manager's record as plain values, by the words of the API."""
    from backupfw.cmd import database

    hidden = ("deleted", "deleted_at")
    words = {"display_name": "name", "display_description": "description"}
    found = {words.get(name, name): value for name, value in database.plain(record).items()}
    if "attachments" in found:
        found["attachments"] = [database.plain(one) for one in record.attachments]
    return {name: value for name, value in found.items() if name not in hidden}
