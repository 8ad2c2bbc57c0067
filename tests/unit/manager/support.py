"""A small world around the manager: a database, a configuration, and a worker that is a few methods."""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections import defaultdict
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.installation import ensure_installation
from backupfw.db.session import Database, now
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle
from backupfw.manager.operators import audit
from backupfw.manager.outcomes.backups import (
    BackupTasks,
    CreatePlan,
    CreateResult,
    ManifestFacts,
    RestoredVolume,
)
from backupfw.manager.outcomes.expiry import Expiry
from backupfw.manager.queue import tasks
from backupfw.manager.queue.services import BACKUP_BINARY, ServiceManager
from backupfw.manager.queue.tasks import Tasks
from backupfw.manager.rows import Task
from backupfw.manager.usecases.backups import BackupManager
from tests.unit.tables import create_tables

GIB = 1 << 30
WIRE = "cinder.backup.drivers.posix.PosixBackupDriver"


class Conf(SimpleNamespace):
    """A configuration whose groups are also found by name, as oslo.config's are."""

    def __getitem__(self, group: str) -> Any:
        return getattr(self, group)


def make_conf(**changes: Any) -> Conf:
    """Return a configuration as the manager reads it; ``changes`` go to ``[backup]`` and ``[quota]``."""
    backup = {
        "container": "volumebackups",
        "block_size": 65536,
        "segment_size": 1 << 28,
        "refuse_delete_of_parents": False,
        "service_wait": 600.0,
        "delete_retry_seconds": 300.0,
        "max_attempts": 3,
    }
    quota = {
        "backups": 1000,
        "backup_gigabytes": 100000,
        "volumes": 1000,
        "gigabytes": 100000,
        "snapshots": 10,
        "backup_policies": 10,
    }
    names = {**backup, **quota}
    assert set(changes) <= set(names), changes
    return Conf(
        default_store="main",
        enabled_stores=["main", "offsite"],
        placement_rules=[],
        host="host",
        quiesce_commands=["agent"],
        volumes=SimpleNamespace(enabled=["local", "fast"], default=None),
        **{
            f"store:{name}": SimpleNamespace(
                container=None, encryption="off", scrub_days=0, scrub_bytes_per_second=0.0
            )
            for name in ("main", "offsite")
        },
        availability_zone="nova",
        service_down_time=60,
        message_ttl=3600,
        default_volume_type="__DEFAULT__",
        backup=SimpleNamespace(**{name: changes.get(name, value) for name, value in backup.items()}),
        quota=SimpleNamespace(**{name: changes.get(name, value) for name, value in quota.items()}),
    )


class World:
    """Everything a test of the manager needs."""

    #: All there are; those that a test made are closed after it (``tests/unit/conftest.py``).
    living: ClassVar[weakref.WeakSet[World]] = weakref.WeakSet()

    def __init__(self, url: str = "sqlite://", *, database: Database | None = None, **changes: Any) -> None:
        self.db = database or Database(url)
        self.conf: Any = make_conf(**changes)
        create_tables(self.db)
        self.db.run(ensure_installation)
        self.wakes = 0
        self.backups = BackupManager(self.db, self.conf, self._wake)
        self.tasks = Tasks(self.db, self.conf.backup.max_attempts)
        self.outcomes = BackupTasks(self.db, self.conf)
        self.expiry = Expiry(self.db, self.conf)
        self.services = ServiceManager(self.db, self.conf)
        self.services.heartbeat("host", BACKUP_BINARY, "nova", {"main": WIRE})
        self._numbers = itertools.count(1)
        self.living.add(self)

    def close(self) -> None:
        """Close the database."""
        self.db.close()

    def _wake(self) -> None:
        self.wakes += 1

    @staticmethod
    def ctx(project: str = "p1", *, admin: bool = False) -> RequestContext:
        """Return a caller."""
        return RequestContext(project_id=project, user_id="u", is_admin=admin)

    def volume(self, project: str = "p1", *, size: int = 1, status: str = "available", **columns: Any) -> str:
        """Enter a volume and return its id."""
        volume_id = str(uuid.uuid4())
        with self.db.write() as session:
            session.add(
                models.Volume(
                    id=volume_id,
                    project_id=project,
                    user_id="u",
                    status=status,
                    size=size,
                    length=columns.pop("length", size * GIB),
                    location="/v",
                    created_at=now(session),
                    **columns,
                )
            )
        return volume_id

    def snapshot(self, volume_id: str, project: str = "p1", *, status: str = "available") -> str:
        """Enter a snapshot and return its id."""
        snapshot_id = str(uuid.uuid4())
        with self.db.write() as session:
            session.add(
                models.Snapshot(
                    id=snapshot_id,
                    volume_id=volume_id,
                    project_id=project,
                    user_id="u",
                    status=status,
                    size=1,
                    length=GIB,
                    location="/s",
                    created_at=now(session),
                )
            )
        return snapshot_id

    def row(self, model: Any, row_id: Any) -> Any:
        """Return a row as it is in the database (detached), or None."""
        with self.db.read() as session:
            found = session.get(model, row_id)
            if found is not None:
                session.expunge(found)
            return found

    def rows(self, model: Any, *where: Any) -> list[Any]:
        """Return rows (detached)."""
        with self.db.read() as session:
            found = list(session.scalars(select(model).where(*where)))
            session.expunge_all()
            return found

    @staticmethod
    def rows_in(session: Session, model: Any) -> list[Any]:
        """Return all rows, inside a transaction."""
        return list(session.scalars(select(model)))

    def status(self, backup_id: str) -> str | None:
        """Return a backup's status; None if it is deleted or never was."""
        row = self.row(models.Backup, backup_id)
        return None if row is None or row.deleted else str(row.status)

    def volume_status(self, volume_id: str) -> str:
        """Return a volume's status."""
        return str(self.row(models.Volume, volume_id).status)

    # The worker.

    def claim(self, kind: str | None = None, owner: str = "host/w") -> Task:
        """Claim the next task, which must be there."""
        task = self.tasks.claim(owner, 60, None if kind is None else [kind])
        assert task is not None
        return task

    def renew(self, task: Task, owner: str = "host/w") -> bool | None:
        """Renew one lease; returns whether the task was cancelled, or None: it is lost."""
        return self.tasks.renew(owner, [task], 60).get(task.id)

    def result(self, plan: CreatePlan) -> CreateResult:
        """Return what a finished backup of ``plan`` would be."""
        number = next(self._numbers)
        key = (
            f"{plan.installation_id}/{plan.backup.project_id}/{plan.volume.id}/{plan.backup.id}/"
            f"{plan.epoch}.{plan.attempt}-{number:016x}/manifest"
        )
        return CreateResult(
            key=key,
            service=WIRE,
            host="host",
            length=plan.backup.length or 0,
            object_count=3,
            stored_bytes=100,
            referenced_bytes=5,
        )

    def run_create(self) -> rows.Backup:
        """Carry out the next creation."""
        task = self.claim(tasks.BACKUP_CREATE)
        plan = self.outcomes.creating.start(task)
        self.outcomes.creating.bind_source(task, "source", "full backup")
        return self.outcomes.creating.finish(task, self.result(plan))

    def run_restore(self, source: RestoredVolume | None = None) -> None:
        """Carry out the next restore."""
        task = self.claim(tasks.BACKUP_RESTORE)
        self.outcomes.restoring.start(task)
        self.outcomes.restoring.finish(task, source)

    def run_delete(self) -> bool:
        """Carry out the next deletion; returns whether objects had to be removed."""
        task = self.claim(tasks.BACKUP_DELETE)
        plan = self.outcomes.deleting.start(task)
        if plan is not None:
            self.outcomes.deleting.finish(task, plan)
        return plan is not None

    def run_releases(self) -> int:
        """Carry out all releases that are queued; returns how many."""
        done = 0
        while (task := self.tasks.claim("host/w", 60, [tasks.MANIFEST_RELEASE])) is not None:
            plan = self.outcomes.deleting.start_release(task)
            if plan is not None:
                self.outcomes.deleting.finish_release(task, plan)
            done += 1
        return done

    def facts(self, manifest: models.Manifest, **changes: Any) -> ManifestFacts:
        """Return what a worker reads of a manifest in its store."""
        values: dict[str, Any] = {
            "store": manifest.store,
            "service": WIRE,
            "container": manifest.container,
            "key": manifest.key,
            "installation_id": manifest.installation_id,
            "project_id": manifest.project_id,
            "volume_id": manifest.volume_id,
            "backup_id": manifest.backup_id,
            "epoch": manifest.epoch,
            "length": manifest.length,
            "block_size": manifest.block_size,
            "segment_size": manifest.segment_size,
            "hash_mode": manifest.hash_mode,
            "mac_id": manifest.mac_id,
            "key_id": None,
            "object_count": 3,
            "stored_bytes": 100,
            "referenced_bytes": 5,
        }
        return ManifestFacts(**{**values, **changes})

    def backup(self, volume_id: str, project: str = "p1", **arguments: Any) -> rows.Backup:
        """Make a backup, whole."""
        made = self.backups.create(self.ctx(project), volume_id=volume_id, **arguments)
        done = self.run_create()
        assert done.id == made.id
        return done

    def silence(self, *, seconds: float) -> None:
        """Make every service silent, as if time had passed."""
        with self.db.write() as session:
            for row in session.scalars(select(models.Service)):
                row.reported_at = row.reported_at - timedelta(seconds=seconds)

    def age(self, *, seconds: float) -> None:
        """Make every lease and delay end, as if time had passed."""
        with self.db.write() as session:
            for row in session.scalars(select(models.Task)):
                for name in ("lease_until", "not_before"):
                    value = getattr(row, name)
                    if value is not None:
                        setattr(row, name, value - timedelta(seconds=seconds))
                row.updated_at = row.updated_at - timedelta(seconds=seconds)


def check_consistent(world: World) -> None:
    """What must be true after every step, whatever happened."""
    everything: list[tuple[bool, str]] = []

    def note(ok: bool, text: str) -> None:
        everything.append((ok, text))

    with world.db.read() as session:
        queued = list(session.scalars(select(models.Task)))
        live = [task for task in queued if not task.cancel]
        manifests = {one.id: one for one in session.scalars(select(models.Manifest))}
        naming: defaultdict[str | None, list[models.Backup]] = defaultdict(list)
        writing = {one.base_id for one in manifests.values() if one.state == lifecycle.WRITING}
        for backup in session.scalars(select(models.Backup).where(models.Backup.deleted.is_(False))):
            naming[backup.manifest_id].append(backup)
            mine = [task for task in live if task.resource_id == backup.id]
            kinds = {task.kind for task in mine}
            expected = {
                lifecycle.CREATING: [{tasks.BACKUP_CREATE}, {tasks.BACKUP_IMPORT}],
                lifecycle.RESTORING: [{tasks.BACKUP_RESTORE}],
                lifecycle.DELETING: [{tasks.BACKUP_DELETE}],
                lifecycle.ERROR_DELETING: [{tasks.BACKUP_DELETE}],
            }.get(backup.status, [set()])
            note(kinds in expected and len(mine) <= 1, f"backup {backup.status} has tasks {kinds}")
            manifest = manifests.get(backup.manifest_id or "")
            if backup.status in (lifecycle.AVAILABLE, lifecycle.RESTORING):
                note(manifest is not None and manifest.state == lifecycle.LIVE, "available without data")
        for volume in session.scalars(select(models.Volume).where(models.Volume.deleted.is_(False))):
            occupied = [task for task in live if task.source_id == volume.id]
            if volume.status == lifecycle.BACKING_UP:
                note([task.kind for task in occupied] == [tasks.BACKUP_CREATE], "backing-up without a task")
            elif volume.status == lifecycle.RESTORING_BACKUP:
                note([task.kind for task in occupied] == [tasks.BACKUP_RESTORE], "restoring without a task")
            else:
                note(not occupied, f"volume {volume.status} is occupied")
                note(volume.previous_status is None, "previous status left behind")
        for manifest in manifests.values():
            named, is_base = naming[manifest.id], manifest.id in writing
            if manifest.state == lifecycle.LIVE:
                note(bool(named or is_base), "a live manifest that nothing names")
            elif manifest.state == lifecycle.WRITING:
                note(len(named) == 1 and named[0].status == lifecycle.CREATING, "writing for nobody")
            elif manifest.state == lifecycle.RELEASED:
                note(not is_base, "a child of a released manifest is being written")
                cleaners = [
                    task
                    for task in queued
                    if (task.kind == tasks.MANIFEST_RELEASE and task.resource_id == manifest.id)
                    or (task.kind == tasks.BACKUP_DELETE and task.resource_id in {item.id for item in named})
                ]
                note(bool(cleaners), "a released manifest that nobody removes")
    wrong = [text for ok, text in everything if not ok]
    assert not wrong, wrong


def check_audit(world: World) -> None:
    """What operators check must be true as well; leases apart, which tests let run out."""
    assert audit.run(world.db, lease_seconds=10**8) == []
