"""Outcomes of backups' tasks, as a worker reports them: one object per kind, one method per outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from backupfw.db import installation, models
from backupfw.manager.lineage import lifecycle
from backupfw.manager.outcomes.converting import ConvertTasks
from backupfw.manager.outcomes.copying import CopyPlan, CopyTasks
from backupfw.manager.outcomes.creating import CreatePlan, CreateTasks
from backupfw.manager.outcomes.damaged_objects import DamagedObjects
from backupfw.manager.outcomes.deleting import DeleteTasks, ReleasePlan
from backupfw.manager.outcomes.freezing import FreezeTasks
from backupfw.manager.outcomes.importing import ImportPlan, ImportTasks
from backupfw.manager.outcomes.making import BaseManifest, CreateResult
from backupfw.manager.outcomes.restoring import RestoredVolume, RestorePlan, RestoreTasks
from backupfw.manager.outcomes.scrubbing import ScrubPlan, ScrubTasks
from backupfw.manager.rules.found_manifests import ManifestFacts

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.db.session import Database

__all__ = [
    "BackupTasks",
    "BaseManifest",
    "CopyPlan",
    "CreatePlan",
    "CreateResult",
    "ImportPlan",
    "ManifestFacts",
    "ReleasePlan",
    "RestorePlan",
    "RestoredVolume",
    "ScrubPlan",
]


class BackupTasks:
    """The outcomes of backups' tasks, one attribute for each kind, and the list of damaged objects.

    Thread-safe.

    :param db: the database.
    :param conf: ``[backup]`` and ``[quota]``.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self.creating = CreateTasks(db, conf)
        self.freezing = FreezeTasks(db, conf)
        self.restoring = RestoreTasks(db, conf)
        self.importing = ImportTasks(db, conf)
        self.deleting = DeleteTasks(db, conf)
        self.copying = CopyTasks(db, conf)
        self.scrubbing = ScrubTasks(db, conf)
        self.converting = ConvertTasks(db, conf)
        self.damaged_objects = DamagedObjects(db, conf)

    def installation_id(self) -> str:
        """Return the installation's id, the first part of every key."""
        with self._db.read() as session:
            return installation.installation_id(session)

    def held_containers(self, store: str) -> list[tuple[str, str, str]]:
        """Return the containers of a store with manifests of ours; each with our two ids.

        :returns: container, installation's id, database's id.
        """
        row = models.Manifest
        with self._db.read() as session:
            ours, database = installation.installation_id(session), installation.database_id(session)
            found = session.scalars(
                select(row.container)
                .where(
                    row.store == store,
                    row.installation_id == ours,
                    row.key.is_not(None),
                    row.state.in_((lifecycle.LIVE, lifecycle.RELEASED)),
                )
                .distinct()
                .order_by(row.container)
            )
            return [(container, ours, database) for container in found]
