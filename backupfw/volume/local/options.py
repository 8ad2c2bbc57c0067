"""The options of the ``local`` provider, in ``[volumes:NAME]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

from backupfw.errors import ConfigError


def local_options() -> Sequence[cfg.Opt]:
    """Return the provider's options."""
    return (
        cfg.StrOpt("volumes_dir", help="Directory of the image files of volumes and snapshots."),
        cfg.ListOpt(
            "snapshot_dirs",
            default=[],
            help="More directories for snapshots. An adopted image on another file system than volumes_dir "
            "gets an atomic snapshot (reflink) if one of them is on that file system.",
        ),
        cfg.IntOpt(
            "snapshot_tries",
            default=3,
            min=1,
            help="How often the copy of an in-use volume is updated, on file systems without reflinks, "
            "before the backup ends in error because the volume keeps changing.",
        ),
        cfg.FloatOpt(
            "snapshot_settle",
            default=2.0,
            min=0.05,
            max=60,
            help="Seconds without change of a file's times that prove that it has no writer. At least 1 on "
            "file systems that keep whole seconds (ext4 with 128-byte inodes).",
        ),
        cfg.BoolOpt("allow_devices", default=True, help="Whether block devices may become volumes."),
        cfg.ListOpt(
            "backing_dirs",
            default=[],
            help="Directories whose files an adopted qcow2 image may have as its backing files. Whoever can "
            "write to an image can name any file in them, and read it in a backup.",
        ),
        cfg.FloatOpt(
            "fence_wait",
            default=10.0,
            min=0.1,
            max=600,
            help="Seconds an earlier writer of a volume gets to stop by itself when a later one takes over, "
            "and again after it was killed.",
        ),
        cfg.BoolOpt(
            "fence_kill",
            default=True,
            help="Whether a worker process of this host that hangs with a volume open is killed when a later "
            "attempt takes the volume over. Without it the later attempt waits until the process is gone.",
        ),
    )


def backing_directories(options: Any) -> tuple[str, ...]:
    """Return ``backing_dirs`` as real paths.

    :raises ConfigError: one of them is no absolute path.
    """
    for path in options.backing_dirs:
        if not os.path.isabs(path):
            raise ConfigError(f"option backing_dirs: {path!r} is not an absolute path")
    return tuple(os.path.realpath(path) for path in options.backing_dirs)


def directories(options: Any) -> tuple[str, ...]:
    """Return ``volumes_dir`` (made if it is not there), then ``snapshot_dirs``, as real paths.

    :raises ConfigError: one of them cannot be used.
    """
    if not options.volumes_dir:
        raise ConfigError("option volumes_dir: a directory is needed")
    found = []
    for option, path in [
        ("volumes_dir", options.volumes_dir),
        *(("snapshot_dirs", path) for path in options.snapshot_dirs),
    ]:
        if not os.path.isabs(path):
            raise ConfigError(f"option {option}: {path!r} is not an absolute path")
        try:
            if option == "volumes_dir":
                os.makedirs(path, mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"option {option}: {path!r} cannot be made: {error.strerror}") from error
        if not os.path.isdir(path) or not os.access(path, os.R_OK | os.W_OK | os.X_OK):
            raise ConfigError(f"option {option}: {path!r} is not a directory that can be written")
        found.append(os.path.realpath(path))
    return tuple(found)
