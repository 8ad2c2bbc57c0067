"""The configured stores, opened when they are first needed; one that is down fails only its own work."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oslo_log import log

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.container import Container, LockRule
from backupfw.chunkstore.errors import ChunkStoreError, Unavailable
from backupfw.chunkstore.layers.metrics import Recorder
from backupfw.chunkstore.layers.stack import set_limits
from backupfw.chunkstore.loader import load_driver, open_store
from backupfw.conf.stores import default_container, group_of
from backupfw.errors import InvalidInput, TaskStopped

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)

#: Seconds before a store that is down is asked again; doubled after each failure, up to LONGEST_PAUSE.
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0
#: Most seconds that :meth:`Stores.still_down` waits for an answer: a store may hang.
PATIENCE = 5.0


class StoreDown(Unavailable):
    """The store did not answer a while ago, and has not answered since.

    :param seconds: how long that is.
    """

    def __init__(self, store: str, seconds: float) -> None:
        super().__init__(f"it has not answered for {seconds:.0f} s", store=store)
        self.seconds = seconds


#: Is told of a store that has not answered for long, and later that it answers again: its name, the seconds,
#: whether it answers.
Tell = Callable[[str, float, bool], object]


@dataclass(frozen=True, slots=True)
class Alarm:
    """Who is told of a store that does not answer.

    :ivar after: how long it must not have answered, seconds.
    """

    tell: Tell = lambda *_: None
    after: float = float("inf")


class _Store:
    """One configured store: the opened driver, and whether it answers.

    :param options: its section, which changes while the process runs.
    :param open_it: opens it.
    """

    def __init__(
        self, name: str, container: str, options: object, open_it: Callable[[], ChunkStore], alarm: Alarm
    ) -> None:
        self._alarm = alarm
        self._name = name
        self._container = container
        self._options = options
        self._open = open_it
        self._opening = threading.Lock()
        self._opened: ChunkStore | None = None
        self._lock = threading.Condition()
        self._down_since: float | None = None
        self._closed = False
        #: While it is down: how many answers were wanted, and how many of these the asking thread has given.
        self._wanted = self._asked = 0

    @property
    def is_down(self) -> bool:
        return self._down_since is not None

    def opened(self) -> ChunkStore:
        # Each store has its own lock: a store that hangs here does not block the others.
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
                # The limits may have changed while the store was being opened.
                self.set_limits()
            return self._opened

    def set_limits(self) -> None:
        # Do not wait for the lock: it is held while the store is being opened, which may hang.
        opened = self._opened
        if opened is not None:
            set_limits(opened, self._options)

    def require_up(self) -> None:
        down_since = self._down_since
        if down_since is not None:
            raise StoreDown(self._name, time.monotonic() - down_since)

    def failed(self) -> bool:
        with self._lock:
            if self._down_since is not None:
                return True
            if self._closed:
                return False
            self._down_since = time.monotonic()
        try:
            down = not self._answers()
        except TaskStopped:
            self._is_up()
            raise
        if not down:
            self._is_up()
            return False
        LOG.warning("The store %s does not answer; what needs it waits", self._name)
        threading.Thread(target=self._ask, name=f"ask-{self._name}", daemon=True).start()
        return True

    def still_down(self) -> bool:
        with self._lock:
            if self._down_since is None:
                return False
            # A request that runs already does not count: the store may have come back after it began.
            self._wanted = wanted = self._wanted + 1
            self._lock.notify_all()
            self._lock.wait_for(
                lambda: self._closed or self._down_since is None or self._asked >= wanted, PATIENCE
            )
            return self._down_since is not None

    def _ask(self) -> None:
        """Ask again and again, in a thread of its own, so that no task occupies a worker while it waits."""
        pause = FIRST_PAUSE
        begun, told = time.monotonic(), False
        while True:
            with self._lock:
                self._lock.wait_for(lambda: self._closed or self._wanted > self._asked, pause)
                if self._closed:
                    return
                wanted = self._wanted
            pause = min(2 * pause, LONGEST_PAUSE)
            answers = self._answers()
            seconds = time.monotonic() - begun
            if answers:
                self._is_up()
                LOG.warning("The store %s answers again", self._name)
                if told:
                    self._alarm.tell(self._name, seconds, True)
                return
            with self._lock:
                self._asked = wanted
                self._lock.notify_all()
            if not told and seconds >= self._alarm.after:
                told = True
                self._alarm.tell(self._name, seconds, False)

    def _is_up(self) -> None:
        with self._lock:
            self._down_since = None
            self._wanted = self._asked = 0
            self._lock.notify_all()

    def _answers(self) -> bool:
        try:
            self.opened().get(self._container, f"is-it-there/{secrets.token_hex(8)}")
        except Unavailable:
            return False
        except ChunkStoreError:
            # Usually NotFound.  Any other error is an answer too, and the tasks meet it themselves.
            return True
        except TaskStopped:
            raise
        except Exception:
            LOG.exception("The store %s could not be asked", self._name)
        return True

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if self._opened is not None:
            self._opened.close()


class Stores:
    """Opens stores by their configured name.  Thread-safe; :meth:`close` when nothing uses them any more.

    A store that was reported as down refuses work at once, until it answers again.  So a task that requires
    it occupies a worker only for a moment, and not for the length of each timeout.

    :param conf: the configuration: ``enabled_stores`` and a group ``store:NAME`` for each.
    :param recorder: gets the duration of every call to a store.
    :param stop: True when the process shuts down, so that nothing is retried any more.
    :param alarm: who is told of a store that is down for long.
    """

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        stop: Callable[[], bool] = lambda: False,
        recorder: Recorder | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self._conf = conf
        self._alarm = alarm or Alarm()
        self._recorder = recorder
        self._stop = stop
        self._began = time.monotonic()
        self._stores = {name: self._make(name) for name in conf.enabled_stores}

    def _make(self, name: str) -> _Store:
        group = self._conf[group_of(name)]
        return _Store(
            name,
            default_container(self._conf, name),
            group,
            lambda: open_store(name, group.driver, group, metrics=self._recorder, stop=self._stop),
            self._alarm,
        )

    @property
    def wire_names(self) -> Mapping[str, str]:
        """The wire name of every enabled store, by its configured name; opens none."""
        return {name: load_driver(self._conf[group_of(name)].driver).wire_name for name in self._stores}

    def answering(self) -> Mapping[str, str]:
        """Return the wire names of those stores of which nobody knows here that they are down; asks none."""
        return {name: wire for name, wire in self.wire_names.items() if not self._stores[name].is_down}

    def container(self, store: str, container: str) -> Container:
        """Return a container of an opened store, without a check that the container exists.

        :raises InvalidInput: the store is not enabled (any more).
        :raises StoreDown: it was reported as down and does not answer yet.
        :raises ChunkStoreError: it cannot be opened; tried again at the next call.
        """
        found = self._stores.get(store)
        if found is None:
            raise InvalidInput(f"The store {store} of this backup is not enabled.")
        found.require_up()
        group = self._conf[group_of(store)]
        settled_at = self._began + group.listing_lag_seconds
        return Container(found.opened(), container, settled_at, LockRule.of_days(group.lock_days))

    def locks(self, store: str) -> bool:
        """Return whether what backups need in a store is locked; the store is not asked."""
        return store in self._stores and self._conf[group_of(store)].lock_days > 0

    def failed(self, store: str) -> bool:
        """Report that a store did not answer: it is asked at once, and while it is down again and again.

        :returns: whether it is down, that is, does not answer now either.
        :raises TaskStopped: the attempt that asks must end, and nothing was learned.
        """
        found = self._stores.get(store)
        return found is not None and found.failed()

    def still_down(self, store: str) -> bool:
        """Ask a store that is down again, and wait up to :data:`PATIENCE` seconds for its answer."""
        found = self._stores.get(store)
        return found is not None and found.still_down()

    def set_limits(self) -> None:
        """Put the configuration's limits in force in every open store, after it was read again."""
        for store in self._stores.values():
            store.set_limits()

    def close(self) -> None:
        """Close every opened store."""
        for store in self._stores.values():
            store.close()
