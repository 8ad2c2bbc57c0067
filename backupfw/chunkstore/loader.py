"""Finds the installed drivers and opens configured stores with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.metrics import Recorder
from backupfw.chunkstore.layers.retry import never
from backupfw.chunkstore.layers.stack import stack
from backupfw.plugins import Plugins

__all__ = ["DRIVERS", "installed_drivers", "load_driver", "open_store"]


def _problem(driver: type[ChunkStore]) -> str | None:
    return None if isinstance(getattr(driver, "wire_name", None), str) else "declares no wire_name"


# A driver without an API_VERSION of its own counts as written for this release: the guide asks for none.
DRIVERS = Plugins(
    "backupfw.chunkstore",
    "chunk store driver",
    ChunkStore,  # type: ignore[type-abstract]
    declares_version=False,
    problem=_problem,
)

#: Return the class of the driver that ``driver = …`` names, and all that are installed.
load_driver = DRIVERS.load
installed_drivers = DRIVERS.installed


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
