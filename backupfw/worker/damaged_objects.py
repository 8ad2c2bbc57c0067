"""Damaged objects as a verification finds them, and marking every backup that names one."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from itertools import islice

from oslo_log import log

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.engine import verify
from backupfw.engine.ports import Control
from backupfw.errors import Damaged, UnsupportedFormat
from backupfw.manager.outcomes.backups import BackupTasks

LOG = log.getLogger(__name__)

#: Keys of damaged objects in memory at a time, about 300 bytes each.
_PART = 50_000


class FoundDamaged:
    """Damaged objects, in a temporary file: of a store that lost all there are millions.  Not thread-safe."""

    def __init__(self) -> None:
        self.count = 0
        self._file = tempfile.TemporaryFile("w+", encoding="utf-8", prefix="backupfw-verify-")  # noqa: SIM115

    def add(self, key: str, reason: str) -> None:
        """Note an object."""
        self._file.write(json.dumps({"key": key, "reason": reason}) + "\n")
        self.count += 1

    def lines(self) -> Iterator[str]:
        """Yield each as JSON; nothing can be added meanwhile."""
        self._file.seek(0)
        return (line.rstrip("\n") for line in self._file)

    def parts(self) -> Iterator[dict[str, str]]:
        """Yield keys with their reasons, :data:`_PART` at a time."""
        found = (json.loads(line) for line in self.lines())
        while part := {one["key"]: one["reason"] for one in islice(found, _PART)}:
            yield part

    def close(self) -> None:
        """Give the file up."""
        self._file.close()


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
