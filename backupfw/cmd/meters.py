"""The figures of one process, for Prometheus.

Each process has a registry of its own and counts what it did itself, unless ``PROMETHEUS_MULTIPROC_DIR``
names a directory where the processes of a WSGI server keep what all of them did.  What concerns the whole
installation (tasks by state, the age of the queue, each volume's last backup, what verifications found) is
read from the database: tasks for each request; what a query over all backups finds, once a minute at most.
Labels have few values: no names that users choose, and no ids but those of projects, volumes and backup
policies, for the volumes' last backups and the policies' runs.
"""

from __future__ import annotations

import abc
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, get_args

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector
from sqlalchemy import func, not_, select, type_coerce

from backupfw.api.resource import TEMPLATE
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.db.models import Backup, BackupPolicy, DamagedObject, Manifest, Task, Volume
from backupfw.db.session import Database, now
from backupfw.engine.ports import BackupResult
from backupfw.manager.lineage import lifecycle
from backupfw.manager.outcomes import damaged_objects, restoring
from backupfw.manager.queue import claims, tasks
from backupfw.outages import Outages

if TYPE_CHECKING:
    from backupfw.manager.queue.tasks import Outcome

#: Seconds; a store's answer takes between a millisecond and its time limit.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

#: Seconds for which figures about all backups are kept: with 100 000 backups a query takes a second or more.
KEPT_SECONDS = 60.0


def of_several_processes() -> bool:
    """Whether the processes of this service add up their figures, in files of prometheus-client's."""
    return bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))


class Meters:
    """All figures of a process.  Thread-safe; nothing here raises.

    It is the recorder of the store layers and the meter of the workers' handlers, and counts the ends of
    tasks.

    :param db: read when the figures are asked for.
    """

    def __init__(self, db: Database) -> None:
        self._registry = CollectorRegistry()
        self._of_database = (
            _TaskCollector(db),
            _VolumeCollector(db, kept=True),
            _PolicyCollector(db, kept=True),
            _HealthCollector(db, kept=True),
        )
        for collector in self._of_database:
            self._registry.register(collector)

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
        self._ended = counter("tasks_ended", "Tasks that ended here, by outcome", ("kind", "outcome"))
        for kind in tasks.KINDS:
            for outcome in get_args(tasks.Outcome):
                # From 0 on, or Prometheus would not see the first one as an increase.
                self._ended.labels(kind, outcome)
        self._read = counter("backup_read_bytes", "Bytes read from volumes by backups")
        self._sampled = counter(
            "backup_sampled_bytes", "Bytes read from volumes only to check what the storage says"
        )
        self._missed = counter(
            "backup_changes_missed", "Backups that found that the storage said wrongly what had changed"
        )
        self._stored = counter("backup_stored_bytes", "Bytes of objects that backups put")
        self._deduplicated = counter(
            "backup_deduplicated_bytes", "Bytes of older objects that backups named instead of putting them"
        )
        tasks.hear_ends(db, self._end)
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

    def store_calls(self) -> Mapping[str, tuple[int, int]]:
        """Return how many calls this process made to each store so far, and how many failed for good."""
        calls: dict[str, list[int]] = {}
        for place, meter, ending in ((0, self._store, "_count"), (1, self._store_errors, "_total")):
            for metric in meter.collect():
                for sample in metric.samples:
                    if sample.name.endswith(ending):
                        calls.setdefault(sample.labels["store"], [0, 0])[place] += int(sample.value)
        return {store: (made, failed) for store, (made, failed) in calls.items()}

    # Of the workers (worker.handlers.base.Meter).

    def attempt(self, kind: str, taken_over: bool) -> None:
        """Count an attempt that begins."""
        self._attempts.labels(kind).inc()
        if taken_over:
            self._take_overs.labels(kind).inc()

    def backed_up(self, result: BackupResult) -> None:
        """Count what a finished backup read, put and shared."""
        self._read.inc(result.read_bytes)
        self._sampled.inc(result.sampled_bytes)
        self._stored.inc(result.stored_bytes)
        self._deduplicated.inc(max(0, result.referenced_bytes - result.stored_bytes))

    def change_missed(self) -> None:
        """Count a storage's wrong answer."""
        self._missed.inc()

    def _end(self, kind: str, outcome: Outcome) -> None:
        self._ended.labels(kind, outcome).inc()

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
                    method if method in _METHODS else "other", environ.get(TEMPLATE, "none"), status[0]
                ).observe(time.monotonic() - begun)

        return measured

    def text(self) -> bytes:
        """Return everything in Prometheus' text format."""
        if not of_several_processes():
            return generate_latest(self._registry)
        whole = CollectorRegistry()
        for collector in self._of_database:
            whole.register(collector)
        # It registers itself.
        MultiProcessCollector(whole)  # type: ignore[no-untyped-call]
        return generate_latest(whole)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


class _DatabaseCollector(Collector):
    """Figures from the database, none if it does not answer; read for each request if they are not kept."""

    def __init__(self, db: Database, *, kept: bool = False) -> None:
        self._db = db
        self._kept = kept
        self._outages = Outages()
        self._lock = threading.Lock()
        self._found: list[Metric] = []
        self._read_at: float | None = None

    def describe(self) -> Iterable[Metric]:
        """Name no figure at registration: that would need the database."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """Return the figures."""
        # Two requests at a time make one query.
        with self._lock:
            moment = time.monotonic()
            if self._kept and self._read_at is not None and moment - self._read_at < KEPT_SECONDS:
                return self._found
            self._found, self._read_at = [], None
            with self._outages.guard("Figures of the database could not be read"):
                self._found = list(self._figures())
                self._read_at = moment
            return self._found

    @abc.abstractmethod
    def _figures(self) -> Iterator[Metric]:
        """Read the figures; may raise."""


class _TaskCollector(_DatabaseCollector):
    """What the database says of tasks, now."""

    def _figures(self) -> Iterator[Metric]:
        rows, age = self._read()
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
                # A scrub may wait for long, and nobody waits for it.
                select(func.min(since)).where(
                    Task.state == claims.QUEUED, since <= moment, Task.kind != tasks.MANIFEST_SCRUB
                )
            )
        waited = timedelta() if oldest is None else moment - oldest
        return rows, max(0.0, waited.total_seconds())


class _VolumeCollector(_DatabaseCollector):
    """From when each volume's newest good backup is, that of each of its policies."""

    def _figures(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "backupfw_last_good_backup_timestamp",
            "Seconds since 1970 of the state that the newest available backup without known damage holds"
            " that a policy has made of the volume, or nobody's policy; 0: the volume has none",
            labels=("project", "volume", "policy"),
        )
        for project, volume, policy, moment in self._read():
            gauge.add_metric(
                (project, volume, policy or ""),
                0 if moment is None else moment.replace(tzinfo=UTC).timestamp(),
            )
        yield gauge

    def _read(self) -> list[tuple[str, str, str | None, datetime | None]]:
        newest = func.max(func.coalesce(Backup.data_timestamp, Backup.created_at))
        good = (
            select(Backup.volume_id, BackupPolicy.id.label("policy"), newest.label("at"))
            # A backup whose policy is gone is nobody's.
            .outerjoin(BackupPolicy, BackupPolicy.id == Backup.policy_id)
            .where(
                Backup.deleted.is_(False),
                Backup.status.in_((lifecycle.AVAILABLE, lifecycle.RESTORING)),
                not_(damaged_objects.is_damaged()),
            )
            .group_by(Backup.volume_id, BackupPolicy.id)
            .subquery()
        )
        with self._db.read() as session:
            rows = session.execute(
                select(
                    Volume.project_id,
                    Volume.id,
                    good.c.policy,
                    type_coerce(good.c.at, Backup.data_timestamp.type),
                )
                .outerjoin(good, good.c.volume_id == Volume.id)
                .where(Volume.deleted.is_(False))
                .order_by(Volume.id)
            )
            return [(project, volume, policy, moment) for project, volume, policy, moment in rows]


class _PolicyCollector(_DatabaseCollector):
    """How many runs of each backup policy were missed, and failed."""

    def _figures(self) -> Iterator[Metric]:
        labels = ("project", "policy")
        missed = CounterMetricFamily(
            "backupfw_policy_missed_runs", "Runs that did not begin in time", labels=labels
        )
        failed = CounterMetricFamily("backupfw_policy_failed_runs", "Runs that failed", labels=labels)
        row = BackupPolicy
        with self._db.read() as session:
            found = session.execute(
                select(row.project_id, row.id, row.missed_runs, row.failed_runs).order_by(row.id)
            ).all()
        for project, policy, missed_runs, failed_runs in found:
            missed.add_metric((project, policy), missed_runs)
            failed.add_metric((project, policy), failed_runs)
        yield missed
        yield failed


class _HealthCollector(_DatabaseCollector):
    """What verifications recorded."""

    def _figures(self) -> Iterator[Metric]:
        age, never, damaged, failed, stores = self._read()
        yield GaugeMetricFamily(
            "backupfw_oldest_verification_age_seconds",
            "Since the oldest of the backups' last full verifications, or a backup's creation if it had none",
            value=age,
        )
        yield GaugeMetricFamily(
            "backupfw_unverified_backups", "Backups that were never verified in full", value=never
        )
        yield GaugeMetricFamily(
            "backupfw_damaged_backups", "Backups that name objects known to be damaged", value=damaged
        )
        yield GaugeMetricFamily(
            "backupfw_failed_restore_tests", "Backups whose last restore test failed", value=failed
        )
        oldest = GaugeMetricFamily(
            "backupfw_oldest_proof_age_seconds",
            "Since the oldest proof of what is in a store: its last full verification, or its creation",
            labels=("store",),
        )
        objects = GaugeMetricFamily(
            "backupfw_damaged_objects", "Objects that are known to be damaged", labels=("store",)
        )
        for store, (seconds, count) in sorted(stores.items()):
            oldest.add_metric((store,), seconds)
            objects.add_metric((store,), count)
        yield oldest
        yield objects

    def _read(self) -> tuple[float, int, int, int, dict[str, tuple[float, int]]]:
        since = func.coalesce(Backup.fully_verified_at, Backup.created_at)
        kept = (
            select(func.count(), func.count(Backup.fully_verified_at), func.min(since))
            .join(Manifest, Manifest.id == Backup.manifest_id)
            .where(Backup.deleted.is_(False), Manifest.state == lifecycle.LIVE)
        )
        with self._db.read() as session:
            count, verified, oldest = session.execute(kept).one()
            damaged = session.scalar(
                select(func.count(Backup.id)).where(Backup.deleted.is_(False), damaged_objects.is_damaged())
            )
            failed = session.scalar(
                select(func.count(Backup.id)).where(
                    Backup.deleted.is_(False), Backup.restore_test_result == restoring.FAILED
                )
            )
            proof = func.coalesce(Manifest.fully_verified_at, Manifest.created_at)
            proofs = session.execute(
                select(Manifest.store, func.min(proof))
                .where(Manifest.state == lifecycle.LIVE)
                .group_by(Manifest.store)
            ).all()
            bad = session.execute(
                select(DamagedObject.store, func.count()).group_by(DamagedObject.store)
            ).all()
            moment = now(session)
        objects = {store: int(number) for store, number in bad}
        ages = {store: _seconds(moment, first) for store, first in proofs}
        stores = {one: (ages.get(one, 0.0), objects.get(one, 0)) for one in {*ages, *objects}}
        return _seconds(moment, oldest), count - verified, damaged or 0, failed or 0, stores


def _seconds(moment: datetime, since: datetime | None) -> float:
    return 0.0 if since is None else max(0.0, (moment - since).total_seconds())
