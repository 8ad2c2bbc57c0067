"""Finds the installed drivers and opens configured stores with them.

A driver is an entry point of group ``backupfw.chunkstore``; in-tree drivers are found like anybody
else's.  Nothing here knows a driver's name.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stevedore import driver as stevedore_driver

from backupfw.chunkstore.base import API_VERSION, ChunkStore
from backupfw.chunkstore.layers.metrics import Recorder
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.retry import never
from backupfw.chunkstore.layers.stack import stack
from backupfw.errors import ConfigError

__all__ = ["GROUP", "DriverInfo", "installed_drivers", "layer_options", "load_driver", "open_store"]

#: The entry point group of chunk store drivers.
GROUP = "backupfw.chunkstore"


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """An installed driver.

    :ivar name: what deployers write as ``driver = …``.
    :ivar class_path: ``module:class``.
    :ivar distribution: the distribution that brings it.
    :ivar version: that distribution's version.
    :ivar api_version: the contract version it was written for; None if it cannot be loaded.
    :ivar problem: why it cannot be used, or None.
    """

    name: str
    class_path: str
    distribution: str
    version: str
    api_version: int | None
    problem: str | None


def installed_drivers() -> list[DriverInfo]:
    """Return all installed drivers, sorted by name; those that cannot be used say why."""
    found = sorted(_entry_points(), key=lambda point: (point.name, _distribution(point)[0]))
    return [_info(point) for point in found]


def load_driver(name: str) -> type[ChunkStore]:
    """Return a driver's class.

    :param name: the entry point's name.
    :raises ConfigError: there is no such driver, two distributions bring one of that name, it cannot be
        imported, is no ChunkStore, or was written for another version of the contract.
    """
    points = [point for point in _entry_points() if point.name == name]
    if not points:
        names = ", ".join(sorted({point.name for point in _entry_points()})) or "none"
        raise ConfigError(f"there is no chunk store driver {name!r}; installed: {names}")
    problem = _duplicate_problem(points)
    if problem:
        raise ConfigError(problem)
    return _load(name)


def open_store(
    name: str,
    driver: str,
    options: Any,
    layer_options: Any = None,
    metrics: Recorder | None = None,
    stop: Callable[[], bool] = never,
) -> ChunkStore:
    """Open a store: the driver's instance with all layers around it.  The caller closes it.

    :param name: the configured store's name.
    :param driver: the driver's name.
    :param options: values of the driver's options by name.
    :param layer_options: values of the layers' options by name; None looks for them in ``options``.
    :param metrics: where figures go, None for nowhere.
    :param stop: True when the process shuts down: then nothing is retried.
    :raises ConfigError: the driver cannot be loaded, or refuses its options.
    :raises ChunkStoreError: the driver cannot reach what it needs at once.
    """
    instance = load_driver(driver)(name, options)
    return stack(instance, options if layer_options is None else layer_options, metrics=metrics, stop=stop)


def _entry_points() -> list[importlib.metadata.EntryPoint]:
    # Asked here, not at stevedore, whose cache does not keep which distribution an entry point is from.
    return list(importlib.metadata.entry_points(group=GROUP))


def _distribution(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist is not None else ("unknown", "unknown")


def _duplicate_problem(points: list[importlib.metadata.EntryPoint]) -> str | None:
    if len({(_distribution(point)[0], point.value) for point in points}) < 2:
        return None
    owners = " and ".join(sorted(f"{_distribution(point)[0]} ({point.value})" for point in points))
    return f"chunk store driver {points[0].name!r} is brought by {owners}; uninstall one of them"


def _load(name: str) -> type[ChunkStore]:
    try:
        # A driver that fails to load raises its own error (DriverManager's default swallows it).
        loaded: Any = stevedore_driver.DriverManager(GROUP, name, on_load_failure_callback=_raise).driver
    except Exception as error:
        raise ConfigError(f"chunk store driver {name!r} cannot be loaded: {error}") from error
    if not (isinstance(loaded, type) and issubclass(loaded, ChunkStore)):
        raise ConfigError(f"chunk store driver {name!r} is not a ChunkStore: {loaded!r}")
    if loaded.API_VERSION != API_VERSION:
        raise ConfigError(
            f"chunk store driver {name!r} was written for version {loaded.API_VERSION} of the driver "
            f"contract, this release has version {API_VERSION}"
        )
    if not isinstance(getattr(loaded, "wire_name", None), str):
        raise ConfigError(f"chunk store driver {name!r} declares no wire_name")
    return loaded


def _raise(manager: object, point: importlib.metadata.EntryPoint, error: BaseException) -> None:  # noqa: ARG001
    raise error


def _info(point: importlib.metadata.EntryPoint) -> DriverInfo:
    distribution, version = _distribution(point)
    same_name = [other for other in _entry_points() if other.name == point.name]
    problem = _duplicate_problem(same_name)
    api_version: int | None = None
    if problem is None:
        try:
            api_version = _load(point.name).API_VERSION
        except ConfigError as error:
            problem = str(error)
    return DriverInfo(point.name, point.value, distribution, version, api_version, problem)
