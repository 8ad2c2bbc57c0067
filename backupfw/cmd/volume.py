"""``backupfw volume``: volumes of the embedded provider, made and found without the API.

These commands work on the database and the provider themselves, whether the service runs or not.
"""

from __future__ import annotations

import argparse
import os
import uuid
from typing import TYPE_CHECKING, Any

from backupfw.cmd.configure import add_command, add_group, load_conf
from backupfw.cmd.progress import Progress, human_size
from backupfw.conf import volumes as volumes_conf
from backupfw.context import RequestContext
from backupfw.errors import InvalidInput

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.volume.base import VolumeProvider

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
    group = add_group(commands, "volume", "Make and find volumes of the embedded provider.")
    create_parser = add_command(group, "create", create, "Make a volume and print its id.")
    create_parser.add_argument("--size", metavar="GIB", type=_gigabytes, help="size in GiB")
    create_parser.add_argument("--image", metavar="FILE", help="raw image whose content it gets")
    adopt_parser = add_command(
        group,
        "adopt",
        adopt,
        "Make an existing raw image or block device a volume, where it is, and print its id.",
    )
    adopt_parser.add_argument("path", metavar="PATH", help="the image or device")
    for parser in (create_parser, adopt_parser):
        parser.add_argument("--name", metavar="N", help="display name")
        parser.add_argument(
            "--project", metavar="P", default="demo", help="project it belongs to (default: %(default)s)"
        )
    path_parser = add_command(group, "path", path, "Print where a volume's bytes are.")
    path_parser.add_argument("id", metavar="ID", help="the volume's id")


def _operator(project: str) -> RequestContext:
    return RequestContext(project, "backupfw", frozenset({"admin"}), is_admin=True)


def _provider(conf: cfg.ConfigOpts) -> VolumeProvider:
    from backupfw.cmd import state
    from backupfw.volume.loader import load_provider

    state.prepare(conf.state_dir)
    return load_provider(conf.volumes.provider)(conf.volumes)


def create(args: argparse.Namespace) -> int:
    """Make storage first, fill it, then enter it: no volume is ever seen half made."""
    from backupfw.cmd import database
    from backupfw.manager.volumes import VolumeManager
    from backupfw.volume.base import VolumeRef

    conf = load_conf(args)
    provider = _provider(conf)
    source = None
    if args.image is not None:
        location, length = provider.adopt(os.path.abspath(args.image))
        source = VolumeRef(str(uuid.uuid4()), length, location, adopted=True)
    if args.size is None and source is None:
        raise InvalidInput("--size is needed where there is no --image")
    length = args.size * GIB if args.size is not None else -(-(source.length if source else 0) // GIB) * GIB
    if source is not None and source.length > length:
        raise InvalidInput(
            f"the image has {human_size(source.length)}, which is more than --size {args.size}"
        )
    with database.opened(conf) as db:
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
    """Enter an existing image or device."""
    from backupfw.cmd import database
    from backupfw.manager.volumes import VolumeManager

    conf = load_conf(args)
    location, length = _provider(conf).adopt(os.path.abspath(args.path))
    with database.opened(conf) as db:
        row = VolumeManager(db, conf, lambda: None).adopt(
            _operator(args.project),
            location=location,
            length=length,
            name=args.name,
            host=volumes_conf.host_of_new(conf),
        )
    print(row.id)
    return 0


def path(args: argparse.Namespace) -> int:
    """Print a volume's location."""
    from backupfw.cmd import database
    from backupfw.manager.volumes import VolumeManager

    conf = load_conf(args)
    with database.opened(conf) as db:
        row = VolumeManager(db, conf, lambda: None).get(_operator("demo"), args.id)
    if row.location is None:
        raise InvalidInput(f"volume {args.id} has no storage yet (status {row.status})")
    print(row.location)
    return 0
