"""Named plug-ins: a list of enabled names, and for each of them a section with its ``driver``'s options."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol, TypeVar

from oslo_config import cfg

from backupfw.errors import ConfigError


class Driver(Protocol):
    """The part of a plug-in's class that the configuration uses."""

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the options."""


T = TypeVar("T", bound=Driver)


def check_enabled(
    enabled: Sequence[str], default: str | None, where: tuple[str, str, str], noun: str
) -> None:
    """Check a list of enabled names, and the default among them.

    :param default: the default; None: the first name is.
    :param where: the section, the option with the list and the one with the default.
    :param noun: what one of them is, e.g. ``store``.
    :raises ConfigError: there is none, one is named twice, two differ only in case, or the default is not
        enabled.
    """
    section, option, default_option = where
    if not enabled:
        raise ConfigError(f"section [{section}], option {option}: needs at least one {noun}")
    if len(set(enabled)) != len(enabled):
        raise ConfigError(f"section [{section}], option {option}: a {noun} is named twice")
    # oslo.config compares the names of sections without regard to case.
    first: dict[str, str] = {}
    for name in enabled:
        other = first.setdefault(name.lower(), name)
        if other != name:
            raise ConfigError(
                f"section [{section}], option {option}: {other!r} and {name!r} differ only in case, so they"
                " would share one section"
            )
    if default is not None and default not in enabled:
        raise ConfigError(
            f"section [{section}], option {default_option}: {default!r} is not enabled; allowed: one of"
            f" {', '.join(enabled)}"
        )


def register_opts(
    conf: cfg.ConfigOpts,
    section: str,
    common: Sequence[cfg.Opt],
    find: Callable[[str], T],
    defaults: Mapping[str, object],
    *,
    needed_by: str,
    more: Callable[[T], Sequence[cfg.Opt]] = lambda _driver: (),
    old_section: str | None = None,
) -> tuple[str, Sequence[cfg.Opt]]:
    """Register the section of one enabled name; ``conf`` has parsed its files already.

    :param common: the options of every such section; ``driver`` is one of them.
    :param find: returns the class of a driver; raises ConfigError where there is none.
    :param defaults: defaults of this section's options that differ from the plug-ins' own.
    :param needed_by: says why the section needs a driver.
    :param more: class -> options of what is put around it.
    :param old_section: where the driver's options were in earlier releases; they are still read there.
    :returns: what was registered.
    :raises ConfigError: no driver, an unknown one, or one that declares an option that every such section
        has.
    """
    conf.register_opts(common, section)
    if "driver" in defaults:
        conf.set_default("driver", defaults["driver"], section)
    name = conf[section].driver
    if not name:
        raise ConfigError(f"section [{section}], option driver: needs a value; {needed_by}")
    try:
        driver = find(name)
    except ConfigError as error:
        raise ConfigError(f"section [{section}], option driver: {error}") from error
    own, around = tuple(driver.options()), tuple(more(driver))
    both = {opt.dest for opt in own} & {opt.dest for opt in (*common, *around)}
    if both:
        raise ConfigError(
            f"section [{section}]: driver {name!r} declares options that every such section has:"
            f" {', '.join(sorted(both))}"
        )
    if old_section is not None:
        own = tuple(_with_old_place(opt, old_section) for opt in own)
    conf.register_opts(own, section)
    conf.register_opts(around, section)
    known: Collection[str] = {opt.dest for opt in (*own, *around)}
    for option, value in defaults.items():
        # A file may name another driver, which may not have the option.
        if option in known:
            conf.set_default(option, value, section)
    return section, (*common, *own, *around)


def _with_old_place(opt: cfg.Opt, section: str) -> cfg.Opt:
    # A copy: a plug-in may give the same object for every section.
    found = copy.copy(opt)
    found.deprecated_opts = [*opt.deprecated_opts, cfg.DeprecatedOpt(opt.name, group=section)]
    return found
