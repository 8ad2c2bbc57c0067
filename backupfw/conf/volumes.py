"""``[volumes]`` and ``[quota]``: where volumes come from, and how much a project may have.

The provider of volumes adds its own options to ``[volumes]``.
"""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = "volumes"
OPTS = (
    cfg.StrOpt(
        "provider",
        default="local",
        help="The volume provider: an installed entry point of group backupfw.volume.",
    ),
    cfg.BoolOpt(
        "shared",
        default=False,
        help="Every worker can open every volume: all hosts have its storage under the same path."
        "  Without it a volume is served by the workers of the host that made or adopted it.  The embedded"
        " service sets it on SQLite, where it is the only one.",
    ),
)


def _limit(resource: str, default: int, what: str) -> cfg.Opt:
    return cfg.IntOpt(
        resource,
        default=default,
        min=-1,
        max=(1 << 31) - 1,
        help=f"{what} of one project; -1 is no limit.  A limit set through the API wins.",
    )


#: ``[quota]``: limits of projects that have none of their own.
QUOTA = (
    _limit("backups", 10, "Backups"),
    _limit("backup_gigabytes", 1000, "GiB of backed-up volumes"),
    _limit("volumes", 10, "Volumes"),
    _limit("gigabytes", 1000, "GiB of volumes and snapshots"),
    _limit("snapshots", 10, "Snapshots"),
)


def host_of_new(conf: cfg.ConfigOpts) -> str | None:
    """Return the host that volumes made here are bound to; None: all hosts can open them."""
    return None if conf.volumes.shared else str(conf.host)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register these groups on a private ``conf``."""
    for section, options in list_opts():
        conf.register_opts(options, section)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS), ("quota", QUOTA)]
