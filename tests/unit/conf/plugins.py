"""Plug-ins as the configuration sees them, without any driver."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from backupfw.conf.load import PlugIns
from backupfw.errors import ConfigError


class Shelf:
    """A driver with a bounded, a required and a secret option, that takes plain container names."""

    container_pattern = "[a-z-]+"

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        return (
            cfg.StrOpt("path", required=True),
            cfg.IntOpt("boards", default=3, min=1, max=9),
            cfg.IntOpt("password", secret=True),
        )


class Greedy:
    """A driver that declares an option every store has."""

    container_pattern = ".+"

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        return (cfg.IntOpt("tries"),)


DRIVERS: dict[str, type[Shelf | Greedy]] = {"posix": Shelf, "shelf": Shelf, "greedy": Greedy}


def find_driver(name: str) -> type[Shelf | Greedy]:
    if name not in DRIVERS:
        raise ConfigError(f"there is no chunk store driver {name!r}; installed: {', '.join(DRIVERS)}")
    return DRIVERS[name]


class Images:
    """A volume provider that gives the same options for every section."""

    OPTIONS = (cfg.StrOpt("volumes_dir"), cfg.FloatOpt("wait", default=1.0, min=0.5))

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        return cls.OPTIONS


def find_provider(name: str) -> type[Images]:
    if name != "local":
        raise ConfigError(f"there is no volume provider {name!r}; installed: local")
    return Images


class Safe:
    """A key store with a required option."""

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        return (cfg.StrOpt("directory", required=True),)


def find_key_store(name: str) -> type[Safe]:
    if name != "file":
        raise ConfigError(f"there is no key store {name!r}; installed: file")
    return Safe


PLUG_INS = PlugIns(
    find_driver, lambda _driver: (cfg.IntOpt("tries", default=5, min=1),), find_provider, find_key_store
)
