"""Renews the holder objects of this installation while a worker process lives."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from oslo_log import log

from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.engine.holder import RENEW_SECONDS, Holder
from backupfw.errors import Conflict

if TYPE_CHECKING:
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.outages import Outages
    from backupfw.worker.stores import Stores

LOG = log.getLogger(__name__)

_CONTAINERS = "The containers in use could not be found out"
#: The database is asked for the containers each so many-th time.
_ROUNDS = 6
#: Seconds that the end waits for a call that is under way.
_PATIENCE = 1.0


class Holding:
    """Renews the holder objects, with a thread for each store: one that hangs keeps no other from that.

    :param names: of the stores, as configured.
    """

    def __init__(self, backups: BackupTasks, stores: Stores, names: Iterable[str], outages: Outages) -> None:
        self._backups = backups
        self._stores = stores
        self._outages = outages
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"hold-{name}", daemon=True)
            for name in names
        ]

    def start(self) -> None:
        """Start renewing."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Renew nothing any more; the objects stay."""
        self._ending.set()
        for thread in self._threads:
            thread.join(_PATIENCE)

    def _run(self, store: str) -> None:
        holders: dict[tuple[str, ...], Holder] = {}
        rounds = 0
        while True:
            if not rounds % _ROUNDS or self._outages.fails(_CONTAINERS):
                with self._outages.guard(_CONTAINERS):
                    places = self._backups.held_containers(store)
                    left = {place: holders[place] for place in holders if place not in places}
                    holders = {place: holders.get(place, Holder(*place[1:])) for place in places}
                    for (container, *_rest), holder in left.items():
                        holder.give_up(self._stores.container(store, container))
            rounds += 1
            for (container, *_rest), holder in holders.items():
                if not self._ending.is_set():
                    self._renew(store, container, holder)
            if self._ending.wait(RENEW_SECONDS):
                return

    def _renew(self, store: str, container: str, holder: Holder) -> None:
        with self._outages.guard(f"The holder objects in store {store} could not be renewed"):
            try:
                holder.renew(self._stores.container(store, container))
            except Conflict as error:
                LOG.error("%s", error)
            except ChunkStoreError as error:
                # Tasks that need the store report it.
                LOG.debug("The holder object in store %s was not renewed: %s", store, error)
