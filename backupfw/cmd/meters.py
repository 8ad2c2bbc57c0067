"""The figures of one process, for Prometheus.

Each process has a registry of its own and counts what it did itself, unless ``PROMETHEUS_MULTIPROC_DIR``
names a directory where the processes of a WSGI server keep what all of them did.  What concerns the whole
installation (tasks by state, the age of the queue) is read from the database when somebody asks.  Labels
have few values: no ids, no names that users choose.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Any

from oslo_log import log
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from backupfw.api.routing import ROUTE
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.db.models import Task
from backupfw.db.session import Database, now
from backupfw.engine.ports import BackupResult
from backupfw.manager import claims, tasks

LOG = log.getLogger(__name__)

#: Seconds; a store's answer takes between a millisecond and its time limit.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


def of_several_processes() -> bool:
    """Whether the processes of this service add up their figures, in files of prometheus-client's."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


class Meters:
    """All figures of a process.  Thread-safe; nothing here raises.

    It is the recorder of the store layers and the meter of the workers' handlers.

    :param db: read when the figures are asked for.
    """

    def __init__(self, db: Database) -> None:
        self._registry = CollectorRegistry()
        self._tasks = _TaskCollector(db)
        self._registry.register(self._tasks)

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return Counter(f"backupfw_{name}", text, labels, registry=self._registry)

        self._store = Histogram(
            "backupfw_store_seconds",
            "Time of calls to stores, retries and waiting for limits included",
            ("store", "operation"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._store_errors = counter(
            "store_errors", "Calls to stores that failed for good", ("store", "operation", "kind")
        )
        self._store_retries = counter(
            "store_retries", "Tries of calls to stores that failed and were repeated", ("store", "kind")
        )
        self._store_bytes = counter("store_bytes", "Object bytes from and to stores", ("store", "direction"))
        self._attempts = counter("task_attempts", "Attempts of tasks begun here", ("kind",))
        self._take_overs = counter(
            "lease_take_overs", "Tasks taken over here because another worker's lease ran out", ("kind",)
        )
        self._read = counter("backup_read_bytes", "Bytes read from volumes by backups")
        self._stored = counter("backup_stored_bytes", "Bytes of objects that backups put")
        self._deduplicated = counter(
            "backup_deduplicated_bytes", "Bytes of older objects that backups named instead of putting them"
        )
        self._requests = Histogram(
            "backupfw_api_request_seconds",
            "Time until API requests were answered",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self._registry,
        )

    # Of the store layers (chunkstore.layers.metrics.Recorder).

    def operation(
        self,
        store: str,
        operation: str,
        seconds: float,
        sent: int,
        received: int,
        error: BaseException | None,
    ) -> None:
        """Count one call to a store."""
        self._store.labels(store, operation).observe(seconds)
        self._store_bytes.labels(store, "sent").inc(sent)
        self._store_bytes.labels(store, "received").inc(received)
        if error is not None:
            self._store_errors.labels(store, operation, type(error).__name__).inc()

    def retried(self, store: str, operation: str, pause: float, error: ChunkStoreError) -> None:  # noqa: ARG002
        """Count one try that is repeated."""
        self._store_retries.labels(store, type(error).__name__).inc()

    # Of the workers (worker.handlers.base.Meter).

    def attempt(self, kind: str, taken_over: bool) -> None:
        """Count an attempt that begins."""
        self._attempts.labels(kind).inc()
        if taken_over:
            self._take_overs.labels(kind).inc()

    def backed_up(self, result: BackupResult) -> None:
        """Count what a finished backup read, put and shared."""
        self._read.inc(result.read_bytes)
        self._stored.inc(result.stored_bytes)
        self._deduplicated.inc(max(0, result.referenced_bytes - result.stored_bytes))

    # Of the API.

    def measured(self, app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
        """Return a WSGI application whose answers are counted by route, not by path."""

        def measured(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
            begun = time.monotonic()
            status = ["500"]

            def start(line: str, *rest: Any) -> Any:
                status[0] = line[:3]
                return start_response(line, *rest)

            try:
                return app(environ, start)
            finally:
                method = environ["REQUEST_METHOD"]
                self._requests.labels(
                    method if method in _METHODS else "other", environ.get(ROUTE, "none"), status[0]
                ).observe(time.monotonic() - begun)

        return measured

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        if not of_several_processes():
            return generate_latest(self._registry)
        whole = CollectorRegistry()
        whole.register(self._tasks)
        # It registers itself.
        MultiProcessCollector(whole)  # type: ignore[no-untyped-call]
        return generate_latest(whole)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class _TaskCollector(Collector):
    """What the database says of tasks, now; nothing where it does not answer."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def describe(self) -> Iterable[Metric]:
        """Name nothing beforehand: that would cost a look into the database at the start."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Read the tasks."""
        try:
            rows, age = self._read()
        except Exception:
            LOG.exception("The tasks could not be counted")
            return
        count = GaugeMetricFamily("backupfw_tasks", "Unfinished tasks", labels=("kind", "state"))
        for kind in sorted(tasks.KINDS):
            for state in (claims.QUEUED, claims.RUNNING):
                count.add_metric((kind, state), rows.get((kind, state), 0))
        yield count
        yield GaugeMetricFamily(
            "backupfw_queue_age_seconds", "How long the oldest task that may run has waited", value=age
        )

    def _read(self) -> tuple[dict[tuple[str, str], int], float]:
        with self._db.read() as session:
            found = session.execute(
                select(Task.kind, Task.state, func.count()).group_by(Task.kind, Task.state)
            )
            rows = {(kind, state): count for kind, state, count in found}
            moment = now(session)
            since = func.coalesce(Task.not_before, Task.updated_at)
            oldest = session.scalar(
                select(func.min(since)).where(Task.state == claims.QUEUED, since <= moment)
            )
        waited = timedelta() if oldest is None else moment - oldest
        return rows, max(0.0, waited.total_seconds())
