"""The configured stores, opened when they are first needed; one that is down fails only its own work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.loader import load_driver, open_store
from backupfw.errors import InvalidInput

if TYPE_CHECKING:
    from oslo_config import cfg


class Stores:
    """Opens stores by their configured name.  Thread-safe; :meth:`close` when nothing uses them any more.

    :param conf: the configuration: ``enabled_stores`` and a group ``store:NAME`` for each.
    :param stop: True when the process shuts down, so that nothing is retried any more.
    """

    def __init__(self, conf: cfg.ConfigOpts, stop: Callable[[], bool] = lambda: False) -> None:
        self._conf = conf
        self._stop = stop
        self._opened: dict[str, ChunkStore] = {}
        self._lock = threading.Lock()

    @property
    def wire_names(self) -> Mapping[str, str]:
        """The wire name of every enabled store, by its configured name; opens none."""
        return {
            name: load_driver(self._conf[f"store:{name}"].driver).wire_name
            for name in self._conf.enabled_stores
        }

    def store(self, name: str) -> ChunkStore:
        """Return the opened store.

        :raises InvalidInput: it is not enabled (any more).
        :raises ChunkStoreError: it cannot be reached; tried again at the next call.
        """
        with self._lock:
            if name not in self._opened:
                if name not in self._conf.enabled_stores:
                    raise InvalidInput(f"The store {name} of this backup is not enabled.")
                group = self._conf[f"store:{name}"]
                self._opened[name] = open_store(name, group.driver, group, stop=self._stop)
            return self._opened[name]

    def container(self, store: str, container: str) -> Container:
        """Return a container of a store; whether it is there is not looked at."""
        return Container(self.store(store), container)

    def close(self) -> None:
        """Close every opened store."""
        with self._lock:
            for store in self._opened.values():
                store.close()
            self._opened.clear()
