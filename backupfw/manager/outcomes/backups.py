"""What a worker tells the manager: one method per outcome of a backup's task.

The parts are in modules of their own, by kind of task; this is all of them in one object.
"""

from __future__ import annotations

from backupfw.db import installation
from backupfw.manager.outcomes.creating import BaseManifest, CreatePlan, CreateResult
from backupfw.manager.outcomes.damage import Damage
from backupfw.manager.outcomes.deleting import DeleteTasks, ReleasePlan
from backupfw.manager.outcomes.importing import ImportPlan, ManifestFacts
from backupfw.manager.outcomes.restoring import RestoredVolume, RestorePlan
from backupfw.manager.queue.waiting import Waiting

__all__ = [
    "BackupTasks",
    "BaseManifest",
    "CreatePlan",
    "CreateResult",
    "ImportPlan",
    "ManifestFacts",
    "ReleasePlan",
    "RestorePlan",
    "RestoredVolume",
]


class BackupTasks(Waiting, DeleteTasks, Damage):
    """All outcomes of backups' tasks.  Thread-safe.

    :param db: the database.
    :param conf: ``availability_zone``, ``service_down_time``, ``[backup]`` and ``[quota]``.
    """

    def installation_id(self) -> str:
        """Return the installation's id, the first part of every key."""
        with self._db.read() as session:
            return installation.installation_id(session)
