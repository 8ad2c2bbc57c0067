"""A chain of links as one map of the volume: each range belongs to the newest link that has it.

The data objects of all links may be millions, so they are kept in a temporary file, sorted by their place.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound, Unavailable
from backupfw.engine import objects
from backupfw.engine.cinder_format import metadata, names
from backupfw.engine.cinder_format.metadata import Entry, Hashes, Head
from backupfw.engine.format.binary import BadBytes
from backupfw.engine.ports import Control
from backupfw.errors import InvalidInput

#: Most links of a chain, and most data objects of all of them.
MAX_LINKS, MAX_OBJECTS = 1000, 1 << 24
#: Blocks where there is no list of hashes, bytes.
PLAIN_BLOCK = 32 << 10
#: A task ends where no object goes on, after so many bytes; or anywhere, when it has so many parts or blocks.
TASK_BYTES, TASK_PARTS, TASK_BLOCKS = 32 << 20, 1 << 15, 1 << 17
#: Most parts of a task: only a block that is cut into thousands of parts can make it exceed ``TASK_PARTS``.
MAX_PARTS = 8 * TASK_PARTS
_CACHE_BYTES = 8 << 20
_CHECK_EVERY = 1000

_SCHEMA = """
CREATE TABLE objects (
    offset INTEGER, link INTEGER, length INTEGER, number INTEGER, codec INTEGER, md5 BLOB,
    PRIMARY KEY (offset, link)
) WITHOUT ROWID;
CREATE TABLE sizes (link INTEGER, number INTEGER, size INTEGER, PRIMARY KEY (link, number)) WITHOUT ROWID;
"""
_IN_ORDER = """
SELECT objects.offset, objects.link, objects.length, objects.number, objects.codec, objects.md5, sizes.size
FROM objects LEFT JOIN sizes ON sizes.link = objects.link AND sizes.number = objects.number
WHERE objects.offset + objects.length > ? ORDER BY objects.offset, objects.link
"""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a link is."""

    container: Container
    prefix: str


@dataclass(frozen=True, slots=True)
class DataObject:
    """A data object of a link.

    :ivar size: stored bytes; None: the listing does not show it.
    """

    container: Container
    key: str
    entry: Entry
    size: int | None

    @property
    def end(self) -> int:
        """Past its last byte in the volume."""
        return self.entry.offset + self.entry.length


@dataclass(slots=True)
class Part:
    """A range of the volume, and the object that has it; None: zeros."""

    start: int
    end: int
    source: DataObject | None


@dataclass(slots=True)
class Task:
    """A range of the volume to read: its parts, in order and without gaps.

    :ivar block_size: of the hashes; ``first`` and every ``end`` but the volume's own are multiples of it.
    :ivar hashes: of its blocks, joined; None: there are none.
    :ivar hashes_of: the link that has them.
    """

    first: int
    end: int
    parts: list[Part]
    block_size: int
    hashes: bytes | None = None
    hashes_of: Place | None = None


@dataclass(slots=True)
class Link:
    """What is known of a link.

    :ivar head: without texts, but for the newest one.
    :ivar stored_bytes: of all its objects.
    :ivar hashes_bytes: length of its list of hashes; None: it has none.
    """

    place: Place
    head: Head
    object_count: int = 0
    stored_bytes: int = 0
    hashes_bytes: int | None = None


@dataclass(slots=True)
class _Listed:
    metadata: int | None = None
    hashes: int | None = None
    bytes: int = 0


class Chain:
    """The links of a backup, newest first.  Of one thread.

    :param control: of the task.
    """

    def __init__(self, control: Control) -> None:
        self.links: list[Link] = []
        self._control = control
        # A database without a name: a temporary file, deleted when the connection is closed.
        self._scratch = sqlite3.connect("", isolation_level=None)
        self._scratch.execute(f"PRAGMA cache_size = -{_CACHE_BYTES >> 10}")
        self._scratch.executescript(_SCHEMA)
        self._objects = 0

    def close(self) -> None:
        """Give up the temporary file."""
        self._scratch.close()

    @classmethod
    def of(cls, places: Iterable[Place], control: Control) -> Chain:
        """Read a chain whose places are known, newest first.

        :raises Damaged: as :meth:`add`; or they are no chain.
        """
        chain = cls(control)
        try:
            for place in places:
                chain.add(place)
            chain.check()
        except BaseException:
            chain.close()
            raise
        return chain

    def add(self, place: Place) -> Head:
        """Read the next older link.

        :raises Damaged: its metadata is missing, or not what it should be.
        :raises UnsupportedFormat: it has another version.
        :raises InvalidInput: the chain has too many links or objects.
        """
        if len(self.links) >= MAX_LINKS:
            raise InvalidInput(f"The backup's chain has more than {MAX_LINKS} links.")
        number = len(self.links)
        self._scratch.execute("BEGIN")
        key = names.metadata_key(place.prefix)
        listed = self._list(place, number)
        if listed.metadata is None:
            raise missing(place.container, key)
        count = self._objects
        try:
            head = metadata.read(
                place.container, place.prefix, listed.metadata, lambda entry: self._keep(number, entry)
            )
            if self.links:
                self._follows(head)
        except BadBytes as error:
            raise objects.damaged(place.container, key, str(error)) from error
        self._scratch.execute("COMMIT")
        if self.links:
            # Its texts may be long, and a chain may have very many links.
            head = head.without_texts()
        self.links.append(Link(place, head, self._objects - count, listed.bytes, listed.hashes))
        return head

    def check(self) -> None:
        """Make sure that the chain is whole.

        :raises Damaged: its oldest link has a parent.
        """
        oldest = self.links[-1]
        if oldest.head.parent_id is not None:
            key = names.metadata_key(oldest.place.prefix)
            raise objects.damaged(oldest.place.container, key, "it is of no full backup")

    @property
    def head(self) -> Head:
        """What the newest link says."""
        return self.links[0].head

    @property
    def length(self) -> int:
        """Bytes of the volume."""
        return self.length_of(0)

    def length_of(self, number: int) -> int:
        """Return the bytes that the volume had when a link was made.

        It ends where the last object of that link and the older ones ends, but not later than its description
        says.
        """
        query = "SELECT max(offset + length) FROM objects WHERE link >= ?"
        (end,) = self._scratch.execute(query, (number,)).fetchone()
        return min(end or 0, self.links[number].head.volume_bytes or metadata.MAX_END)

    def tasks(self, start: int = 0, *, with_hashes: bool = True) -> Iterator[Task]:
        """Yield the whole volume from the block that has the byte ``start`` on.

        :param with_hashes: give the hashes of blocks, too, if the newest link has them.
        :raises Damaged: objects of one link overlap; or the list of hashes is not what it should be.
        """
        newest = self.links[0]
        if newest.hashes_bytes is None or not with_hashes:
            yield from self._cut(start - start % PLAIN_BLOCK, PLAIN_BLOCK)
            return
        place = newest.place
        try:
            hashes = Hashes(place.container, place.prefix, newest.hashes_bytes)
            block = hashes.block_size
            hashes.skip(start // block)
            for task in self._cut(start - start % block, block):
                task.hashes = hashes.take(-(-(task.end - task.first) // block))
                task.hashes_of = place
                yield task
            hashes.finish()
        except BadBytes as error:
            raise objects.damaged(place.container, names.hashes_key(place.prefix), str(error)) from error

    def _list(self, place: Place, link: int) -> _Listed:
        found = _Listed()
        prefix = place.prefix
        try:
            for number, info in enumerate(place.container.list(prefix)):
                if number % _CHECK_EVERY == 0:
                    self._control.check()
                split = names.split(info.key)
                if split is not None and split[0] == prefix:
                    self._scratch.execute(
                        "INSERT OR REPLACE INTO sizes VALUES (?, ?, ?)", (link, split[1], info.size)
                    )
                elif info.key == names.metadata_key(prefix):
                    found.metadata = info.size
                elif info.key == names.hashes_key(prefix):
                    found.hashes = info.size
                else:
                    # Another backup's, whose prefix is longer.
                    continue
                found.bytes += info.size
        except NotFound as error:
            raise Unavailable(
                "the container is missing", store=place.container.store.name, container=place.container.name
            ) from error
        return found

    def _keep(self, link: int, entry: Entry) -> None:
        if self._objects % _CHECK_EVERY == 0:
            self._control.check()
        self._objects += 1
        if self._objects > MAX_OBJECTS:
            raise InvalidInput(f"The backup's chain has more than {MAX_OBJECTS} objects.")
        row = (entry.offset, link, entry.length, entry.number, entry.codec, entry.md5)
        try:
            self._scratch.execute("INSERT INTO objects VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.IntegrityError:
            raise BadBytes(f"two of its objects begin at {entry.offset}") from None

    def _follows(self, head: Head) -> None:
        child = self.links[-1].head
        if head.backup_id != child.parent_id:
            raise BadBytes("it is not the parent that its child names")
        if head.volume_id != child.volume_id:
            raise BadBytes("it is of another volume than its child")

    def _entries(self, start: int) -> Iterator[tuple[int, DataObject]]:
        """Yield link and object of all that end after ``start``, by their places."""
        ends: dict[int, int] = {}
        for offset, link, length, number, codec, md5, size in self._scratch.execute(_IN_ORDER, (start,)):
            place = self.links[link].place
            if offset < ends.get(link, 0):
                key = names.metadata_key(place.prefix)
                raise objects.damaged(place.container, key, f"two of its objects have the bytes at {offset}")
            ends[link] = offset + length
            key = names.object_key(place.prefix, number)
            yield link, DataObject(place.container, key, Entry(number, offset, length, codec, md5), size)

    def _parts(self, start: int) -> Iterator[tuple[Part, bool]]:
        """Yield parts, and whether an object goes on past each: the newest link that has a byte decides."""
        length = self.length
        entries = self._entries(start)
        coming = next(entries, None)
        active: dict[int, DataObject] = {}
        position = start
        while position < length:
            while coming is not None and coming[1].entry.offset <= position:
                active[coming[0]] = coming[1]
                coming = next(entries, None)
            end = min((one.end for one in active.values()), default=length)
            if coming is not None:
                end = min(end, coming[1].entry.offset)
            end = min(end, length)
            source = active[min(active)] if active else None
            active = {link: one for link, one in active.items() if one.end > end}
            yield Part(position, end, source), bool(active)
            position = end

    def _cut(self, start: int, block: int) -> Iterator[Task]:
        """Make tasks of the parts; every task ends at the end of a block."""
        task = Task(start, start, [], block)
        for part, goes_on in self._parts(start):
            while task.end < part.end:
                limit = task.first + TASK_BLOCKS * block
                if len(task.parts) >= TASK_PARTS:
                    limit = min(limit, task.end + block - task.end % block)
                if len(task.parts) >= MAX_PARTS:
                    raise InvalidInput("The backup's chain is cut into too many parts.")
                end = min(part.end, limit)
                last = task.parts[-1] if task.parts else None
                if last is not None and last.source is part.source:
                    last.end = end
                else:
                    task.parts.append(Part(task.end, end, part.source))
                task.end = end
                enough = end - task.first >= TASK_BYTES and end == part.end and not goes_on
                if end == limit or (enough and end % block == 0):
                    yield task
                    task = Task(end, end, [], block)
        if task.parts:
            yield task


def missing(container: Container, key: str) -> Exception:
    """Return what is to be raised about an object that the listing does not show.

    :raises ChunkStoreError: the store did not answer.
    """
    if objects.is_missing(container, key):
        return objects.damaged(container, key, "it is missing")
    return Unavailable(
        "the listing does not show this object yet",
        store=container.store.name,
        container=container.name,
        key=key,
    )
