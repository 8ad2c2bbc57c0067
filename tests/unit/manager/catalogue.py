"""A database, a configuration and people for the tests of volumes, snapshots, quotas and services."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from oslo_config import cfg

from backupfw.conf import backup, default, volumes
from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.manager.outcomes.volumes import VolumeTasks
from backupfw.manager.queue.services import ServiceManager
from backupfw.manager.queue.tasks import Tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules.quota import QuotaManager
from backupfw.manager.rules.volume_rules import GIB
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.volumes import VolumeManager
from tests.unit.tables import create_tables

ALICE = RequestContext(project_id="blue", user_id="alice", roles=frozenset({"member"}))
BOB = RequestContext(project_id="green", user_id="bob", roles=frozenset({"member"}))
ADMIN = RequestContext(project_id="ops", user_id="root", roles=frozenset({"admin"}), is_admin=True)


def make_conf(**overrides: Any) -> cfg.ConfigOpts:
    """A configuration with defaults, and overrides of ``[quota]`` options by name."""
    conf = cfg.ConfigOpts()
    for module in (default, backup, volumes):
        module.register_opts(conf)
    conf([], default_config_files=[], default_config_dirs=[])
    for name, value in overrides.items():
        conf.set_override(name, value, "quota")
    return conf


def make_database(path: Path | None = None, url: str | None = None) -> Database:
    """A database with all tables: in memory, or in a file where threads shall meet."""
    db = Database(url or ("sqlite://" if path is None else f"sqlite:///{path / 'test.sqlite'}"))
    create_tables(db)
    return db


@dataclass
class Catalogue:
    """All managers on one database, and the worker's side."""

    db: Database
    conf: cfg.ConfigOpts
    woken: list[None] = field(default_factory=list)

    def __post_init__(self) -> None:
        def wake() -> None:
            self.woken.append(None)

        self.volumes = VolumeManager(self.db, self.conf, wake)
        self.snapshots = SnapshotManager(self.db, self.conf, wake)
        self.types = VolumeTypeManager(self.db, self.conf)
        self.quotas = QuotaManager(self.db, self.conf)
        self.services = ServiceManager(self.db, self.conf)
        self.tasks = Tasks(self.db)
        self.work = VolumeTasks(self.db)

    def claim(self) -> Task | None:
        """Claim the next task as a worker would."""
        return self.tasks.claim("host/1", 60)

    def renew(self, task: Task) -> bool | None:
        """Renew a lease; returns whether the task was cancelled, or None: it is lost."""
        return self.tasks.renew("host/1", [task], 60).get(task.id)

    def must_claim(self, kind: str) -> Task:
        """Claim the next task, which must be of this kind."""
        task = self.claim()
        assert task is not None
        assert task.kind == kind
        return task

    def run_all(self) -> list[str]:
        """Carry out every task that can be claimed, successfully; return their kinds in order."""
        done = []
        while task := self.claim():
            done.append(task.kind)
            self.run(task)
        assert self.kinds() == [], "tasks that nobody can do"
        return done

    def run(self, task: Task) -> None:
        """Carry out one task, successfully."""
        work = self.work
        if task.kind == "volume.create":
            work.finish_create(task, f"/volumes/{work.start_create(task).volume.id}")
        elif task.kind == "volume.delete":
            work.start_delete(task)
            work.finish_delete(task)
        elif task.kind == "volume.extend":
            work.finish_extend(task, work.start_extend(task).length, None)
        elif task.kind == "snapshot.create":
            work.finish_create_snapshot(task, f"/snapshots/{work.start_create_snapshot(task).snapshot.id}")
        else:
            assert task.kind == "snapshot.delete"
            work.start_delete_snapshot(task)
            work.finish_delete_snapshot(task)

    def volume(self, ctx: RequestContext = ALICE, size: int = 1, **values: Any) -> str:
        """A finished volume's id; ``values`` are columns to set behind the manager's back."""
        volume_id = self.volumes.create(ctx, size=size).id
        task = self.must_claim("volume.create")
        self.run(task)
        self.set(models.Volume, volume_id, **values)
        return volume_id

    def snapshot(self, volume_id: str, ctx: RequestContext = ALICE, **values: Any) -> str:
        """A finished snapshot's id."""
        snapshot_id = self.snapshots.create(ctx, volume_id=volume_id, force=True).id
        self.run(self.must_claim("snapshot.create"))
        self.set(models.Snapshot, snapshot_id, **values)
        return snapshot_id

    def backup(self, ctx: RequestContext = ALICE, **values: Any) -> str:
        """A backup's row, as if it had been made."""
        row: dict[str, Any] = {
            "id": str(uuid.uuid4()), "project_id": ctx.project_id, "volume_id": str(uuid.uuid4()),
            "status": "available", "size": 1, "length": GIB, **values,
        }  # fmt: skip
        with self.db.write() as session:
            session.add(models.Backup(created_at=now(session), **row))
        return str(row["id"])

    def set(self, model: type[models.Base], row_id: str, **values: Any) -> None:
        """Set columns of a row behind everybody's back."""
        with self.db.write() as session:
            row = session.get_one(model, row_id)
            for name, value in values.items():
                setattr(row, name, value)

    def attach_behind(self, volume_id: str) -> None:
        """Give a volume an attachment without a change of its status."""
        with self.db.write() as session:
            session.add(
                models.Attachment(id=str(uuid.uuid4()), volume_id=volume_id, attached_at=datetime(2026, 1, 1))
            )

    def status(self, model: type[Any], row_id: str) -> str:
        """A row's status."""
        with self.db.read() as session:
            return str(session.get_one(model, row_id).status)

    def kinds(self) -> list[str]:
        """Kinds of all unfinished tasks, oldest first."""
        with self.db.read() as session:
            rows = session.query(models.Task).order_by(models.Task.id)
            return [row.kind for row in rows]

    def usage(self, project: str) -> Mapping[str, int]:
        """What a project uses, as shown to administrators."""
        shown = self.quotas.show(project, usage=True)
        return {name: entry["in_use"] for name, entry in shown.items() if isinstance(entry, dict)}
