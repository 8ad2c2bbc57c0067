"""What the handlers have in common that make a manifest: of a volume, or of a backup in another format.

An attempt settles first what earlier ones announced; its last step removes what they left.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from oslo_db.exception import DBError
from oslo_log import log

from backupfw import crash_points, moments
from backupfw.chunkstore.cancellation import cancelled_by
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, NotFound
from backupfw.engine import cleanup, locking, objects, removal, verify
from backupfw.engine.format import keys
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.sealing import CLEAR, FindKey, Sealing
from backupfw.engine.ports import BackupJob, BackupResult, KnownManifests, LockPlan
from backupfw.errors import (
    ChangeMissed,
    Damaged,
    DatabaseUnwritable,
    InvalidInput,
    ListingBehind,
    TakesTurns,
    TaskCancelled,
    UnsupportedFormat,
)
from backupfw.manager import rows
from backupfw.manager.outcomes.making import CreateResult, KeyIds, MakingPlan, MakingTasks
from backupfw.manager.rows import Task
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.base import Handler

LOG = log.getLogger(__name__)


class TaskJournal:
    """The engine's journal: finished segments in the database, for one attempt."""

    def __init__(self, making: MakingTasks, task: Task, plan: MakingPlan) -> None:
        self._making = making
        self._task = task
        self._plan = plan
        self._announced: str | None = None

    def announced_key(self) -> str | None:
        """Return the key that was announced last."""
        return self._announced

    def finished(self) -> Iterator[tuple[int, bytes]]:
        """See :meth:`backupfw.engine.ports.Journal.finished`."""
        return self._making.finished_segments(self._plan.manifest_id, self._plan.epoch)

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """See :meth:`backupfw.engine.ports.Journal.record`."""
        self._making.record_segments(self._task, entries)
        crash_points.reach("backup.recorded")

    def announce(self, key: str) -> None:
        """See :meth:`backupfw.engine.ports.Journal.announce`."""
        self._announced = key
        self._making.announce_manifest(self._task, key)

    def distrust(self, error: ChangeMissed) -> None:
        """See :meth:`backupfw.engine.ports.Journal.distrust`: nothing was believed."""
        raise error

    def is_unneeded(self, key: str) -> bool:
        """See :meth:`backupfw.engine.ports.Journal.is_unneeded`."""
        plan = self._plan
        with contextlib.suppress(DBError, DatabaseUnwritable):
            return self._making.is_unneeded(plan.store, plan.container, key)
        return False


class Making(Handler):
    """Makes a manifest, or goes on with one that an earlier attempt began."""

    @property
    def _making(self) -> MakingTasks:
        """What the database records of the attempts."""
        raise NotImplementedError

    def _take_over(
        self, task: Task, plan: MakingPlan, container: Container, control: TaskControl
    ) -> Collection[str] | None:
        """Commit the manifest that an earlier attempt announced, if it is there with all that it names.

        Either that attempt was lost before its commit, or it was committed and the database is an older
        copy; then later backups share with this manifest.  If the manifest is missing, its key is given up
        for ever. If it names damaged objects, or what it took over from its base cannot be relied on, its key
        stays open: nothing that it names is deleted before the backup is.

        :returns: None: it is committed.  Otherwise the keys that stay open.
        """
        tools = self._tools
        listed = self._known_damaged(plan)
        missing, left = [], []

        def damaged(bad: str, reason: str) -> None:
            # On the list, the object is not shared again: this attempt stores its blocks anew.
            tools.backups.damaged_objects.record(plan.store, plan.container, bad, reason, plan.manifest_id)

        for key in plan.announced:
            try:
                found = verify.look(key, listed, container, control, damaged, self._find_key(plan, container))
            except Damaged as error:
                if not removal.is_proven(error, container):
                    # Perhaps only the answer is wrong: the manifest may be there, and later backups may
                    # share with it.  So the task is tried again.
                    raise IntegrityError(
                        error.reason, store=plan.store, container=plan.container, key=key, temporary=True
                    ) from error
                missing.append(key)
                continue
            base, wanted = found.head.base, None if plan.base is None else plan.base.key
            trusting = found.head.point is not None and found.head.point.trusted > 0
            if found.damaged or base not in (None, wanted) or (trusting and not plan.trusts_base):
                LOG.warning(
                    "Backup %s is made again: %s names damaged objects, has another base, or relied on a"
                    " storage that was wrong",
                    plan.backup.id,
                    key,
                )
                left.append(key)
                continue
            LOG.info("Backup %s: an earlier attempt had put all of it", plan.backup.id)
            made = CreateResult(
                key=key,
                service=tools.stores.wire_names[plan.store],
                host=tools.host,
                length=found.head.geometry.length,
                object_count=found.object_count,
                stored_bytes=found.stored_bytes,
                referenced_bytes=found.referenced_bytes,
                base_lost=base != wanted,
                trusting=trusting,
                damaged=found.known_damaged,
                locked_until=self._lock_all(plan, key, container, control),
            )
            self._commit(task, plan, made, container, control)
            return None
        self._making.give_up_announced(task, missing)
        return left

    def _lock_all(
        self, plan: MakingPlan, key: str, container: Container, control: TaskControl
    ) -> datetime | None:
        """Lock what an earlier attempt has put long enough; returns until when, naive UTC.

        Before it put the manifest, everything was locked as long as what it put itself.
        """
        known = None if plan.locked_until is None else moments.aware(plan.locked_until)
        if container.rule is None or container.rule.is_enough(known):
            return plan.locked_until
        until = container.rule.new()
        locking.renew(key, container, until, control)
        return moments.utc(until)

    def _commit(
        self, task: Task, plan: MakingPlan, made: CreateResult, container: Container, control: TaskControl
    ) -> None:
        """Remove what earlier attempts left, then make the backup available."""
        if task.attempt > 1 or plan.epoch > 1:
            # Clean up before the commit: afterwards there is no task any more, so no attempt would do it.
            self._clean_up(plan, made.key, container, control)
        control.check()
        self._making.finish(task, made)

    @contextmanager
    def _withdrawing(
        self, task: Task, plan: MakingPlan, key: Callable[[], str | None], container: Container
    ) -> Iterator[None]:
        """Delete the manifest of an attempt that fails, unless it is committed after all.

        The manifest stays in three cases: the attempt is cancelled (the deletion, or the next attempt after a
        shutdown, decides); another attempt has the task now; or it is too early to clean up or to commit, and
        the next attempt commits the manifest.
        """
        try:
            yield
        except (TaskCancelled, ListingBehind, TakesTurns):
            raise
        except Exception:
            announced = key()
            # If this fails, the next attempt or the deletion of the backup does it.
            with (
                contextlib.suppress(ChunkStoreError, DBError, DatabaseUnwritable),
                cancelled_by(lambda: None),
            ):
                if announced is not None and self._making.give_up_manifest(
                    task, plan.store, plan.container, announced
                ):
                    container.delete([announced])
            raise

    def _clean_up(self, plan: MakingPlan, key: str, container: Container, control: TaskControl) -> None:
        """Remove what earlier attempts left.

        If an unknown manifest cannot be read, all of it stays and a sweep finds it: the backup itself is
        whole.
        """
        known = KnownManifests(*self._making.known_manifests(plan.manifest_id))
        prefix = keys.backup_prefix(
            plan.installation_id, plan.backup.project_id, plan.backup.volume_id, plan.backup.id
        )
        try:
            with removal.left_if_locked(container, "objects of lost attempts", plan.backup.id):
                cleanup.leftovers(prefix, key, known, (), container, control)
        except Damaged as error:
            if error.key == key:
                raise
            LOG.warning("What earlier attempts of backup %s left stays: %s", plan.backup.id, error)
        except UnsupportedFormat as error:
            LOG.warning("What earlier attempts of backup %s left stays: %s", plan.backup.id, error)

    def _record_missing(self, plan: MakingPlan, error: Damaged, container: Container) -> None:
        """Put an object on the list: the next attempt stores its blocks anew."""
        if removal.is_proven(error, container):
            self._tools.backups.damaged_objects.record(
                plan.store, plan.container, error.key, error.reason, plan.manifest_id
            )

    def _known_damaged(self, plan: MakingPlan) -> frozenset[str]:
        """Return the keys of the volume's objects that are known to be damaged."""
        prefix = keys.volume_prefix(plan.installation_id, plan.backup.project_id, plan.backup.volume_id)
        return self._tools.backups.damaged_objects.keys(plan.store, plan.container, prefix)

    def _new_key(self, task: Task) -> KeyIds | None:
        """Return the data key of a backup that begins; None: it has begun before, or is not encrypted."""
        place = self._making.to_encrypt(task)
        if place is None:
            return None
        container = self._tools.stores.container(place.store, place.container)
        self._need(container, held=place.held)
        key = self._tools.data_keys.for_new(place, container)
        return KeyIds(key.id, key.mac_id)

    def _sealing(self, plan: MakingPlan, container: Container) -> Sealing:
        if plan.key_id is None:
            return CLEAR
        self._tools.data_keys.keep(container, plan.key_id)
        find = self._find_key(plan, container)
        return Sealing(find(plan.key_id), find)

    def _find_key(self, plan: MakingPlan, container: Container) -> FindKey:
        prefix = keys.volume_prefix(plan.installation_id, plan.backup.project_id, plan.backup.volume_id)
        return self._tools.data_keys.finder(container, prefix)

    def _need(self, container: Container, *, held: bool) -> None:
        """Make sure that the container is there, and make it if the service may.

        A container that held objects before is never made again: it would be in the way when the real one
        comes back.
        """
        if held:
            objects.prove_container(container, "")
        if self._tools.engine.create_containers:
            container.ensure()
            return
        try:
            next(iter(container.list()), None)
        except NotFound as error:
            raise InvalidInput(
                f"The container {container.name} does not exist, and this service does not make containers."
            ) from error

    def _job(self, plan: MakingPlan, length: int, record: Mapping[str, Any], sealing: Sealing) -> BackupJob:
        """Return the job of an attempt that reads everything.

        :param length: bytes of the source.
        :param record: what the manifest keeps of backup and volume.
        """
        tools = self._tools
        return BackupJob(
            installation=plan.installation_id,
            project=plan.backup.project_id,
            volume=plan.backup.volume_id,
            backup=plan.backup.id,
            epoch=plan.epoch,
            attempt=plan.attempt,
            token=secrets.token_hex(8),
            geometry=Geometry(length, plan.block_size, plan.segment_size),
            base=None if plan.base is None else plan.base.key,
            record=record,
            damaged=self._known_damaged(plan),
            pack_size=tools.engine.pack_size,
            compression_level=tools.engine.compression_level,
            sealing=sealing,
            streams=tools.engine.streams,
        )

    def _end(
        self,
        task: Task,
        plan: MakingPlan,
        length: int,
        result: BackupResult,
        container: Container,
        control: TaskControl,
    ) -> None:
        """Commit the manifest that this attempt has put."""
        tools = self._tools
        crash_points.reach("backup.manifest-put")
        if result.base_problem is not None:
            LOG.warning("Backup %s shares nothing with its parent: %s", plan.backup.id, result.base_problem)
        made = _create_result(result, length, tools.host, tools.stores.wire_names[plan.store])
        with self._withdrawing(task, plan, lambda: made.key, container):
            self._commit(task, plan, made, container, control)
        tools.meter.backed_up(result)
        crash_points.reach("backup.committed")


def _create_result(result: BackupResult, length: int, host: str, wire_name: str) -> CreateResult:
    return CreateResult(
        key=result.manifest_key,
        service=wire_name,
        host=host,
        length=length,
        object_count=result.object_count,
        stored_bytes=result.stored_bytes,
        referenced_bytes=result.referenced_bytes,
        read_bytes=result.read_bytes,
        base_lost=result.base_problem is not None,
        trusting=result.trusted > 0,
        locked_until=None if result.locked_until is None else moments.utc(result.locked_until),
    )


def lock_until(plan: MakingPlan, container: Container) -> datetime | None:
    """Choose until when this attempt locks what it puts; None: it does not."""
    if container.rule is None:
        return None
    base = None if plan.base is None else plan.base.locked_until
    known = (None if until is None else moments.aware(until) for until in (plan.locked_until, base))
    return container.rule.choose(known)


def lock_plan(plan: MakingPlan, until: datetime | None) -> LockPlan | None:
    """Return how the engine locks what an attempt puts and shares; None: it does not."""
    if until is None:
        return None
    base = None if plan.base is None else plan.base.locked_until
    own, others = (None if one is None else moments.aware(one) for one in (plan.locked_until, base))
    return LockPlan(until, own, others)


def record_of(backup: rows.Backup) -> dict[str, Any]:
    """Return what a manifest keeps of its backup: enough to restore its names from it alone."""
    return {
        "id": backup.id,
        "name": backup.display_name,
        "description": backup.display_description,
        "user_id": backup.user_id,
        "project_id": backup.project_id,
        "volume_id": backup.volume_id,
        "snapshot_id": backup.snapshot_id,
        "parent_id": backup.parent_id,
        "is_incremental": backup.is_incremental,
        "size": backup.size,
        "availability_zone": backup.availability_zone,
        "metadata": dict(backup.metadata),
        "created_at": backup.created_at.isoformat(),
        "data_timestamp": None if backup.data_timestamp is None else backup.data_timestamp.isoformat(),
    }
