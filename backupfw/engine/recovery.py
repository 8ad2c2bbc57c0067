"""Recovery: finds the backups in a container from its objects alone, for a database that does not know them.

The container is listed once.  Each manifest is read once, a few at a time, and what the manifests of a volume
name is compared with the listing.  Memory is bounded by the number of volumes, and of one volume's manifests;
what they name waits in spools.

What is found here comes from stored bytes, so it may be hostile: readers check the format and its bounds, and
the caller checks names and texts.

**The lineage.**  A manifest shares with its base, so its base names all that the manifest does not own.
Where the origins confirm this, the base is the manifest's neighbour in the tree.  Otherwise (the base was
deleted or cannot be read, the backup has two manifests, or the manifest names what its base does not name)
the manifest is *detached*: every manifest of the volume may be its neighbour, as after an import.  So if two
manifests share an object, the path from each of them upwards leads to the one that owns it, or to a detached
one that names it.
"""

from __future__ import annotations

import contextlib
import threading
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import IntegrityError, NotFound
from backupfw.engine import objects
from backupfw.engine.audit import MISSING, ORPHAN, differences
from backupfw.engine.candidates import READERS_AT_ONCE, Candidate, Spool, in_order, named_by, of_entry
from backupfw.engine.format import keys
from backupfw.engine.format.binary import dump_json
from backupfw.engine.format.geometry import MAX_LENGTH
from backupfw.engine.format.manifest import ManifestHead, ManifestReader
from backupfw.engine.format.sealing import FindKey
from backupfw.engine.listing import all_by_volume, objects_by_volume
from backupfw.engine.pool import Halt, Streams
from backupfw.engine.ports import Control
from backupfw.errors import Damaged, DataKeyMissing, UnsupportedFormat

#: Records of this many bytes are kept; longer ones are read again when they are needed.
_KEPT_RECORD = 16 << 10
#: Keys that are known to be in a volume's spool already; most manifests name what others name, too.
_KEPT_KEYS = 100_000
#: Numbers of origins that are kept of a volume's manifests, four bytes each; the rest are detached.
_KEPT_ORIGINS = 8 << 20
#: Objects that a listing does not show are requested by their keys, until so many of a volume are missing.
_MOST_REQUESTS = 1000


@dataclass(slots=True)
class FoundManifest:
    """A manifest that was listed.

    :ivar key: its key.
    :ivar head: what it says of its backup; None: it cannot be read.  ``record`` is empty if it was not kept
        (``is_long``), or if its data key is missing (``is_sealed``).
    :ivar object_count: objects that its backup put and it names, itself included; with ``stored_bytes`` and
        ``referenced_bytes`` as :class:`backupfw.engine.verify.Look` has them.
    :ivar missing: how many of the objects that it names are missing or have another size.
    :ivar problem: why it, or what is encrypted in it, cannot be read.
    :ivar is_damaged: it is proven that the manifest itself is damaged.
    :ivar base: key of the manifest of the volume that is its neighbour in the lineage; None: it has none.
    :ivar detached: its neighbours are not known.
    """

    key: str
    head: ManifestHead | None = None
    object_count: int = 0
    stored_bytes: int = 0
    referenced_bytes: int = 0
    missing: int = 0
    problem: str | None = None
    is_damaged: bool = False
    is_long: bool = False
    is_sealed: bool = False
    base: str | None = None
    detached: bool = True
    origins: array[int] | None = None


@dataclass(frozen=True, slots=True)
class Unfinished:
    """What an attempt without a manifest left, as far as no other manifest names it.

    :ivar origin: the attempt's prefix.
    """

    origin: str
    objects: int


@dataclass(frozen=True, slots=True)
class FoundVolume:
    """What was found below one volume's prefix.

    :ivar manifests: a base before those that share with it.
    :ivar unfinished: sorted; none if a manifest cannot be read, because what it names is not known.
    """

    prefix: str
    manifests: Sequence[FoundManifest] = field(default=())
    unfinished: Sequence[Unfinished] = field(default=())


class _Volume:
    """A volume whose manifests are being read.  ``add`` is called from many threads."""

    def __init__(self, prefix: str, present: Spool, manifests: int) -> None:
        self.prefix = prefix
        self.present = present
        self.left = manifests
        self.found: list[FoundManifest] = []
        self._named = Spool()
        self._seen: set[str] = set()
        self._numbers: dict[str, int] = {}
        self._kept = 0
        self._lock = threading.Lock()

    def add(self, candidates: Sequence[Candidate]) -> None:
        """Keep what a manifest names."""
        with self._lock:
            for one in candidates:
                if one.key not in self._seen:
                    if len(self._seen) >= _KEPT_KEYS:
                        self._seen.clear()
                    self._seen.add(one.key)
                    self._named.add(one)

    def numbers(self, origins: set[str]) -> array[int] | None:
        """Return the origins as numbers of this volume; None if there are too many."""
        with self._lock:
            self._kept += len(origins)
            if self._kept > _KEPT_ORIGINS:
                return None
            return array("I", sorted(self.number(one) for one in origins))

    def number(self, origin: str) -> int:
        """Return the number of an origin."""
        return self._numbers.setdefault(origin, len(self._numbers))

    def by_backup(self) -> Mapping[str, set[int]]:
        """Return the numbers of each backup's origins, by the backup's prefix."""
        found: defaultdict[str, set[int]] = defaultdict(set)
        for origin, number in self._numbers.items():
            found[_backup_of(origin)].add(number)
        return found

    def named(self) -> Spool:
        """Return what the manifests name, in order; once."""
        with self._named:
            return in_order(self._named)

    def close(self) -> None:
        """Release the files; idempotent."""
        self.present.close()
        self._named.close()


def run(
    prefix: str,
    container: Container,
    control: Control,
    find_key: Callable[[str], FindKey],
) -> Iterator[FoundVolume]:
    """Yield what is below a prefix, volume by volume, as they are read.

    :param prefix: an installation's, with its slash; empty: those of all installations in the container.
    :param find_key: returns what finds the data keys of the volume with a prefix.
    :raises Unavailable: the container is missing.
    :raises ChunkStoreError: the store does not answer; what was yielded is right.
    :raises KeyStoreError: the key store does not answer.
    """
    objects.prove_container(container, prefix)
    opened: set[_Volume] = set()
    ready: deque[_Volume] = deque()
    finders = cache(find_key)

    def jobs() -> Iterator[tuple[_Volume, str]]:
        listed = (
            objects_by_volume(container, prefix, control) if prefix else all_by_volume(container, control)
        )
        for volume_prefix, candidates in listed:
            manifests: list[str] = []
            volume = _Volume(volume_prefix, in_order(_noting(candidates, manifests)), len(manifests))
            opened.add(volume)
            if not manifests:
                ready.append(volume)
            for key in manifests:
                yield volume, key

    def finished() -> Iterator[FoundVolume]:
        while ready:
            volume = ready.popleft()
            opened.remove(volume)
            with contextlib.closing(volume):
                yield _finish(volume, container, control)

    halt = Halt(control)
    streams: Streams[tuple[_Volume, str], tuple[_Volume, FoundManifest]] = Streams(
        lambda: _Reader(container, halt, finders), READERS_AT_ONCE, halt
    )
    try:
        with contextlib.closing(streams.run(jobs())) as results:
            for volume, found in results:
                volume.found.append(found)
                volume.left -= 1
                if not volume.left:
                    ready.append(volume)
                yield from finished()
        yield from finished()
    finally:
        for volume in (*opened, *ready):
            volume.close()


def _noting(listed: Iterator[Candidate], manifests: list[str]) -> Iterator[Candidate]:
    """Pass objects on, and add the keys of manifests among them to a list; wrapped data keys are left out."""
    for candidate in listed:
        if candidate.segment < 0:
            if keys.is_data_key(candidate.key):
                continue
            manifests.append(candidate.key)
        yield candidate


class _Reader:
    """One stream: reads manifests to their ends."""

    def __init__(self, container: Container, halt: Halt, finders: Callable[[str], FindKey]) -> None:
        self._container = container
        self._halt = halt
        self._finders = finders

    def work(self, item: tuple[_Volume, str]) -> tuple[_Volume, FoundManifest]:
        volume, key = item
        found = FoundManifest(key)
        try:
            self._read(volume, found)
        except UnsupportedFormat as error:
            found.head, found.problem = None, str(error)
        except Damaged as error:
            # An answer that was cut short, or an object that went meanwhile, proves no damage.
            found.head, found.problem = None, error.reason
            found.is_damaged = not isinstance(error.__cause__, NotFound | IntegrityError)
        return volume, found

    def _read(self, volume: _Volume, found: FoundManifest) -> None:
        reader = ManifestReader(self._container, found.key)
        try:
            reader.unseal(self._finders(volume.prefix))
        except DataKeyMissing as error:
            found.is_sealed, found.problem = True, str(error)
        head = reader.head
        origin = head.origin
        own = keys.backup_prefix(origin.installation, origin.project, origin.volume, origin.backup)
        count, stored, origins = 1, reader.totals.manifest_bytes, set[str]()
        volume.add([Candidate(-1, found.key, stored)])
        for number, entry in enumerate(reader.segments()):
            if number % 256 == 0:
                self._halt.check()
            candidates = of_entry(entry)
            volume.add(candidates)
            origins |= entry.origins()
            for one in candidates:
                if one.key.startswith(own):
                    count += 1
                    stored += one.size
        if head.record and len(dump_json(dict(head.record))) > _KEPT_RECORD:
            head, found.is_long = replace(head, record={}), True
        found.head = head
        # What it says of sizes is compared with the listing; until then the sums only have to be numbers.
        found.object_count, found.stored_bytes = count, min(stored, MAX_LENGTH)
        referenced = reader.totals.referenced_bytes + reader.totals.manifest_bytes
        found.referenced_bytes = min(referenced, MAX_LENGTH)
        found.origins = volume.numbers(origins)

    def close(self) -> None:
        """Nothing is kept."""


def _finish(volume: _Volume, container: Container, control: Control) -> FoundVolume:
    """Compare what a volume's manifests name with the listing, and find out its lineage."""
    left: Counter[str] = Counter()
    requested = 0
    with volume.named() as named, Spool() as bad:
        for candidate, difference in differences(volume.present, named):
            if difference.kind == ORPHAN:
                left[keys.origin_of(candidate.key)] += 1
            elif difference.kind == MISSING and requested < _MOST_REQUESTS:
                if objects.is_missing(container, candidate.key):
                    requested += 1
                    bad.add(candidate)
            else:
                bad.add(candidate)
        if bad.count:
            for found in volume.found:
                if found.head is not None:
                    found.missing = named_by(bad, found.key, container, control)[0]
    unreadable = any(found.head is None for found in volume.found)
    unfinished = () if unreadable else tuple(Unfinished(*one) for one in sorted(left.items()))
    return FoundVolume(volume.prefix, _in_lineage(volume), unfinished)


def _in_lineage(volume: _Volume) -> list[FoundManifest]:
    """Set the base of each manifest where it is proven, and return them with bases first."""
    by_key = {found.key: found for found in volume.found}
    manifests = Counter(_backup_of(keys.origin_of(found.key)) for found in volume.found)
    own = volume.by_backup()
    for found in volume.found:
        prefix = _backup_of(keys.origin_of(found.key))
        if manifests[prefix] == 1:
            _find_base(found, by_key, own.get(prefix, set()))
    ordered: list[FoundManifest] = []
    placed: set[str] = set()
    for found in sorted(volume.found, key=lambda one: one.key):
        line: dict[str, FoundManifest] = {}
        while found.key not in placed:
            line[found.key] = found
            if found.base is None or found.base in placed:
                break
            if found.base in line:
                # No manifest is older than itself: what these say of their bases is not true.
                found.base, found.detached = None, True
                break
            found = by_key[found.base]
        ordered.extend(reversed(line.values()))
        placed.update(line)
    return ordered


def _find_base(found: FoundManifest, by_key: Mapping[str, FoundManifest], own: set[int]) -> None:
    """Set the base of a manifest if the origins confirm it.

    :param own: numbers of the origins of its own backup, which has no other manifest.
    """
    if found.head is None or found.origins is None:
        return
    others = set(found.origins) - own
    if found.head.base is None:
        found.detached = bool(others)
        return
    base = by_key.get(found.head.base)
    if base is None or base is found or base.origins is None:
        return
    if others.issubset(base.origins):
        found.base, found.detached = base.key, False


def _backup_of(origin: str) -> str:
    """Return the prefix of the backup of an origin, without its slash."""
    return origin.rpartition("/")[0]
