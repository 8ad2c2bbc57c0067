"""``[store:NAME]``: one section per store; the driver and the layers bring their own options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from oslo_config import cfg

from backupfw.errors import ConfigError

DRIVER = cfg.StrOpt(
    "driver",
    required=True,
    help="The store's driver: an installed entry point of group backupfw.chunkstore ('backupfw store list'"
    " shows them).",
)


class HasOptions(Protocol):
    """A plug-in class that declares options (a chunk store driver)."""

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the options."""


def group_of(store: str) -> str:
    """Return the section of a store, e.g. ``store:main``."""
    return f"store:{store}"


def register_opts(
    conf: cfg.ConfigOpts,
    store: str,
    find_driver: Callable[[str], HasOptions],
    layer_options: Callable[[Any], Sequence[cfg.Opt]],
    defaults: Mapping[str, Any],
) -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Register one enabled store's section; ``conf`` has parsed its files already.

    :param store: the store's name.
    :param find_driver: returns the driver class of a name; raises ConfigError where there is none.
    :param layer_options: driver class -> what the layers around it can be set to.
    :param defaults: defaults of this store's options that differ from the plug-ins' own.
    :returns: what was registered.
    :raises ConfigError: no driver, an unknown one, or one whose options collide with the layers'.
    """
    group = group_of(store)
    conf.register_opt(DRIVER, group)
    if "driver" in defaults:
        conf.set_default("driver", defaults["driver"], group)
    name = conf[group].driver
    if not name:
        raise ConfigError(
            f"section [{group}], option driver: needs a value; the store {store!r} is in enabled_stores"
        )
    try:
        driver = find_driver(name)
    except ConfigError as error:
        raise ConfigError(f"section [{group}], option driver: {error}") from error
    own = tuple(driver.options())
    layers = tuple(layer_options(driver))
    both = {opt.dest for opt in own} & {opt.dest for opt in (DRIVER, *layers)}
    if both:
        raise ConfigError(f"driver {name!r} declares options that every store has: {', '.join(sorted(both))}")
    conf.register_opts(own, group)
    conf.register_opts(layers, group)
    known = {opt.dest for opt in (*own, *layers)}
    for option, value in defaults.items():
        # A file may give the store another driver, which need not know the option.
        if option in known:
            conf.set_default(option, value, group)
    return [(group, (DRIVER, *own, *layers))]
