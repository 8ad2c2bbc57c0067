"""Sweep: finds and deletes orphans, the objects of this installation that no manifest names.

Usually there are none, because backups, releases and clean-ups leave none.  But a frozen worker may put its
last object late, a listing may lag behind a clean-up, and if a manifest is damaged, its list of objects is
lost.

The volumes are swept one after the other, each in this order: list its objects, *then* read the database's
rows, *then* read the manifests.  So each listed object is one of two: its backup was not finished when the
rows were read, then the backup is in a transient state and the object is skipped; or its backup was
finished, then a manifest that is read afterwards names the object.  Objects that are put after the listing
are not seen.  No clock is involved.

* Only keys that parse, below the installation's prefix, are touched.
* An unknown manifest that can be read is reported; it stays, and so does everything that it names.
  A manifest that a lost attempt put late is known, because every manifest is announced before it is put.
* A manifest that cannot be read stops its volume: what it names is not known.
* Orphans that are locked in the store stay, and are reported with the date: a sweep after that deletes them.
* While a backup is copied to the container, nothing of its volume is an orphan.  A copy that begins later
  may rely on what was found: so the database is read again before each request that deletes, and the volume
  is left as soon as a copy has begun since the manifests were read, or even ended.  While a request is under
  way, none begins.  If an answer is missing, the request may take effect later, so copies stay held back.
* A wrapped data key is an orphan if neither a manifest nor the database has its lineage.  A backup that
  begins later has a new one, or one that the database had when it was asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from backupfw import naming
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import DeleteFailed, locked_until
from backupfw.engine.candidates import Candidate, Spool, in_order
from backupfw.engine.format import keys
from backupfw.engine.listing import foreign_manifests, objects_by_volume
from backupfw.engine.ports import Control
from backupfw.engine.removal import Doomed, delete_all, settle, spare, unneeded_data_keys
from backupfw.errors import Damaged, UnsupportedFormat


class VolumeRows(Protocol):
    """What the database says of one volume in the container that is swept, all read at one moment."""

    @property
    def live(self) -> Collection[str]:
        """Keys of the live manifests."""

    @property
    def known(self) -> Collection[str]:
        """Keys of all manifests in any state, and of those that lost attempts announced."""

    @property
    def announced(self) -> Collection[str]:
        """Announced keys of backups that are not deleted; a manifest under one stays until then."""

    @property
    def transient(self) -> Collection[str]:
        """Ids of backups whose objects may be about to change: being made, imported, released."""

    @property
    def mac_ids(self) -> Collection[str]:
        """Ids of the keys of the digests of manifests that are not gone, and of all data keys."""

    @property
    def copying(self) -> bool:
        """Whether a copy to the container is being made: any object may have been put for it."""

    @property
    def copies(self) -> Collection[str]:
        """Ids of all copies to the container that ever began."""


class Catalogue(Protocol):
    """The database, as the sweep asks it."""

    def volume(self, project: str, volume: str) -> VolumeRows:
        """Read the rows of a volume now; called after the volume's objects were listed."""

    def deleting(self, project: str, volume: str) -> VolumeRows:
        """Read them again; no copy of the volume to the container begins until ``deleted``.

        Called before each request that deletes, from any thread.
        """

    def deleted(self, project: str, volume: str) -> None:
        """All requests have been answered."""


@dataclass(frozen=True, slots=True)
class VolumeReport:
    """What was found below one volume's prefix.

    :ivar project: the project's id.
    :ivar volume: the volume's id.
    :ivar objects: objects listed.
    :ivar orphans: objects that nothing names; deleted unless it was a dry run.
    :ivar orphan_bytes: their sizes.
    :ivar unknown_manifests: keys of readable manifests that the database does not know.
    :ivar skipped: objects that nothing names but whose backup is in a transient state.
    :ivar locked: how many of the orphans stay because they are locked; ``locked_until``: until when at most.
        A sweep after that deletes them.
    :ivar stopped: why nothing was swept here, or None.
    """

    project: str
    volume: str
    objects: int
    orphans: int = 0
    orphan_bytes: int = 0
    unknown_manifests: tuple[str, ...] = ()
    skipped: int = 0
    stopped: str | None = None
    locked: int = 0
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What a sweep found.

    :ivar volumes: one report for each volume that has objects, in the order of their prefixes.
    :ivar dry_run: whether nothing was deleted.
    :ivar foreign: manifests of other installations beside ours, by installation.
    """

    volumes: tuple[VolumeReport, ...] = field(default=())
    dry_run: bool = False
    foreign: Mapping[str, int] = field(default_factory=dict)

    @property
    def orphans(self) -> int:
        """Objects that nothing names, of all volumes."""
        return sum(one.orphans for one in self.volumes)

    @property
    def orphan_bytes(self) -> int:
        """Their sizes."""
        return sum(one.orphan_bytes for one in self.volumes)


def run(
    prefix: str,
    container: Container,
    catalogue: Catalogue,
    control: Control,
    *,
    dry_run: bool = False,
) -> SweepReport:
    """Sweep every volume below ``prefix``.

    Memory is bounded by the number of volumes and manifests, not of objects.

    :param prefix: our installation's prefix, or a project's or volume's below it; ends in ``/``.
    :param dry_run: only report.
    :raises ValueError: the prefix is no such thing.
    :raises DeleteFailed: some orphans remain.
    :raises ChunkStoreError: the store does not answer; volumes before may have been swept.
    :raises TaskStopped: the task must end; volumes before may have been swept.
    """
    if not dry_run:
        settle(container, control)
    reports = [
        sweep_volume(volume_prefix, objects, container, catalogue, control, dry_run=dry_run)
        for volume_prefix, objects in objects_by_volume(container, prefix, control)
    ]
    own = keys.installation_prefix(naming.key_part_text(prefix.split("/", 1)[0]))
    return SweepReport(tuple(reports), dry_run, foreign_manifests(own, container, control))


def sweep_volume(
    volume_prefix: str,
    listed: Iterator[Candidate],
    container: Container,
    catalogue: Catalogue,
    control: Control,
    *,
    dry_run: bool = False,
) -> VolumeReport:
    """Sweep one volume, in a container whose listings show all that was put before this process began.

    :param listed: the objects of every kind below its prefix.
    :raises Exception: as :func:`run`.
    """
    _installation, project, volume = (naming.key_part_text(part) for part in volume_prefix.split("/")[:3])
    manifests: list[str] = []
    data_keys: list[str] = []
    spool = in_order(_noting(listed, manifests, data_keys))
    try:
        count = spool.count
        rows = catalogue.volume(project, volume)
        live, known, transient = set(rows.live), set(rows.known), set(rows.transient)
        unknown = [key for key in manifests if key not in known and key not in live]
        reported = tuple(
            key for key in unknown if key not in rows.announced and _backup(key) not in transient
        )
    except BaseException:
        spool.close()
        raise
    try:
        spool = spare(spool, sorted(live), unknown, container, control)
        kept = live.union(data_keys) - unneeded_data_keys(data_keys, rows.mac_ids, unknown, container)
    except (Damaged, UnsupportedFormat) as error:
        return VolumeReport(project, volume, count, stopped=str(error))
    skipped = locked = 0
    until: datetime | None = None
    begun = frozenset(rows.copies)

    def check() -> None:
        now = catalogue.deleting(project, volume)
        if now.copying or not begun.issuperset(now.copies):
            raise _CopyBegan

    with spool, Spool() as orphans:
        for candidate in spool:
            if candidate.key in kept:
                continue
            if rows.copying or _backup(candidate.key) in transient:
                skipped += 1
            else:
                orphans.add(candidate)
        if not dry_run:
            # A part of what came through the gate.
            try:
                delete_all(Doomed(orphans), container, control, check)
            except _CopyBegan:
                catalogue.deleted(project, volume)
                why = "a backup was copied there meanwhile; sweep again"
                return VolumeReport(project, volume, count, unknown_manifests=reported, stopped=why)
            except DeleteFailed as error:
                until = locked_until(error)
                if until is None:
                    raise
                locked = error.count
            catalogue.deleted(project, volume)
        return VolumeReport(
            project,
            volume,
            count,
            orphans.count,
            orphans.size,
            reported,
            skipped,
            locked=locked,
            locked_until=until,
        )


class _CopyBegan(Exception):
    """A copy began after the manifests were read."""


def _noting(listed: Iterator[Candidate], manifests: list[str], data_keys: list[str]) -> Iterator[Candidate]:
    for candidate in listed:
        if candidate.segment < 0:
            (data_keys if keys.is_data_key(candidate.key) else manifests).append(candidate.key)
        yield candidate


def _backup(key: str) -> str:
    return naming.key_part_text(key.split("/", 4)[3])
