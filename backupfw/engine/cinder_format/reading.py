"""Reading a task of a chain: its bytes in order, compared with the objects' MD5 and the blocks' hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

from backupfw.engine import objects
from backupfw.engine.cinder_format import names
from backupfw.engine.cinder_format.chain import DataObject, Part, Task, missing
from backupfw.engine.cinder_format.compression import ObjectReader
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.pool import Halt
from backupfw.errors import Damaged

#: About so many bytes are read, checked and given away at a time.
WINDOW_BYTES = 1 << 20
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Zeros:
    """A range that no object has."""

    length: int


class TaskReader:
    """Reads tasks, one after the other.  Of one thread; memory: a window, and a range of each open object.

    :param halt: asked about once per MiB.
    """

    def __init__(self, halt: Halt) -> None:
        self._halt = halt

    def windows(
        self, task: Task, leave_out: Collection[str] = frozenset()
    ) -> Iterator[tuple[int, memoryview | Zeros]]:
        """Yield the bytes of a task in order, with their places; a view is valid until the next is asked for.

        Every block is compared with its hash before it is yielded.  An object's MD5 and length are known only
        at its end; errors of these come after its bytes were yielded.

        :param leave_out: keys of objects that are not read: their bytes are zeros and not compared.
        :raises Damaged: an object is missing or wrong.
        :raises ChunkStoreError: the store could not be read.
        :raises TaskStopped: the halt said so.
        """
        block = task.block_size
        size = max(1, WINDOW_BYTES // block) * block
        buffer = memoryview(bytearray(size))
        opened = _Opened(leave_out)
        check = _BlockCheck(task)
        begin = task.first
        filled = 0
        for part in task.parts:
            position = part.start
            opened.finish_before(position)
            while position < part.end:
                self._halt.check()
                if part.source is None and not filled and part.end - position >= size:
                    length = (part.end - position) // size * size
                    check.zeros(position, length)
                    yield position, Zeros(length)
                    position = begin = position + length
                    continue
                wanted = min(size - filled, part.end - position)
                target = buffer[filled : filled + wanted]
                if part.source is None:
                    target[:] = bytes(wanted)
                else:
                    wanted = opened.read_into(part.source, position, target)
                check.comes_from(part)
                filled += wanted
                position += wanted
                if filled == size or position == task.end:
                    check.data(begin, buffer[:filled], leave_out)
                    yield begin, buffer[:filled]
                    begin, filled = position, 0
        opened.finish_before(None)


class _Opened:
    """The objects of a task that are being read."""

    def __init__(self, leave_out: Collection[str]) -> None:
        self._leave_out = leave_out
        self._readers: dict[DataObject, ObjectReader] = {}
        self._positions: dict[DataObject, int] = {}

    def read_into(self, source: DataObject, position: int, target: memoryview) -> int:
        """Fill some of the target with an object's bytes at a place in the volume; returns how many."""
        if source.key in self._leave_out:
            target[:] = bytes(len(target))
            return len(target)
        try:
            reader = self._reader(source)
            reader.skip(position - self._positions[source])
            data = reader.read(len(target))
        except BadBytes as error:
            raise objects.damaged(source.container, source.key, str(error)) from error
        target[: len(data)] = data
        self._positions[source] = position + len(data)
        return len(data)

    def _reader(self, source: DataObject) -> ObjectReader:
        if source not in self._readers:
            if source.size is None:
                raise missing(source.container, source.key)
            entry = source.entry
            self._readers[source] = ObjectReader(
                source.container, source.key, source.size, entry.codec, entry.length, entry.md5
            )
            self._positions[source] = entry.offset
        return self._readers[source]

    def finish_before(self, position: int | None) -> None:
        """Finish the objects that end before a place in the volume; None: all of them."""
        for source, reader in list(self._readers.items()):
            if position is None or source.end <= position:
                try:
                    reader.finish()
                except BadBytes as error:
                    raise objects.damaged(source.container, source.key, str(error)) from error
                del self._readers[source]


class _BlockCheck:
    """Compares blocks with their hashes, and knows which object is wrong."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._parts: list[Part] = []

    def comes_from(self, part: Part) -> None:
        """Note that the bytes that come next are a part's."""
        if not self._parts or self._parts[-1] is not part:
            self._parts.append(part)

    def zeros(self, start: int, length: int) -> None:
        """Check blocks that no object has."""
        hashes, block = self._task.hashes, self._task.block_size
        if hashes is None:
            return
        first = (start - self._task.first) // block * _DIGEST_BYTES
        count = length // block
        if hashes[first : first + count * _DIGEST_BYTES] != _zero_hash(block) * count:
            raise self._wrong_gap(start)

    def data(self, start: int, window: memoryview, leave_out: Collection[str]) -> None:
        """Check the blocks of a window."""
        hashes, block = self._task.hashes, self._task.block_size
        parts, self._parts = self._parts, self._parts[-1:]
        if hashes is None:
            return
        first = (start - self._task.first) // block * _DIGEST_BYTES
        for number, at in enumerate(range(0, len(window), block)):
            expected = hashes[first + number * _DIGEST_BYTES :][:_DIGEST_BYTES]
            if hashlib.sha256(window[at : at + block]).digest() != expected:
                self._blame(parts, start + at, start + at + block, leave_out)

    def _blame(self, parts: list[Part], start: int, end: int, leave_out: Collection[str]) -> None:
        """Raise the error about a wrong block, unless it has bytes of an object that was left out."""
        found = (part.source for part in parts if part.start < end and part.end > start)
        given = [one for one in found if one is not None]
        if any(one.key in leave_out for one in given):
            return
        if not given:
            raise self._wrong_gap(start)
        wrong = given[0]
        raise objects.damaged(
            wrong.container, wrong.key, f"the block at byte {start} does not match its SHA-256"
        )

    def _wrong_gap(self, start: int) -> Damaged:
        place = self._task.hashes_of
        assert place is not None
        reason = f"no object has the bytes at {start}, which are not zero"
        return objects.damaged(place.container, names.metadata_key(place.prefix), reason)


@lru_cache(maxsize=8)
def _zero_hash(block: int) -> bytes:
    return hashlib.sha256(bytes(block)).digest()
