"""Candidates for deletion, and the subtraction of those that manifests name; memory is bounded.

Each object belongs to one segment of one volume.  So one pass over several manifests side by side, segment
by segment, decides which objects they name.  Nothing may be deleted before each of these manifests was read
to its end, because only the end proves that a manifest is whole.  Until then, candidates wait in spools:
temporary files without a name, compressed, because the keys of a volume are much alike.
"""

from __future__ import annotations

import heapq
import io
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import groupby
from operator import attrgetter
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self

import zstandard

from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format.entries import SegmentEntry
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.ports import Control
from backupfw.errors import Damaged

#: Manifests read side by side.  Each costs a few MiB: its read buffer and one unpacked page.
READERS_AT_ONCE = 8
#: Below this size a manifest is read whole rather than asked for its origins first.
SMALL_MANIFEST_BYTES = 4 << 20
#: Candidates sorted in memory at a time, about 200 bytes each.
RUN_LENGTH = 100_000
#: Sorted runs merged at a time.
RUNS_AT_ONCE = 32
#: Lines are compressed in pieces of this many bytes.
_WRITE_BYTES = 1 << 16


class Candidate(NamedTuple):
    """One object that may be deleted; ordered by segment, then key.

    :ivar segment: the segment it belongs to; -1 for a manifest or a wrapped data key.
    :ivar key: its key, one of this format's (so it holds neither spaces nor line ends).
    :ivar size: bytes.
    """

    segment: int
    key: str
    size: int


def of_entry(entry: SegmentEntry) -> list[Candidate]:
    """Return the objects that a manifest names for one segment."""
    sizes = (entry.map.length, *(pack.size for pack in entry.packs))
    return [Candidate(entry.index, key, size) for key, size in zip(entry.object_keys(), sizes, strict=True)]


class Spool:
    """Candidates in a temporary file: written once, then read any number of times.  Not thread-safe.

    A context manager; the file has no name and goes when it is closed.

    :ivar count: how many it holds.
    :ivar size: the sum of their sizes, bytes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.size = 0
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._packer: zstandard.ZstdCompressionObj | None = zstandard.ZstdCompressor(level=1).compressobj()
        self._lines = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add(self, candidate: Candidate) -> None:
        """Append one; not after the first reading."""
        # Segments count from -1: one is added, so that no number needs a sign.
        self._lines += f"{candidate.segment + 1:x} {candidate.key} {candidate.size}\n".encode("ascii")
        self.count += 1
        self.size += candidate.size
        if len(self._lines) >= _WRITE_BYTES:
            self._write()

    def _write(self) -> None:
        assert self._packer is not None, "a spool that was read takes no more"
        self._file.write(self._packer.compress(bytes(self._lines)))
        self._lines.clear()

    def extend(self, candidates: Iterable[Candidate]) -> None:
        """Append all."""
        for candidate in candidates:
            self.add(candidate)

    def __iter__(self) -> Iterator[Candidate]:
        """Yield all in the order they were added; one reading at a time."""
        if self._packer is not None:
            self._write()
            self._file.write(self._packer.flush())
            self._packer = None
        self._file.seek(0)
        stream = zstandard.ZstdDecompressor().stream_reader(self._file, closefd=False)
        for line in io.TextIOWrapper(stream, encoding="ascii", newline="\n"):
            segment, key, size = line.split(" ")
            yield Candidate(int(segment, 16) - 1, key, int(size))

    def close(self) -> None:
        """Release the file; idempotent."""
        self._file.close()


def in_order(candidates: Iterable[Candidate]) -> Spool:
    """Return the candidates sorted and without doubles (one entry per key), whatever order they come in.

    Memory is bounded: runs of :data:`RUN_LENGTH` are sorted, spooled and merged.
    """
    with ExitStack() as stack:
        runs: list[Spool] = []
        run: list[Candidate] = []

        def close_run() -> None:
            run.sort()
            runs.append(stack.enter_context(Spool()))
            runs[-1].extend(run)
            run.clear()
            if len(runs) == RUNS_AT_ONCE:
                merged = stack.enter_context(Spool())
                merged.extend(heapq.merge(*runs))
                for done in runs:
                    done.close()
                runs[:] = [merged]

        for candidate in candidates:
            run.append(candidate)
            if len(run) == RUN_LENGTH:
                close_run()
        run.sort()
        result = Spool()
        try:
            # The same key comes twice with two sizes only if a record and a listing disagree.
            for _key, same in groupby(heapq.merge(run, *runs), key=attrgetter("key")):
                result.add(next(same))
        except BaseException:
            result.close()
            raise
        return result


class _Position:
    """A manifest's entries, followed segment by segment."""

    def __init__(self, reader: ManifestReader) -> None:
        self._entries = reader.segments()
        self._next = next(self._entries, None)

    def at(self, segment: int) -> SegmentEntry | None:
        """Return the entry of that segment, if it has one; segments are asked for in ascending order."""
        while self._next is not None and self._next.index < segment:
            self._next = next(self._entries, None)
        return self._next if self._next is not None and self._next.index == segment else None

    def finish(self, control: Control) -> None:
        """Read on to the end, where the manifest is proven whole."""
        for entry in self._entries:
            if entry.index % 1024 == 0:
                control.check()


def _unnamed(
    candidates: Iterable[Candidate], readers: Sequence[ManifestReader], control: Control
) -> Iterator[Candidate]:
    """Yield the candidates none of the manifests names; proven only when it has ended normally."""
    positions = [_Position(reader) for reader in readers]
    for segment, group in groupby(candidates, key=attrgetter("segment")):
        control.check()
        named: set[str] = set()
        for position in positions:
            entry = position.at(segment)
            if entry is not None:
                named.update(entry.object_keys())
        for candidate in group:
            if candidate.key not in named:
                yield candidate
    for position in positions:
        position.finish(control)


def named_by(spool: Spool, manifest: str, container: Container, control: Control) -> tuple[int, int]:
    """Return how many of the candidates a manifest names, and the sum of their sizes.

    :param spool: candidates in order; left as it is.
    :raises Damaged: the manifest is missing or wrong.
    :raises UnsupportedFormat: it is of a version not known here.
    :raises ChunkStoreError: the store did not answer.
    """
    count, size = spool.count, spool.size
    for candidate in _unnamed(spool, [ManifestReader(container, manifest)], control):
        count -= 1
        size -= candidate.size
    return count, size


def subtract(
    spool: Spool,
    manifests: Sequence[str],
    container: Container,
    control: Control,
    origins: set[str] | None = None,
    may_go: Collection[str] = (),
) -> Spool:
    """Take out every candidate that one of the manifests names; each manifest is read once.

    When this returns, all the manifests were read and verified to the end (but for a large one that
    its own verified pages show to name nothing of ``origins``).

    :param spool: candidates in order; closed by this call, whatever happens.
    :param manifests: keys of the manifests whose objects must stay.
    :param origins: origins of all candidates, where known.
    :param may_go: those of the manifests that may be missing, or go while they are read: they name nothing
        any more.
    :return: what is left, in order; the caller closes it.
    :raises Damaged: a manifest is wrong, or missing and may not go.
    :raises UnsupportedFormat: a manifest is of a version not known here.
    :raises ChunkStoreError: the store did not answer.
    """
    pending = list(dict.fromkeys(manifests))
    try:
        while pending:
            now, later = pending[:READERS_AT_ONCE], pending[READERS_AT_ONCE:]
            try:
                rest = _without(spool, now, container, control, origins)
            except Damaged as error:
                if error.key not in may_go or not objects.is_missing(container, error.key):
                    raise
                pending.remove(error.key)
                continue
            spool.close()
            spool, pending = rest, later
    except BaseException:
        spool.close()
        raise
    return spool


def _without(
    spool: Spool, manifests: Sequence[str], container: Container, control: Control, origins: set[str] | None
) -> Spool:
    """Return those candidates, in a spool of their own, that none of a few manifests names."""
    readers = [ManifestReader(container, key) for key in manifests]
    rest = Spool()
    try:
        rest.extend(_unnamed(spool, [one for one in readers if _may_name(one, origins)], control))
    except BaseException:
        rest.close()
        raise
    return rest


def _may_name(reader: ManifestReader, origins: set[str] | None) -> bool:
    if origins is None or reader.totals.manifest_bytes <= SMALL_MANIFEST_BYTES:
        return True
    return not origins.isdisjoint(reader.origins())
