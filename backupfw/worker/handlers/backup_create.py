"""``backup.create``: read the volume, a snapshot or a temporary snapshot, and store what is new."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from oslo_db.exception import DBError
from oslo_log import log

from backupfw import crash_points, moments
from backupfw.chunkstore.cancellation import cancelled_by
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, NotFound
from backupfw.engine import backup as engine
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
    SourceMoved,
    StorageChanged,
    TaskCancelled,
    UnsupportedFormat,
)
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes.creating import CreatePlan, CreateResult, KeyIds
from backupfw.manager.rows import Task
from backupfw.manager.rules.volume_rules import is_followed
from backupfw.volume.base import HEADER, LUKS, Point, SnapshotRef, VolumeProvider, VolumeRef
from backupfw.worker import comparison
from backupfw.worker.cancellable import PROVIDER_GRACE, opened, run_cancellable
from backupfw.worker.comparison import Comparison
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.base import Handler, Tools, snapshot_ref, volume_ref

LOG = log.getLogger(__name__)


class TaskJournal:
    """The engine's journal: finished segments in the database, for one attempt."""

    def __init__(self, tools: Tools, task: Task, plan: CreatePlan) -> None:
        self._backups = tools.backups
        self._meter = tools.meter
        self._task = task
        self._plan = plan
        self._announced: str | None = None
        #: Since when the storage is distrusted, if this attempt found that it must be.
        self.distrusted_at: datetime | None = None

    def announced_key(self) -> str | None:
        """Return the key that was announced last."""
        return self._announced

    def finished(self) -> Iterator[tuple[int, bytes]]:
        """See :meth:`backupfw.engine.ports.Journal.finished`."""
        return self._backups.creating.finished_segments(self._plan.manifest_id, self._plan.epoch)

    def record(self, entries: Sequence[tuple[int, bytes]]) -> None:
        """See :meth:`backupfw.engine.ports.Journal.record`."""
        self._backups.creating.record_segments(self._task, entries)
        crash_points.reach("backup.recorded")

    def announce(self, key: str) -> None:
        """See :meth:`backupfw.engine.ports.Journal.announce`."""
        self._announced = key
        self._backups.creating.announce_manifest(self._task, key)

    def distrust(self, error: ChangeMissed) -> None:
        """See :meth:`backupfw.engine.ports.Journal.distrust`."""
        LOG.warning("%s From now on all of it is compared.", error)
        self._meter.change_missed()
        self.distrusted_at = self._backups.creating.distrust_changes(self._task)

    def is_unneeded(self, key: str) -> bool:
        """See :meth:`backupfw.engine.ports.Journal.is_unneeded`."""
        plan = self._plan
        with contextlib.suppress(DBError, DatabaseUnwritable):
            return self._backups.creating.is_unneeded(plan.store, plan.container, key)
        return False


class BackupCreate(Handler):
    """Makes a backup, or goes on with one that an earlier attempt began."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        crash_points.reach("backup.begun")
        plan = tools.backups.creating.start(task, key=self._new_key(task))
        crash_points.reach("backup.planned")
        container = tools.stores.container(plan.store, plan.container)
        if plan.announced:
            settled = self._take_over(task, plan, container, control)
            if settled is None:
                return
            plan = tools.backups.creating.start(task, settled)
        self._need(container, held=plan.base is not None or plan.source_identity is not None)
        try:
            plan, job, result = self._back_up(task, plan, container, control)
        except SourceMoved as error:
            if plan.in_use or plan.snapshot is not None:
                raise
            LOG.warning("Volume %s is taken for one in use: %s", plan.volume.id, error)
            plan, job, result = self._back_up(task, replace(plan, in_use=True), container, control)
        crash_points.reach("backup.manifest-put")
        if result.base_problem is not None:
            LOG.warning("Backup %s shares nothing with its parent: %s", plan.backup.id, result.base_problem)
        wire_name = tools.stores.wire_names[plan.store]
        made = _create_result(result, job.geometry.length, tools.host, wire_name)
        with self._withdrawing(task, plan, lambda: made.key, container):
            self._commit(task, plan, made, container, control)
        tools.meter.backed_up(result)
        crash_points.reach("backup.committed")

    def _take_over(
        self, task: Task, plan: CreatePlan, container: Container, control: TaskControl
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
        tools.backups.creating.give_up_announced(task, missing)
        return left

    def _lock_all(
        self, plan: CreatePlan, key: str, container: Container, control: TaskControl
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
        self, task: Task, plan: CreatePlan, made: CreateResult, container: Container, control: TaskControl
    ) -> None:
        """Remove what earlier attempts left, then make the backup available."""
        if task.attempt > 1 or plan.epoch > 1:
            # Clean up before the commit: afterwards there is no task any more, so no attempt would do it.
            self._clean_up(plan, made.key, container, control)
        control.check()
        self._tools.backups.creating.finish(task, made)

    @contextmanager
    def _withdrawing(
        self, task: Task, plan: CreatePlan, key: Callable[[], str | None], container: Container
    ) -> Iterator[None]:
        """Delete the manifest of an attempt that fails, unless it is committed after all.

        The manifest stays in three cases: the attempt is cancelled (the deletion, or the next attempt after a
        shutdown, decides); another attempt has the task now; or it is too early to clean up, and the next
        attempt commits the manifest.
        """
        try:
            yield
        except (TaskCancelled, ListingBehind):
            raise
        except Exception:
            announced = key()
            # If this fails, the next attempt or the deletion of the backup does it.
            with (
                contextlib.suppress(ChunkStoreError, DBError, DatabaseUnwritable),
                cancelled_by(lambda: None),
            ):
                if announced is not None and self._tools.backups.creating.give_up_manifest(
                    task, plan.store, plan.container, announced
                ):
                    container.delete([announced])
            raise

    def _back_up(
        self, task: Task, plan: CreatePlan, container: Container, control: TaskControl
    ) -> tuple[CreatePlan, BackupJob, BackupResult]:
        """Read a point of the source and put the manifest.

        If the storage said wrongly what is unchanged, everything is read, now and by later backups.

        :raises SourceMoved: it has no state that does not change.
        """
        tools = self._tools
        creating = tools.backups.creating
        with self._point(task, plan, control) as point:
            crash_points.reach("backup.opened")
            if plan.snapshot is None and not self._needs_temp_snapshot(plan):
                plan = self._follow(task, plan, point.length, point.storage_id)
            sealing = self._sealing(plan, container)
            how = comparison.choose(plan, point, container, sealing, tools.engine.full_compare_every, control)
            while True:
                LOG.info("Backup %s: %s", plan.backup.id, how.how)
                until = _lock_until(plan, container)
                plan = creating.bind_source(
                    task,
                    how.identity(point.identity),
                    how.how,
                    None if until is None else moments.utc(until),
                )
                crash_points.reach("backup.bound")
                job = replace(self._job(plan, point, how, sealing), lock=_lock_plan(plan, until))
                journal = TaskJournal(tools, task, plan)
                try:
                    with self._withdrawing(task, plan, journal.announced_key, container):
                        return plan, job, engine.run(job, point, container, journal, control, how.base)
                except Damaged as error:
                    # What it shares with its base was to be locked longer, and is not there.
                    self._record_missing(plan, error, container)
                    raise IntegrityError(
                        error.reason,
                        store=plan.store,
                        container=plan.container,
                        key=error.key,
                        temporary=True,
                    ) from error
                except ChangeMissed:
                    assert journal.distrusted_at is not None
                    how = replace(comparison.distrusted(journal.distrusted_at), base=how.base)

    def _record_missing(self, plan: CreatePlan, error: Damaged, container: Container) -> None:
        """Put an object on the list: the next attempt stores its blocks anew."""
        if removal.is_proven(error, container):
            self._tools.backups.damaged_objects.record(
                plan.store, plan.container, error.key, error.reason, plan.manifest_id
            )

    def _follow(self, task: Task, plan: CreatePlan, length: int, storage_id: str | None) -> CreatePlan:
        """Let the catalogue follow what an open of the volume found."""
        if is_followed(plan.volume, length, storage_id):
            return plan
        return self._tools.backups.creating.follow_volume(task, length, storage_id)

    def _clean_up(self, plan: CreatePlan, key: str, container: Container, control: TaskControl) -> None:
        """Remove what earlier attempts left.

        If an unknown manifest cannot be read, all of it stays and a sweep finds it: the backup itself is
        whole.
        """
        known = KnownManifests(*self._tools.backups.creating.known_manifests(plan.manifest_id))
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

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self.failed_with(task, reason, None)

    def failed_with(self, task: Task, reason: str, detail: Detail | None) -> None:
        """See :meth:`Handler.failed_with`."""
        self._tools.backups.creating.fail(task, reason, detail)

    def _job(self, plan: CreatePlan, point: Point, how: Comparison, sealing: Sealing) -> BackupJob:
        tools = self._tools
        return BackupJob(
            installation=plan.installation_id,
            project=plan.backup.project_id,
            volume=plan.backup.volume_id,
            backup=plan.backup.id,
            epoch=plan.epoch,
            attempt=plan.attempt,
            token=secrets.token_hex(8),
            geometry=Geometry(point.length, plan.block_size, plan.segment_size),
            base=None if plan.base is None else plan.base.key,
            record=_record(plan, point),
            damaged=self._known_damaged(plan),
            pack_size=tools.engine.pack_size,
            compression_level=tools.engine.compression_level,
            sealing=sealing,
            streams=tools.engine.streams,
            since=how.since,
            verify_unchanged=1.0 if how.checked else tools.engine.verify_unchanged,
            read_all=how.read_all,
        )

    def _known_damaged(self, plan: CreatePlan) -> frozenset[str]:
        """Return the keys of the volume's objects that are known to be damaged."""
        prefix = keys.volume_prefix(plan.installation_id, plan.backup.project_id, plan.backup.volume_id)
        return self._tools.backups.damaged_objects.keys(plan.store, plan.container, prefix)

    def _new_key(self, task: Task) -> KeyIds | None:
        """Return the data key of a backup that begins; None: it has begun before, or is not encrypted."""
        place = self._tools.backups.creating.to_encrypt(task)
        if place is None:
            return None
        container = self._tools.stores.container(place.store, place.container)
        self._need(container, held=place.held)
        key = self._tools.data_keys.for_new(place, container)
        return KeyIds(key.id, key.mac_id)

    def _sealing(self, plan: CreatePlan, container: Container) -> Sealing:
        if plan.key_id is None:
            return CLEAR
        self._tools.data_keys.keep(container, plan.key_id)
        find = self._find_key(plan, container)
        return Sealing(find(plan.key_id), find)

    def _find_key(self, plan: CreatePlan, container: Container) -> FindKey:
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

    def _needs_temp_snapshot(self, plan: CreatePlan) -> bool:
        return plan.in_use and not self._tools.backends.provider(plan.volume.backend).capabilities.live

    @contextmanager
    def _point(self, task: Task, plan: CreatePlan, control: TaskControl) -> Iterator[Point]:
        """Lend the point that is read; its storage stays until the volume is tidied."""
        ref: SnapshotRef | VolumeRef
        provider = self._tools.backends.provider(plan.volume.backend)
        if provider.keeps_points and not plan.volume.keeps_points:
            self._tools.backups.creating.will_keep_points(task)
        if plan.snapshot is not None:
            ref = snapshot_ref(plan.snapshot, plan.volume)
        elif self._needs_temp_snapshot(plan):
            ref = self._temp_snapshot(task, plan, control)
        else:
            ref = volume_ref(plan.volume)
        with opened(partial(_kept, provider, ref, task.resource_id, control), control) as point:
            yield point

    def _temp_snapshot(self, task: Task, plan: CreatePlan, control: TaskControl) -> SnapshotRef:
        """Return the temporary snapshot of a volume in use: an earlier attempt's, or a new one."""
        tools = self._tools
        provider = tools.backends.provider(plan.volume.backend)
        begun = tools.backups.creating.temp_snapshot(task.resource_id)
        if begun is None or begun[0].location is None:
            found = run_cancellable(
                partial(provider.look, volume_ref(plan.volume)), control, grace=PROVIDER_GRACE
            )
            plan = self._follow(task, plan, found.length, found.storage_id)
            if begun is not None and begun[0].length != plan.volume.length:
                # An earlier attempt began the snapshot, perhaps finished it, and the volume has grown since.
                drop = partial(provider.delete_snapshot, snapshot_ref(*begun))
                run_cancellable(drop, control, grace=PROVIDER_GRACE)
                tools.backups.creating.forget_temp_snapshot(task.resource_id)
        snapshot = tools.backups.creating.begin_temp_snapshot(task)
        ref = snapshot_ref(snapshot, plan.volume)
        if ref.location is not None:
            try:
                with opened(partial(_kept, provider, ref, task.resource_id, control), control):
                    return ref
            except (StorageChanged, OSError):
                # The new snapshot shows another state of the volume, so a new epoch begins.
                LOG.warning("The temporary snapshot of backup %s is lost; taking another", task.resource_id)
                tools.backups.creating.forget_temp_snapshot(task.resource_id)
                return self._temp_snapshot(task, plan, control)
        location = run_cancellable(
            partial(provider.create_snapshot, ref, True, control.check), control, grace=PROVIDER_GRACE
        )
        return snapshot_ref(tools.backups.creating.temp_snapshot_made(task, location), plan.volume)


@contextmanager
def _kept(
    provider: VolumeProvider, ref: VolumeRef | SnapshotRef, point_id: str, control: TaskControl
) -> Iterator[Point]:
    """Open a point; whatever happens, another attempt or a later backup may need it again."""
    point = provider.open_point(ref, point_id, control.check)
    try:
        yield point
    finally:
        point.close(keep=True)


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


def _lock_until(plan: CreatePlan, container: Container) -> datetime | None:
    """Choose until when this attempt locks what it puts; None: it does not."""
    if container.rule is None:
        return None
    base = None if plan.base is None else plan.base.locked_until
    known = (None if until is None else moments.aware(until) for until in (plan.locked_until, base))
    return container.rule.choose(known)


def _lock_plan(plan: CreatePlan, until: datetime | None) -> LockPlan | None:
    if until is None:
        return None
    base = None if plan.base is None else plan.base.locked_until
    own, others = (None if one is None else moments.aware(one) for one in (plan.locked_until, base))
    return LockPlan(until, own, others)


def _record(plan: CreatePlan, point: Point) -> dict[str, Any]:
    """What the manifest keeps of backup and volume: enough to restore names and metadata from it alone."""
    backup, volume = plan.backup, plan.volume
    encrypted = {}
    if volume.encryption_key_id is not None:
        header = bytearray(min(HEADER, point.length))
        point.read_into(0, memoryview(header))
        encrypted["encryption"] = {
            "key_id": volume.encryption_key_id,
            "header": hashlib.sha256(header).hexdigest() if header.startswith(LUKS) else None,
        }
    return {
        "backup": {
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
        },
        "volume": {
            "name": volume.display_name,
            "description": volume.display_description,
            "size": volume.size,
            "volume_type": volume.volume_type,
            "bootable": volume.bootable,
            "image_metadata": dict(volume.image_metadata),
            "metadata": dict(volume.metadata),
            **encrypted,
        },
    }
