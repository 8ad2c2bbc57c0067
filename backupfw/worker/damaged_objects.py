"""Marking every backup that names a damaged object, not only the one whose reading found it."""

from __future__ import annotations

from collections.abc import Collection

from oslo_log import log

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.engine import verify
from backupfw.engine.ports import Control
from backupfw.errors import Damaged, UnsupportedFormat
from backupfw.manager.outcomes.backups import BackupTasks

LOG = log.getLogger(__name__)


def mark_sharers(
    backups: BackupTasks, container: Container, manifest_id: str, damaged: Collection[str], control: Control
) -> None:
    """Mark the other manifests of a volume that name damaged objects.

    A manifest that cannot be read is recorded as a damaged object itself.  One of a newer version, or one
    that the store does not return now, is left to its own verification.

    :param manifest_id: the manifest that was being read when the objects were found damaged.
    :param damaged: keys of the objects; they are on the list.
    :raises TaskStopped: the control said so.
    """
    place = (container.store.name, container.name)
    for sharer in backups.damaged_objects.sharers(manifest_id):
        # A manifest that is marked already is not read: each verification of a chain finds the same objects.
        unknown = set(damaged).difference(sharer.marked)
        if not unknown:
            continue
        try:
            found = verify.named(sharer.key, unknown, container, control)
        except Damaged as error:
            backups.damaged_objects.record(*place, error.key, error.reason, sharer.manifest_id)
        except (ChunkStoreError, UnsupportedFormat) as error:
            LOG.warning("Whether %s names damaged objects is not known: %s", sharer.key, error)
        else:
            if found:
                backups.damaged_objects.mark(*place, sharer.manifest_id, found)
