"""``[quota]``: limits of projects that have none of their own."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = "quota"


def _limit(resource: str, default: int, what: str) -> cfg.Opt:
    return cfg.IntOpt(
        resource,
        default=default,
        min=-1,
        max=(1 << 31) - 1,
        help=f"{what} of one project; -1 is no limit.  A limit set through the API wins.",
    )


OPTS = (
    _limit("backups", 10, "Backups"),
    _limit("backup_gigabytes", 1000, "GiB of backed-up volumes"),
    _limit("volumes", 10, "Volumes"),
    _limit("gigabytes", 1000, "GiB of volumes and snapshots"),
    _limit("snapshots", 10, "Snapshots"),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
