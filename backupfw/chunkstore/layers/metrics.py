"""Reports the duration and the bytes of calls to a recorder, which knows the metrics system."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Protocol

from backupfw.chunkstore.base import Body, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.chunkstore.layers.base import Layer, Pages


class Recorder(Protocol):
    """Receives the figures.  Called from any thread; must be quick and must not raise."""

    def operation(
        self,
        store: str,
        operation: str,
        seconds: float,
        sent: int,
        received: int,
        error: BaseException | None,
    ) -> None:
        """Take note of one finished call, its retries included.

        :param store: the configured store's name.
        :param operation: ``put``, ``get``, ``list``, ``delete``, ``ensure_container``, …
        :param seconds: time the call took, waiting for limits and retries included; for a listing the
            time spent in fetching, not what the caller did between entries.
        :param sent: object bytes put.
        :param received: object bytes got.
        :param error: what the call raised, or None.
        """

    def retried(self, store: str, operation: str, pause: float, error: ChunkStoreError) -> None:
        """Take note that a try failed with ``error`` and the next one comes after ``pause`` seconds."""


class NullRecorder:
    """Records nothing."""

    def operation(
        self,
        store: str,
        operation: str,
        seconds: float,
        sent: int,
        received: int,
        error: BaseException | None,
    ) -> None:
        """Do nothing."""

    def retried(self, store: str, operation: str, pause: float, error: ChunkStoreError) -> None:
        """Do nothing."""


class _Call:
    """One running call; the figures are filled in while it runs."""

    __slots__ = ("received", "sent")

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0


class MetricsLayer(Layer):
    """Times the calls on objects, ``ensure_container`` and ``check``, and counts the bytes of objects.

    :param recorder: where the figures go.
    :param clock: monotonic seconds.
    """

    def __init__(
        self, inner: ChunkStore, recorder: Recorder, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(inner)
        self._recorder = recorder
        self._clock = clock

    @contextmanager
    def _measured(self, operation: str) -> Iterator[_Call]:
        call = _Call()
        start = self._clock()
        failure: BaseException | None = None
        try:
            yield call
        except BaseException as error:
            failure = error
            raise
        finally:
            self._recorder.operation(
                self.name, operation, self._clock() - start, call.sent, call.received, failure
            )

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Forward, measured."""
        with self._measured("put") as call:
            self.inner.put(container, key, body, if_absent=if_absent)
            call.sent = body.length

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Forward, measured."""
        with self._measured("get") as call:
            data = self.inner.get(container, key, offset, length)
            call.received = len(data)
            return data

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Forward; each page is measured as one ``list``."""
        pages = Pages(self.inner.list(container, prefix, start_after))
        while not pages.done:
            with self._measured("list"):
                page = pages.take()
            yield from page

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Forward, measured."""
        with self._measured("delete"):
            self.inner.delete(container, keys)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Forward, measured."""
        with self._measured("lock"):
            self.inner.lock(container, key, until)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Forward, measured."""
        with self._measured("locked_until"):
            return self.inner.locked_until(container, key)

    def ensure_container(self, container: str) -> None:
        """Forward, measured."""
        with self._measured("ensure_container"):
            self.inner.ensure_container(container)

    def check(self) -> CheckReport:
        """Forward, measured."""
        with self._measured("check"):
            return self.inner.check()
