"""What both providers have in common: they make no volumes, and take no snapshots of the catalogue."""

from __future__ import annotations

from backupfw.errors import OperationNotSupported, StorageChanged
from backupfw.volume.base import SnapshotRef, Tick, VolumeProvider, VolumeRef, no_tick


class AdoptedOnly(VolumeProvider):
    """A provider of volumes that were there before."""

    def create(self, volume: VolumeRef, source: SnapshotRef | VolumeRef | None, tick: Tick = no_tick) -> str:  # noqa: ARG002
        """Refuse it.

        :raises OperationNotSupported: always.
        """
        raise OperationNotSupported("This volume back end makes no volumes: its volumes are adopted.")

    def delete(self, volume: VolumeRef) -> None:
        """Leave the storage alone: it is adopted."""

    def extend(self, volume: VolumeRef, length: int) -> None:  # noqa: ARG002
        """Refuse it.

        :raises OperationNotSupported: always.
        """
        raise OperationNotSupported(
            "This volume back end extends no volumes: extend the storage; the next backup sees it."
        )

    def create_snapshot(self, snapshot: SnapshotRef, in_use: bool, tick: Tick = no_tick) -> str:  # noqa: ARG002
        """Refuse it.

        :raises OperationNotSupported: always.
        """
        raise OperationNotSupported("This volume back end takes no snapshots.")

    def delete_snapshot(self, snapshot: SnapshotRef) -> None:
        """Do nothing: there are none."""


def changed(volume: VolumeRef, problem: str) -> StorageChanged:
    """Return the error of storage that is not what the catalogue says."""
    hint = f"It is {volume.location}. If what is there now is the volume, run"
    return StorageChanged(
        f"volume {volume.id}", problem, f"{hint} 'backupfw volume adopt --again {volume.id}'."
    )


def shorter(length: int, least: int) -> str:
    """Say that storage is too short."""
    return f"is shorter than it should be: it has {length} of {least} bytes"
