"""``[store:NAME]``: one section per store, with the options of its driver and of the layers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from oslo_config import cfg

from backupfw import naming
from backupfw.conf import keys, named
from backupfw.errors import ConfigError

DRIVER = cfg.StrOpt(
    "driver",
    required=True,
    help="The store's driver: an installed entry point of group backupfw.chunkstore ('backupfw store list'"
    " shows them).",
)
CONTAINER = cfg.StrOpt(
    "container",
    max_length=255,
    help="The container of this store's backups whose request names none; unset: that of [backup].  Where"
    " names are shared with other customers of the store, choose one of your own.",
)


MAX_RUNNING = cfg.IntOpt(
    "max_running",
    default=0,
    min=0,
    mutable=True,
    help="How many tasks on this store run at once, over all workers; 0: no limit.",
)
LISTING_LAG_SECONDS = cfg.FloatOpt(
    "listing_lag_seconds",
    default=60.0,
    min=0.0,
    help="For a store whose listings lag: the longest time, in seconds, until a listing shows a new object."
    "  After its start a process deletes nothing in it for so long, because the database may be an"
    " older copy: backups made since then are found only by a listing.",
)
SCRUB_DAYS = cfg.IntOpt(
    "scrub_days",
    default=0,
    min=0,
    max=36500,
    mutable=True,
    help="Within so many days everything of ours in this store is read and verified again, by the workers, in"
    " the background; 0: never.  Set it when all workers are of a release that has this option.",
)
SCRUB_BYTES_PER_SECOND = cfg.FloatOpt(
    "scrub_bytes_per_second",
    default=50e6,
    min=0.0,
    mutable=True,
    help="Most bytes that scrub_days reads from this store per second, over all workers; 0: no limit but"
    " those of the store.  In scrub_days it must be able to read the whole store.",
)
OFF, PROJECT = "off", "project"
ENCRYPTION = cfg.StrOpt(
    "encryption",
    default=OFF,
    choices=[
        (OFF, "backups are stored as they are"),
        (PROJECT, "those of each project are encrypted with keys of its own, in the key store of [keys]"),
    ],
    help="Whether new backups in this store are encrypted before they leave the worker.  Whoever loses the"
    " keys loses the backups.  A placement rule can say otherwise.  Do not use it while workers of a release"
    " without encryption are running.",
)
LOCK_DAYS = cfg.IntOpt(
    "lock_days",
    default=0,
    min=0,
    max=36500,
    help="Lock everything that backups need in this store for so many days at least, counted from each new"
    " backup: until then nobody can delete it with the service's credentials, and deletions of backups wait."
    "  0: lock nothing.  Only for stores whose driver has locks.  Set it when no worker of a release without"
    " this option is running.",
)
PRICE = cfg.FloatOpt(
    "price_per_gib_month",
    default=0.0,
    min=0.0,
    mutable=True,
    help="What a GiB in this store costs in a month, in whatever currency: the console shows operators what"
    " each project costs.  0: it does not.",
)
#: The options of every store's section, whatever its driver.
COMMON = (
    DRIVER,
    CONTAINER,
    ENCRYPTION,
    MAX_RUNNING,
    LISTING_LAG_SECONDS,
    SCRUB_DAYS,
    SCRUB_BYTES_PER_SECOND,
    LOCK_DAYS,
    PRICE,
)


class Driver(named.Driver, Protocol):
    """The part of a chunk store driver's class that the configuration uses."""

    container_pattern: str
    object_lock: bool


def group_of(store: str) -> str:
    """Return the section of a store, e.g. ``store:main``."""
    return f"store:{store}"


def register_opts(
    conf: cfg.ConfigOpts,
    store: str,
    find_driver: Callable[[str], Driver],
    layer_options: Callable[[Any], Sequence[cfg.Opt]],
    defaults: Mapping[str, Any],
) -> tuple[str, Sequence[cfg.Opt]]:
    """Register one enabled store's section; ``conf`` has parsed its files already.

    :param store: the store's name.
    :param find_driver: returns the driver class of a name; raises ConfigError where there is none.
    :param layer_options: driver class -> what the layers around it can be set to.
    :param defaults: defaults of this store's options that differ from the plug-ins' own.
    :returns: what was registered.
    :raises ConfigError: no driver, an unknown one, or one whose options collide with the layers'.
    """
    return named.register_opts(
        conf,
        group_of(store),
        COMMON,
        find_driver,
        defaults,
        needed_by=f"the store {store!r} is in enabled_stores",
        more=layer_options,
    )


def default_container(conf: cfg.ConfigOpts, store: str) -> str:
    """Return the container of a store's backups that name none."""
    container: str = conf[group_of(store)].container or conf.backup.container
    return container


def container_problem(driver: Driver, container: str) -> str | None:
    """Return why a store of this driver cannot have a container of this name, or None if it can."""
    problem = naming.container_problem(container)
    if problem is None and not re.fullmatch(driver.container_pattern, container):
        problem = f"the store takes names that match {driver.container_pattern}"
    return problem


def check(conf: cfg.ConfigOpts, drivers: Mapping[str, Driver]) -> None:
    """Check that every store can have its default container, the keys for what it encrypts, and its locks.

    :param drivers: the driver class of every enabled store.
    :raises ConfigError: one cannot.
    """
    for store, driver in drivers.items():
        if conf[group_of(store)].lock_days and not driver.object_lock:
            raise ConfigError(
                f"section [{group_of(store)}], option lock_days: the driver {conf[group_of(store)].driver!r}"
                " has no locks"
            )
        check_keys(conf, group_of(store))
        container = default_container(conf, store)
        problem = container_problem(driver, container)
        if problem:
            raise ConfigError(f"section [{group_of(store)}], option container: {container!r}: {problem}")


def check_keys(conf: cfg.ConfigOpts, section: str) -> None:
    """Check that there is a key store if a section's backups are encrypted.

    :raises ConfigError: there is none.
    """
    if conf[section].encryption == PROJECT and not keys.is_set_up(conf):
        raise ConfigError(
            f"section [{section}], option encryption: {PROJECT!r} needs a key store: section [keys], option"
            " driver"
        )
