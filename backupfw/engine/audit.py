"""Audit: does a container hold exactly what its live manifests name?

The volumes are audited one after the other, in the sweep's order: list the objects, *then* read the
database's rows, *then* read the manifests.  The findings are objects that are listed and not named, and
objects that are named and not listed.  Objects of backups that a task works on are left out, and while a
backup is copied to the container, all that its volume has too much.  Nothing is
deleted, and no block is read: a verification proves what the objects hold (:mod:`backupfw.engine.verify`).

The service may work at the same time.  So a volume with findings is audited once more, and only what was
found both times counts: a deletion between listing and rows, or a lagging listing, is not found twice.  An
object that seems to be missing is also requested by its key.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Protocol

from backupfw import naming
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.engine import objects
from backupfw.engine.candidates import Candidate, Spool, in_order, of_entry, subtract
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.listing import foreign_manifests, objects_by_volume
from backupfw.engine.ports import Control
from backupfw.engine.removal import unneeded_data_keys
from backupfw.engine.sweep import Catalogue as SweepCatalogue
from backupfw.engine.sweep import VolumeRows
from backupfw.errors import Damaged, UnsupportedFormat

ORPHAN = "object named by nothing"
MISSING = "object missing"
SIZE = "object of another size"
UNREADABLE = "manifest unreadable"
UNKNOWN = "manifest unknown"
LOCKED = "locked object named by nothing"
STRANGE = "object of no known kind"

#: Most findings of one volume that are reported, and most of all volumes: a store that lost everything would
#: have millions.
MOST, MOST_OF_ALL = 100, 1000


class Catalogue(SweepCatalogue, Protocol):
    """The database, as the audit asks it."""

    def volumes(self) -> Iterable[tuple[str, str]]:
        """Return project and volume of all live manifests of ours in the container that is audited."""


@dataclass(frozen=True, slots=True, order=True)
class Discrepancy:
    """One difference between the store and what manifests name.

    :ivar kind: one of the constants of this module.
    :ivar key: the object's.
    :ivar problem: more about it.
    """

    kind: str
    key: str
    problem: str = ""


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit of one container found.

    :ivar volumes: volumes looked at.
    :ivar objects: objects listed.
    :ivar discrepancies: sorted; of each volume the first :data:`MOST` at most, in all :data:`MOST_OF_ALL`.
    :ivar more: how many there are beside them.
    :ivar locked: objects that nothing names, and that nobody can delete yet: no discrepancies, because a
        sweep deletes them after that.
    :ivar unknown: how many manifests of ours the database does not know.
    :ivar foreign: manifests of other installations beside ours, by installation.
    """

    volumes: int
    objects: int
    discrepancies: tuple[Discrepancy, ...]
    more: int = 0
    unknown: int = 0
    locked: tuple[Discrepancy, ...] = ()
    foreign: Mapping[str, int] = field(default_factory=dict)


class _Found:
    """The discrepancies of a container: the first ones, and the number of the others."""

    def __init__(self) -> None:
        self.first: list[Discrepancy] = []
        self.locked: list[Discrepancy] = []
        self.more = 0
        self.unknown = 0

    def add(self, discrepancies: Iterable[Discrepancy]) -> None:
        for one in sorted(discrepancies):
            self.unknown += one.kind == UNKNOWN
            if one.kind == LOCKED:
                self.locked.append(one)
            elif len(self.first) < MOST_OF_ALL:
                self.first.append(one)
            else:
                self.more += 1


def run(prefix: str, container: Container, catalogue: Catalogue, control: Control) -> AuditReport:
    """Audit everything below ``prefix``.

    Memory is bounded by the number of volumes, and of one volume's manifests, not of objects.

    :param prefix: our installation's prefix, with its slash.
    :raises ChunkStoreError: the store does not answer.
    :raises TaskStopped: the caller wants it to end.
    """
    strange: list[str] = []

    def note(key: str) -> None:
        if len(strange) < MOST:
            strange.append(key)

    seen: set[str] = set()
    count = 0
    found = _Found()
    for volume_prefix, listed in objects_by_volume(container, prefix, control, note):
        seen.add(volume_prefix)
        number, first = _look(volume_prefix, listed, container, catalogue, control)
        count += number
        found.add(_confirmed(volume_prefix, first, container, catalogue, control))
    # Volumes without any object: the listing did not show them.
    for project, volume in catalogue.volumes():
        volume_prefix = keys.volume_prefix(prefix.rstrip("/"), project, volume)
        if volume_prefix not in seen:
            seen.add(volume_prefix)
            _, first = _look(volume_prefix, (), container, catalogue, control)
            found.add(_confirmed(volume_prefix, first, container, catalogue, control))
    found.add(Discrepancy(STRANGE, key) for key in strange)
    foreign = foreign_manifests(prefix, container, control)
    return AuditReport(
        len(seen),
        count,
        tuple(sorted(found.first)),
        found.more,
        found.unknown,
        tuple(found.locked),
        foreign,
    )


def _confirmed(
    volume_prefix: str,
    first: set[Discrepancy],
    container: Container,
    catalogue: Catalogue,
    control: Control,
) -> set[Discrepancy]:
    """Return what of a first look's findings a second one finds as well."""
    if not first:
        return first
    again = objects_by_volume(container, volume_prefix, control)
    listed = (candidate for _, candidates in again for candidate in candidates)
    return first & _look(volume_prefix, listed, container, catalogue, control)[1]


def _look(
    volume_prefix: str,
    listed: Iterable[Candidate],
    container: Container,
    catalogue: Catalogue,
    control: Control,
) -> tuple[int, set[Discrepancy]]:
    """Look at one volume; returns how many objects it has and what is wrong."""
    _installation, project, volume = (naming.key_part_text(part) for part in volume_prefix.split("/")[:3])
    with in_order(listed) as present:
        rows = catalogue.volume(project, volume)
        live, transient = sorted(rows.live), set(rows.transient)
        data_keys = {one.key for one in present if one.segment < 0 and keys.is_data_key(one.key)}
        listed_manifests = {one.key for one in present if one.segment < 0} - data_keys
        unknown = {key for key in listed_manifests.difference(rows.known) if _backup(key) not in transient}
        copying = rows.copying
        found = {
            Discrepancy(UNKNOWN, key, "the database does not know it")
            for key in unknown
            if key not in rows.announced
        }
        named, needed_keys, unreadable = _named(volume_prefix, live, container, control)
        found |= unreadable
        found |= {Discrepancy(MISSING, key) for key in needed_keys - data_keys if _is_missing(container, key)}
        with named, Spool() as orphans:
            for candidate, difference in differences(present, named):
                if candidate.key in data_keys:
                    continue
                if difference.kind == ORPHAN:
                    moves = copying or _backup(candidate.key) in transient
                    if not moves and candidate.key not in unknown:
                        orphans.add(candidate)
                elif len(found) < MOST and (difference.kind == SIZE or _is_missing(container, candidate.key)):
                    found.add(difference)
            # What an unreadable manifest names is not known, so nothing can be called an orphan.
            if not unreadable:
                found |= _orphans(orphans, unknown, container, control)
                found |= _unneeded(data_keys, rows, listed_manifests.difference(live), container)
        return present.count, found


def _named(
    volume_prefix: str, live: Iterable[str], container: Container, control: Control
) -> tuple[Spool, set[str], set[Discrepancy]]:
    """Return everything that the live manifests name below the prefix, and those that cannot be read.

    In the middle: the keys of the wrapped data keys that they name, below the prefix, too.
    """
    unreadable: set[Discrepancy] = set()
    data_keys: set[str] = set()

    def names() -> Iterator[Candidate]:
        for key in live:
            try:
                reader = ManifestReader(container, key)
                yield Candidate(-1, key, reader.totals.manifest_bytes)
                if reader.head.key_id is not None and key.startswith(volume_prefix):
                    data_keys.add(keys.data_key_key(volume_prefix, reader.head.key_id))
                for number, entry in enumerate(reader.segments()):
                    if number % 256 == 0:
                        control.check()
                    yield from (one for one in of_entry(entry) if one.key.startswith(volume_prefix))
            except (Damaged, UnsupportedFormat) as error:
                unreadable.add(Discrepancy(UNREADABLE, key, str(error)))

    return in_order(names()), data_keys, unreadable


def differences(
    present: Iterable[Candidate], named: Iterable[Candidate]
) -> Iterator[tuple[Candidate, Discrepancy]]:
    """Compare two collections in order: what only one has, and what has two sizes.

    :param present: what was listed.
    :param named: what manifests name.
    """
    sides = heapq.merge(((one, 0) for one in present), ((one, 1) for one in named))
    for key, group in groupby(sides, key=lambda item: item[0].key):
        both = {side: one for one, side in group}
        if 1 not in both:
            yield both[0], Discrepancy(ORPHAN, key, f"{both[0].size} bytes")
        elif 0 not in both:
            yield both[1], Discrepancy(MISSING, key)
        elif both[0].size != both[1].size:
            sizes = f"{both[0].size} bytes instead of {both[1].size}"
            yield both[1], Discrepancy(SIZE, key, sizes)


def _orphans(
    candidates: Iterable[Candidate], unknown: Collection[str], container: Container, control: Control
) -> set[Discrepancy]:
    """Return the candidates that no unknown manifest names either."""
    spool = Spool()
    spool.extend(candidates)
    try:
        spool = subtract(spool, sorted(unknown), container, control)
    except (Damaged, UnsupportedFormat):
        # The manifest itself is a finding already.
        return set()
    with spool:
        return {
            _orphan(one.key, f"{one.size} bytes", container)
            for one, _ in zip(spool, range(MOST), strict=False)
        }


def _orphan(key: str, problem: str, container: Container) -> Discrepancy:
    """Return an object that nothing names as what it is: one to delete now, or when its lock has ended."""
    try:
        until = container.locked_until(key)
    except ChunkStoreError as error:
        if error.temporary:
            raise
        # It has gone, or these credentials may not ask for locks.
        until = None
    if until is None:
        return Discrepancy(ORPHAN, key, problem)
    return Discrepancy(LOCKED, key, f"{problem}, until {until:%Y-%m-%d %H:%M} UTC")


def _unneeded(
    data_keys: Collection[str], rows: VolumeRows, manifests: Collection[str], container: Container
) -> set[Discrepancy]:
    """Return the wrapped data keys that no manifest needs."""
    try:
        unneeded = unneeded_data_keys(data_keys, rows.mac_ids, manifests, container)
    except (Damaged, UnsupportedFormat):
        # The manifest itself is a finding already.
        return set()
    return {_orphan(key, "a data key", container) for key in unneeded}


def _is_missing(container: Container, key: str) -> bool:
    try:
        objects.read(container, key, 0, 1)
    except Damaged:
        return True
    return False


def _backup(key: str) -> str:
    return naming.key_part_text(key.split("/", 4)[3])
