"""``backupfw volume``: volumes made, found, attached and deleted without the API.

These commands work on the database and the provider themselves, whether the service runs or not; what only a
worker may do (extend, delete) they queue for one.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from backupfw.amounts import human_size
from backupfw.cmd import base, usecases, waiting
from backupfw.cmd.configure import load_conf
from backupfw.cmd.progress import Progress
from backupfw.errors import BackupfwError, ConfigError, InvalidInput, StorageChanged

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.volume.base import VolumeProvider

GIB = 1 << 30
#: The project of a volume where none is given.
DEFAULT_PROJECT = "demo"


def _gigabytes(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 1 <= size <= (1 << 31) - 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of GiB from 1")
    return size


class _New(base.Command):
    """A command that makes something a volume."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--as-raw", action="store_true", help="its bytes are the disk's, whatever they look like"
        )
        parser.add_argument("--name", metavar="N", type=usecases.text, help="display name")
        parser.add_argument(
            "--project",
            metavar="P",
            type=usecases.project,
            help=f"project it belongs to (default: {DEFAULT_PROJECT})",
        )
        parser.add_argument(
            "--backend",
            metavar="NAME",
            help="the volume back end that it comes to (default: that of the project's default type)",
        )


class Create(_New):
    """Make a volume and print its id."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--size", metavar="GIB", type=_gigabytes, help="size in GiB")
        parser.add_argument("--image", metavar="FILE", help="raw image (or device) to copy; it is only read")
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Make it."""
        args = parsed_args
        if args.size is None and args.image is None:
            self.refuse("--size is needed where there is no --image")
        conf = load_conf(args)
        how = {"name": args.name, "as_raw": args.as_raw, "backend": args.backend}
        print(create(conf, args.size, args.image, project=args.project or DEFAULT_PROJECT, **how))


class Adopt(_New):
    """Make an existing disk a volume, where it is, and print its id."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "path",
            metavar="PATH",
            nargs="?",
            help="the raw image or block device, or what else the back end takes (see 'volume adoptable')",
        )
        parser.add_argument(
            "--again",
            metavar="ID",
            help="no new volume: let this adopted one be what is at its path now, or at PATH",
        )
        parser.add_argument(
            "--in-use",
            action="store_true",
            help="somebody uses it now: it is backed up from snapshots until 'backupfw volume detach'",
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Adopt it."""
        args = parsed_args
        if args.path is None and args.again is None:
            self.refuse("a PATH is needed where there is no --again ID")
        conf = load_conf(args)
        how = {"as_raw": args.as_raw, "in_use": args.in_use}
        if args.again is not None:
            if args.backend is not None:
                self.refuse("--backend is for a new volume: with --again ID it stays in its back end")
            print(adopt_again(conf, args.again, args.path, owner=args.project, **how))
        else:
            where = {"project": args.project or DEFAULT_PROJECT, "backend": args.backend}
            print(adopt(conf, args.path, name=args.name, **where, **how))


class Adoptable(base.Lister):
    """List what a volume back end could adopt."""

    columns = ("path", "size", "volume")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("name", metavar="NAME", help="the back end's name in [volumes] enabled")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield it; with the volume that it is already, if it is one."""
        cases = usecases.UseCases(*self.database(args))
        for storage in _provider(cases.conf, args.name).adoptable():
            yield {
                "path": storage.location,
                "size": human_size(storage.length),
                "volume": cases.volumes.of_storage(storage.location, storage.storage_id),
            }


class _Existing(base.AnyCommand):
    """A command for a volume that there is."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the volume's id or name")
        usecases.add_project(parser)

    def found(self, args: argparse.Namespace) -> tuple[usecases.UseCases, str]:
        """Return the use cases, which work until the command is over, and the volume's id."""
        from backupfw.db import models

        cases = usecases.UseCases(*self.database(args))
        return cases, cases.find(models.Volume, args.id, args.project)


class Attach(_Existing, base.Command):
    """Record that a volume is in use, and print the attachment's id."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--instance", metavar="UUID", type=usecases.text, help="the virtual machine that uses it"
        )
        parser.add_argument("--host", metavar="NAME", type=usecases.text, help="the host that uses it")
        parser.add_argument(
            "--mountpoint", metavar="PATH", type=usecases.text, help="what it is called there"
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Attach it."""
        args = parsed_args
        cases, volume = self.found(args)
        row = cases.volumes.attachments.attach(
            base.operator(),
            volume,
            instance_uuid=args.instance,
            host_name=args.host,
            mountpoint=args.mountpoint,
        )
        print(row.attachments[-1].id)


class Detach(_Existing, base.Command):
    """Record that a volume is not in use any more."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--attachment", metavar="ID", help="only this attachment (default: all)")
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Detach it."""
        cases, volume = self.found(parsed_args)
        cases.volumes.attachments.detach(base.operator(), volume, attachment_id=parsed_args.attachment)


class Path(_Existing, base.ShowOne):
    """Print where a volume's bytes are."""

    default_format = "value"

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        from backupfw.worker.handlers.base import volume_ref

        cases, volume = self.found(args)
        row = cases.volumes.get(base.operator(), volume)
        if row.location is None:
            raise InvalidInput(f"volume {row.id} has no storage yet (status {row.status})")
        return {"path": _provider(cases.conf, row.backend).where(volume_ref(row))}


class List(base.Lister):
    """List volumes, oldest first."""

    columns = ("id", "name", "project_id", "status", "size", "backend", "adopted", "created_at")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--project", metavar="ID", type=usecases.text, help="only those of this project")
        parser.add_argument(
            "--status",
            metavar="S",
            type=usecases.text,
            help="only those in this status: available, error ...",
        )
        parser.add_argument(
            "--backend", metavar="NAME", type=usecases.text, help="only those of this volume back end"
        )

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Return them page by page."""
        from backupfw.manager.lineage import lifecycle

        known = lifecycle.volume_statuses()
        if args.status is not None and args.status not in known:
            self.refuse(f"there is no status {args.status!r}; statuses: {', '.join(sorted(known))}")
        cases = usecases.UseCases(*self.database(args))
        wanted = {"project_id": args.project, "status": args.status, "backend": args.backend}
        found = usecases.pages(cases.volumes.list, wanted)
        return map(usecases.described, found)


class Show(_Existing, base.ShowOne):
    """Show a volume."""

    def record(self, args: argparse.Namespace) -> Mapping[str, Any]:
        """Return it."""
        cases, volume = self.found(args)
        return usecases.described(cases.volumes.get(base.operator(), volume))


class Backends(base.Lister):
    """List the installed volume providers and the back ends that use them."""

    columns = ("driver", "distribution", "version", "api", "backends", "state")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, str]]:
        """Yield one for each provider."""
        from backupfw.cmd import store
        from backupfw.conf.volumes import group_of
        from backupfw.volume.loader import PROVIDERS

        conf = load_conf(args)
        users = {name: conf[group_of(name)].driver for name in conf.volumes.enabled}
        return store.plugins(PROVIDERS.installed(), "backends", users)


class Check(base.Verdicts):
    """Prove that a volume back end can be used, with a small volume of its own; cleans up.

    The exit status is 1 when something does not work.
    """

    columns = ("check", "result", "detail")

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("name", metavar="NAME", help="the back end's name in [volumes] enabled")

    def records(self, args: argparse.Namespace) -> Iterator[Mapping[str, Any]]:
        """Yield what works, as it is found."""
        return self.reported(verdicts(load_conf(args), args.name))


class Extend(usecases.Queueing):
    """Make a volume larger."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("id", metavar="ID", help="the volume's id or name")
        usecases.add_project(parser)
        parser.add_argument("size", metavar="GIB", type=_gigabytes, help="its new size in GiB")
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Extend it."""
        from backupfw.db import models
        from backupfw.manager.lineage import lifecycle

        cases = self.use_cases(parsed_args)
        volume = cases.find(models.Volume, parsed_args.id, parsed_args.project)
        cases.volumes.extend(base.operator(), volume, new_size=parsed_args.size)
        operation = waiting.Operation(
            f"extending volume {volume}", models.Volume, volume, (lifecycle.AVAILABLE,)
        )
        waiting.follow(cases.conf, cases.db, operation, wait=parsed_args.wait)


class Set(_Existing, base.Command):
    """Change how a volume is backed up."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--trust-changes",
            action="store_true",
            required=True,
            help="incremental backups rely again on what its storage says is unchanged, although that was"
            " found to be wrong",
        )
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Change it."""
        cases, volume = self.found(parsed_args)
        cases.volumes.trust_changes(base.operator(), volume)


class Forget(_Existing, base.Command):
    """Take an adopted volume out of the catalogue.

    Its image or device stays as it is, and so do its backups.
    """

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Forget it."""
        cases, volume = self.found(parsed_args)
        cases.volumes.forget(base.operator(), volume)


class Delete(usecases.Deleting):
    """Delete volumes; their backups stay."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument("--cascade", action="store_true", help="delete their snapshots, too")
        super().add_arguments(parser)

    def take_action(self, parsed_args: argparse.Namespace) -> int:
        """Delete them."""
        from backupfw.db import models

        return self.delete(self.use_cases(parsed_args), parsed_args, models.Volume, "volume")

    def begin(self, cases: usecases.UseCases, args: argparse.Namespace, resource_id: str) -> None:
        """Begin the deletion of one."""
        cases.volumes.delete(base.operator(), resource_id, cascade=args.cascade)


def _provider(conf: cfg.ConfigOpts, backend: str) -> VolumeProvider:
    """Make the provider of a volume back end.

    :raises ConfigError: it is not enabled, or refuses its options.
    """
    from backupfw.cmd import database
    from backupfw.worker.backends import open_backend

    if backend not in conf.volumes.enabled:
        raise ConfigError(
            f"volume back end {backend!r} is not enabled; enabled: {', '.join(conf.volumes.enabled)}"
        )
    database.make_state_dir(conf.state_dir)
    return open_backend(conf, backend)


def verdicts(conf: cfg.ConfigOpts, name: str) -> Iterator[Mapping[str, Any]]:
    """Yield what works in one volume back end, as each is found, and whether all does.

    Each has its ``line`` for people.

    :raises ConfigError: it is not enabled, or refuses its options.
    """
    from backupfw.volume.check import check

    provider = _provider(conf, name)
    able = ", ".join(word for word, can in asdict(provider.capabilities).items() if can)
    yield {"check": "capabilities", "result": "ok", "detail": able, "line": f"ok      capabilities: {able}"}
    problem = ""
    # Closed, so that an interrupted check cleans up.
    with contextlib.closing(check(provider)) as proven:
        try:
            for what, is_proven in proven:
                result = "ok" if is_proven else "skipped"
                yield {"check": what, "result": result, "detail": "", "line": f"{result:<8}{what}"}
        except (BackupfwError, OSError) as error:
            problem = str(error)
    result = "failed" if problem else "ok"
    line = f"volume back end {name}: {f'NOT ok: {problem}' if problem else 'ok'}"
    yield {"check": "all", "result": result, "detail": problem, "line": line}


def own_files(conf: cfg.ConfigOpts) -> list[str]:
    """Return the files and directories of the service that must not become volumes."""
    from backupfw.cmd import database
    from backupfw.conf import stores, volumes

    found = [str(conf.state_dir), *database.files(conf)]
    sections = [
        *map(stores.group_of, conf.enabled_stores),
        *map(volumes.group_of, conf.volumes.enabled),
    ]
    for section in sections:
        found += directories(conf[section])
    return found


def directories(section: cfg.ConfigOpts.GroupAttr) -> list[str]:
    """Return the directories that a section of the configuration names.

    Whatever a driver or provider calls its options: such a directory is where it works.
    """
    values = (section[name] for name in section)
    texts = (text for value in values for text in (value if isinstance(value, list) else [value]))
    return [text for text in texts if isinstance(text, str) and os.path.isabs(text) and os.path.isdir(text)]


def _backend_of_new(conf: cfg.ConfigOpts, db: Database, project: str) -> str:
    """Return the back end of a new volume of a project whose type nobody chose.

    :raises InvalidInput: the back end of the project's default type is not enabled.
    """
    from backupfw.manager.rules import volume_types

    with db.read() as session:
        kind = volume_types.default(session, conf, project)
        return volume_types.backend_for(session, conf, None if kind is None else kind.name)


def create(
    conf: cfg.ConfigOpts,
    size: int | None,
    image: str | None,
    *,
    project: str,
    name: str | None = None,
    as_raw: bool = False,
    backend: str | None = None,
) -> str:
    """Make storage first, fill it, then enter it: no volume is ever seen half made.

    :param size: GiB; as many as the image needs when None, so it must be there where there is no image.
    :param image: a file to copy.
    :param as_raw: the image's bytes are the disk's, whatever they look like.
    :param backend: the volume back end that it comes to; None: that of the project's default type.
    :returns: the volume's id.
    :raises InvalidInput: it cannot be made like this.
    """
    from backupfw.cmd import database
    from backupfw.conf import volumes as volumes_conf
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.volume.base import VolumeRef

    if backend is None:
        with database.opened(conf, make=True) as db:
            backend = _backend_of_new(conf, db, project)
    provider = _provider(conf, backend)
    source = None
    if image is not None:
        found = provider.adopt(image, own=own_files(conf), to_copy=True, any_format=as_raw)
        source = VolumeRef(str(uuid.uuid4()), found.length, found.location, True, found.storage_id)
    length = size * GIB if size is not None else -(-(source.length if source else 0) // GIB) * GIB
    if source is not None and source.length > length:
        raise InvalidInput(f"the image has {human_size(source.length)}, which is more than --size {size}")
    with database.opened(conf, make=True) as db:
        volumes = VolumeManager(db, conf, lambda: None)
        volume = VolumeRef(str(uuid.uuid4()), length)
        progress = Progress(f"copying {image}" if source else "making the volume")
        try:
            location = provider.create(volume, source, progress.beat)
            if source:
                progress.finish(human_size(source.length))
            row = volumes.adopt(
                base.operator(project),
                location=location,
                length=length,
                name=name,
                host=volumes_conf.host_of_new(conf, backend),
                backend=backend,
                made_as=volume.id,
            )
        except BaseException:
            progress.abandon()
            provider.delete(volume)
            raise
    return row.id


def adopt(
    conf: cfg.ConfigOpts,
    path: str,
    *,
    project: str,
    name: str | None = None,
    as_raw: bool = False,
    in_use: bool = False,
    backend: str | None = None,
) -> str:
    """Enter an existing image or device.

    :param as_raw: its bytes are the disk's, whatever they look like.
    :param in_use: somebody uses it now.
    :param backend: the volume back end that opens it; None: that of the project's default type.
    :returns: the volume's id.
    """
    from backupfw.cmd import database
    from backupfw.conf import volumes as volumes_conf
    from backupfw.manager.usecases.volumes import VolumeManager

    with database.opened(conf, make=True) as db:
        backend = backend or _backend_of_new(conf, db, project)
        provider = _provider(conf, backend)
        volumes = VolumeManager(db, conf, lambda: None)
        storage = provider.adopt(path, own=own_files(conf), any_format=as_raw, in_use=in_use)
        _record_storages(conf, volumes)
        row = volumes.adopt(
            base.operator(project),
            location=storage.location,
            length=storage.length,
            name=name,
            host=volumes_conf.host_of_new(conf, backend),
            backend=backend,
            storage_id=storage.storage_id,
            in_use=in_use,
        )
    return row.id


def adopt_again(
    conf: cfg.ConfigOpts,
    volume_id: str,
    path: str | None,
    *,
    owner: str | None = None,
    as_raw: bool = False,
    in_use: bool = False,
) -> str:
    """Let a volume that was adopted be what is there now.

    :param volume_id: or its name.
    :param path: where; where it was when None.
    :param owner: only of this project; None for any.
    :param as_raw, in_use: as for :func:`adopt`.
    :returns: the volume's id.
    """
    from backupfw.cmd import catalogue, database
    from backupfw.conf import volumes as volumes_conf
    from backupfw.db import models
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.worker.handlers.base import volume_ref

    operator = base.operator()
    with database.opened(conf) as db:
        volumes = VolumeManager(db, conf, lambda: None)
        volume = volumes.get(operator, catalogue.find_id(db, models.Volume, volume_id, owner))
        provider = _provider(conf, volume.backend)
        storage = provider.adopt(
            path or provider.where(volume_ref(volume)),
            own=own_files(conf),
            any_format=as_raw,
            in_use=in_use or bool(volume.attachments),
        )
        _record_storages(conf, volumes)
        row = volumes.adopt_again(
            operator,
            volume.id,
            location=storage.location,
            length=storage.length,
            storage_id=storage.storage_id,
            host=volumes_conf.host_of_new(conf, volume.backend),
        )
    return row.id


def _record_storages(conf: cfg.ConfigOpts, volumes: VolumeManager) -> None:
    """Record missing storage ids, so that no volume of an earlier release is adopted under another name."""
    from backupfw.worker.handlers.base import volume_ref

    provider = functools.cache(functools.partial(_provider, conf))
    for volume in volumes.not_recorded():
        with contextlib.suppress(ConfigError, StorageChanged, OSError):
            storage = provider(volume.backend).look(volume_ref(volume))
            if storage.storage_id is not None:
                volumes.record_storage(volume.id, storage.storage_id)
