"""``[volumes]``, ``[volumes:NAME]`` and ``[quota]``: where volumes are, and how much a project may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from oslo_config import cfg

from backupfw.conf import named
from backupfw.conf.types import NAME

GROUP = "volumes"
#: The back end of volumes that were made before back ends had names.
LOCAL = "local"
OPTS = (
    cfg.ListOpt(
        "enabled",
        default=[LOCAL],
        item_type=NAME,
        bounds=False,
        help="Names of the enabled volume back ends; each has a section [volumes:NAME].  A back end's name is"
        " recorded with its volumes: never give it to another one.",
    ),
    cfg.StrOpt(
        "default",
        help="The back end of new volumes whose type has no extra spec volume_backend_name.  One of enabled;"
        " unset: the first of them.",
    ),
    cfg.BoolOpt(
        "shared",
        default=False,
        help="Every worker can open every volume: all hosts have its storage under the same path."
        "  Without it a volume is served by the workers of the host that made or adopted it.  The embedded"
        " service sets it on SQLite, where it is the only one.  A back end's own section can say otherwise.",
    ),
)

SHARED = cfg.BoolOpt(
    "shared",
    help="Every worker that has this back end can open all of its volumes; unset: as [volumes] says.",
)


def common(name: str) -> Sequence[cfg.Opt]:
    """Return the options that every back end's section has."""
    driver = cfg.StrOpt(
        "driver",
        required=True,
        help="The back end's volume provider: an installed entry point of group backupfw.volume.",
    )
    if name == LOCAL:
        # It had neither a name nor a section once.
        driver.default = "local"
        driver.deprecated_opts.append(cfg.DeprecatedOpt("provider", group=GROUP))
    return (driver, SHARED)


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
    _limit("backup_policies", 10, "Backup policies"),
)


def group_of(backend: str) -> str:
    """Return the section of a back end, e.g. ``volumes:local``."""
    return f"{GROUP}:{backend}"


def default_backend(conf: cfg.ConfigOpts) -> str:
    """Return the back end of new volumes for which nothing else decides."""
    name: str = conf.volumes.default or conf.volumes.enabled[0]
    return name


def is_shared(conf: cfg.ConfigOpts, backend: str) -> bool:
    """Return whether all hosts that have an enabled back end can open all of its volumes."""
    own: bool | None = conf[group_of(backend)].shared
    return bool(conf.volumes.shared if own is None else own)


def host_of_new(conf: cfg.ConfigOpts, backend: str) -> str | None:
    """Return the host that volumes made here in a back end are bound to; None: all hosts can open them."""
    return None if is_shared(conf, backend) else str(conf.host)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register these groups on a private ``conf``."""
    for section, options in list_opts():
        conf.register_opts(options, section)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS), ("quota", QUOTA)]


def register_backend(
    conf: cfg.ConfigOpts,
    backend: str,
    find_driver: Callable[[str], named.Driver],
    defaults: Mapping[str, object],
) -> tuple[str, Sequence[cfg.Opt]]:
    """Register one enabled back end's section; see :func:`named.register_opts`."""
    return named.register_opts(
        conf,
        group_of(backend),
        common(backend),
        find_driver,
        defaults,
        needed_by=f"the volume back end {backend!r} is in [{GROUP}] enabled",
        old_section=GROUP if backend == LOCAL else None,
    )
