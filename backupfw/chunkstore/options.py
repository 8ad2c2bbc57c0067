"""Option values without a configuration file: for tests, tools and layers."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING

from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

#: ConfigError is here for drivers, which raise it when options do not fit together.
__all__ = ["ConfigError", "option_values"]


def option_values(opts: Iterable[cfg.Opt], **values: object) -> SimpleNamespace:
    """Return an object with one attribute per option, as oslo.config's groups have.

    :param opts: the options, e.g. ``Driver.options()``.
    :param values: what differs from the defaults, by the option's attribute name; text is parsed by the
        option's type, so types and bounds hold as in a file.
    :raises ConfigError: an unknown name, a value the option's type refuses, or a required one missing.
    """
    result = SimpleNamespace()
    for opt in opts:
        name = opt.dest
        value = values.pop(name, opt.default)
        if value is None and opt.required:
            raise ConfigError(f"option {opt.name} needs a value")
        if value is not None:
            try:
                value = opt.type(value if isinstance(value, (list, dict)) else str(value))
            except ValueError as error:
                raise ConfigError(f"option {opt.name}: {error}") from error
        setattr(result, name, value)
    if values:
        raise ConfigError(f"no such option: {', '.join(sorted(values))}")
    return result
