"""The driver's options, in ``[store:NAME]``."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

#: What objects' files are called.
SUFFIXED, PLAIN = "suffixed", "plain"


def options() -> Sequence[cfg.Opt]:
    """Return new option objects."""
    return (
        cfg.StrOpt(
            "path",
            required=True,
            regex=r"^[/$].*",
            help="Absolute path of the directory that holds the containers. It is made when the first "
            "container is.",
        ),
        cfg.BoolOpt(
            "fsync",
            default=True,
            help="Return from a write or delete only when it would survive a power failure. Without it a "
            "backup shown as available may be damaged by one.",
        ),
        cfg.StrOpt(
            "file_mode",
            default="0640",
            regex=r"0?[0-7]{3}",
            help="Permissions of objects, octal; the process's umask takes from them. Several hosts that run "
            "as different users need the group's.",
        ),
        cfg.StrOpt(
            "directory_mode",
            default="0750",
            regex=r"0?[0-7]{3}",
            help="Permissions of directories, octal; the process's umask takes from them. A set-group-id bit "
            "of the path is inherited.",
        ),
        cfg.IntOpt(
            "min_free_bytes",
            default=0,
            min=0,
            help="Refuse to write an object that would leave less than this free in the file system.",
        ),
        cfg.StrOpt(
            "names",
            default=SUFFIXED,
            choices=(
                (
                    SUFFIXED,
                    "each name on disk says whether it is an object or a directory, so every key has one",
                ),
                (PLAIN, "the parts of keys themselves: for a directory that Cinder writes, too"),
            ),
            help="What files and directories are called. Never change it for a directory that has objects.",
        ),
        cfg.BoolOpt(
            "require_mount",
            default=False,
            help="Refuse to work unless the path is a mount point: for shares, so that nothing is written "
            "into the directory below one that is not mounted.",
        ),
    )
