"""``backupfw volume``: volumes made, found and attached without the API.

These commands work on the database and the provider themselves, whether the service runs or not.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import uuid
from typing import TYPE_CHECKING, Any

from backupfw.cmd.configure import add_command, add_group, load_conf
from backupfw.cmd.progress import Progress, human_size
from backupfw.conf import volumes as volumes_conf
from backupfw.context import RequestContext
from backupfw.errors import InvalidInput, StorageChanged

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.volume.base import Storage, VolumeProvider

GIB = 1 << 30


def _gigabytes(text: str) -> int:
    try:
        size = int(text)
    except ValueError:
        size = 0
    if not 1 <= size <= (1 << 31) - 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of GiB from 1")
    return size


def add_parser(commands: Any) -> None:
    """Add the subcommands."""
    group = add_group(commands, "volume", "Make and find volumes, and say who uses them.")
    create_parser = add_command(group, "create", create, "Make a volume and print its id.")
    create_parser.add_argument("--size", metavar="GIB", type=_gigabytes, help="size in GiB")
    create_parser.add_argument(
        "--image", metavar="FILE", help="raw image (or device) to copy; it is only read"
    )
    adopt_parser = add_command(
        group,
        "adopt",
        adopt,
        "Make an existing raw image or block device a volume, where it is, and print its id.",
    )
    adopt_parser.add_argument("path", metavar="PATH", nargs="?", help="the image or device")
    adopt_parser.add_argument(
        "--again",
        metavar="ID",
        help="no new volume: let this adopted one be what is at its path now, or at PATH",
    )
    adopt_parser.add_argument(
        "--in-use",
        action="store_true",
        help="somebody uses it now: it is backed up from snapshots until 'backupfw volume detach'",
    )
    for parser in (create_parser, adopt_parser):
        parser.add_argument(
            "--as-raw", action="store_true", help="its bytes are the disk's, whatever they look like"
        )
        parser.add_argument("--name", metavar="N", help="display name")
        parser.add_argument(
            "--project", metavar="P", default="demo", help="project it belongs to (default: %(default)s)"
        )
    attach_parser = add_command(
        group, "attach", attach, "Note that somebody uses a volume, and print the attachment's id."
    )
    attach_parser.add_argument("--instance", metavar="UUID", help="the virtual machine that uses it")
    attach_parser.add_argument("--host", metavar="NAME", help="the host that uses it")
    attach_parser.add_argument("--mountpoint", metavar="PATH", help="what it is called there")
    detach_parser = add_command(group, "detach", detach, "Note that nobody uses a volume any more.")
    detach_parser.add_argument("--attachment", metavar="ID", help="only this attachment (default: all)")
    for parser in (attach_parser, detach_parser):
        parser.add_argument("id", metavar="ID", help="the volume's id")
    path_parser = add_command(group, "path", path, "Print where a volume's bytes are.")
    path_parser.add_argument("id", metavar="ID", help="the volume's id")


def _operator(project: str) -> RequestContext:
    return RequestContext(project, "backupfw", frozenset({"admin"}), is_admin=True)


def _provider(conf: cfg.ConfigOpts) -> VolumeProvider:
    from backupfw.cmd import state
    from backupfw.volume.loader import load_provider

    state.prepare(conf.state_dir)
    return load_provider(conf.volumes.provider)(conf.volumes)


def _own(conf: cfg.ConfigOpts) -> list[str]:
    """Return the files and directories of the service that must not become volumes."""
    from backupfw.cmd import database
    from backupfw.conf.stores import group_of

    found = [str(conf.state_dir), *database.files(conf)]
    for store in conf.enabled_stores:
        group = conf[group_of(store)]
        # Whatever a driver calls it: a directory that is named in its section is where it works.
        found += [value for value in (group[name] for name in group) if _is_directory(value)]
    return found


def _is_directory(value: object) -> bool:
    return isinstance(value, str) and os.path.isabs(value) and os.path.isdir(value)


def _look(provider: VolumeProvider, conf: cfg.ConfigOpts, args: argparse.Namespace, path: str) -> Storage:
    """Look at what shall become a volume."""
    return provider.adopt(os.path.abspath(path), own=_own(conf), any_format=args.as_raw, in_use=args.in_use)


def create(args: argparse.Namespace) -> int:
    """Make storage first, fill it, then enter it: no volume is ever seen half made."""
    from backupfw.cmd import database
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.volume.base import VolumeRef

    conf = load_conf(args)
    provider = _provider(conf)
    source = None
    if args.image is not None:
        image = provider.adopt(
            os.path.abspath(args.image), own=_own(conf), to_copy=True, any_format=args.as_raw
        )
        source = VolumeRef(str(uuid.uuid4()), image.length, image.location, True, image.storage_id)
    if args.size is None and source is None:
        raise InvalidInput("--size is needed where there is no --image")
    length = args.size * GIB if args.size is not None else -(-(source.length if source else 0) // GIB) * GIB
    if source is not None and source.length > length:
        raise InvalidInput(
            f"the image has {human_size(source.length)}, which is more than --size {args.size}"
        )
    with database.opened(conf, make=True) as db:
        volumes = VolumeManager(db, conf, lambda: None)
        volume = VolumeRef(str(uuid.uuid4()), length)
        progress = Progress(f"copying {args.image}" if source else "making the volume")
        try:
            location = provider.create(volume, source, progress.beat)
            if source:
                progress.finish(human_size(source.length))
            row = volumes.adopt(
                _operator(args.project),
                location=location,
                length=length,
                name=args.name,
                host=volumes_conf.host_of_new(conf),
                made_as=volume.id,
            )
        except BaseException:
            progress.abandon()
            provider.delete(volume)
            raise
    print(row.id)
    return 0


def adopt(args: argparse.Namespace) -> int:
    """Enter an existing image or device, or let a volume that was adopted be what is there now."""
    from backupfw.cmd import database
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.worker.handlers.base import volume_ref

    if args.path is None and args.again is None:
        raise InvalidInput("a PATH is needed where there is no --again ID")
    conf = load_conf(args)
    operator, host = _operator(args.project), volumes_conf.host_of_new(conf)
    with database.opened(conf, make=args.again is None) as db:
        provider = _provider(conf)
        volumes = VolumeManager(db, conf, lambda: None)
        path = args.path
        if args.again is not None:
            volume = volumes.get(operator, args.again)
            path = path or provider.where(volume_ref(volume))
            args.in_use = args.in_use or bool(volume.attachments)
        storage = _look(provider, conf, args, path)
        _record_storages(volumes, provider, host)
        if args.again is not None:
            row = volumes.adopt_again(
                operator,
                args.again,
                location=storage.location,
                length=storage.length,
                storage_id=storage.storage_id,
                host=host,
            )
        else:
            row = volumes.adopt(
                operator,
                location=storage.location,
                length=storage.length,
                name=args.name,
                host=host,
                storage_id=storage.storage_id,
                in_use=args.in_use,
            )
    print(row.id)
    return 0


def _record_storages(volumes: VolumeManager, provider: VolumeProvider, host: str | None) -> None:
    """Record what volumes of an earlier release are, so that none of them is adopted by another name."""
    from backupfw.worker.handlers.base import volume_ref

    for volume in volumes.not_recorded(host):
        with contextlib.suppress(StorageChanged, OSError):
            storage = provider.look(volume_ref(volume))
            if storage.storage_id is not None:
                volumes.record_storage(volume.id, storage.storage_id)


def attach(args: argparse.Namespace) -> int:
    """Note that somebody uses a volume."""
    from backupfw.cmd import database
    from backupfw.manager.usecases.volumes import VolumeManager

    conf = load_conf(args)
    with database.opened(conf) as db:
        row = VolumeManager(db, conf, lambda: None).attach(
            _operator("demo"),
            args.id,
            instance_uuid=args.instance,
            host_name=args.host,
            mountpoint=args.mountpoint,
        )
    print(row.attachments[-1].id)
    return 0


def detach(args: argparse.Namespace) -> int:
    """Note that somebody, or nobody at all, uses a volume no more."""
    from backupfw.cmd import database
    from backupfw.manager.usecases.volumes import VolumeManager

    conf = load_conf(args)
    with database.opened(conf) as db:
        VolumeManager(db, conf, lambda: None).detach(
            _operator("demo"), args.id, attachment_id=args.attachment
        )
    return 0


def path(args: argparse.Namespace) -> int:
    """Print where a volume is."""
    from backupfw.cmd import database
    from backupfw.manager.usecases.volumes import VolumeManager
    from backupfw.worker.handlers.base import volume_ref

    conf = load_conf(args)
    with database.opened(conf) as db:
        row = VolumeManager(db, conf, lambda: None).get(_operator("demo"), args.id)
    if row.location is None:
        raise InvalidInput(f"volume {args.id} has no storage yet (status {row.status})")
    print(_provider(conf).where(volume_ref(row)))
    return 0
