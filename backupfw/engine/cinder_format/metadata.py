"""Reading ``_metadata`` and the list of hashes of a link."""

from __future__ import annotations

import binascii
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.cinder_format import names
from backupfw.engine.cinder_format.compression import CODECS
from backupfw.engine.cinder_format.json_stream import JsonStream
from backupfw.engine.format.binary import BadBytes
from backupfw.errors import UnsupportedFormat

#: The only version there is.
VERSION = "1.0.0"
#: Largest end of an object in its volume, bytes; callers have lower bounds.
MAX_END = 1 << 60
#: Bounds of a block of the list of hashes, bytes.
MIN_BLOCK, MAX_BLOCK = 512, 16 << 20
_PIECE = 1 << 20
_TEXTS = ("backup_name", "backup_description", "created_at", "volume_meta")
_MEMBERS = frozenset(("version", "backup_id", "volume_id", "parent_id", *_TEXTS))
_ID = re.compile("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_DIGEST_BYTES = 32


@dataclass(frozen=True, slots=True)
class Entry:
    """A data object.

    :ivar number: behind the link's prefix.
    :ivar offset: of its plain bytes in the volume; ``length`` of them.
    :ivar codec: one of the numbers of ``compression``.
    :ivar md5: of its plain bytes; None: not known.
    """

    number: int
    offset: int
    length: int
    codec: int
    md5: bytes | None


@dataclass(frozen=True, slots=True)
class Head:
    """What ``_metadata`` says beside the data objects; all texts may be hostile.

    :ivar backup_id: canonical, as the other ids.
    :ivar parent_id: None for a full backup.
    :ivar volume: the parts ``base``, ``metadata`` and ``image_metadata`` of the volume's description, each a
        mapping, empty if it is missing.
    """

    backup_id: str
    volume_id: str
    parent_id: str | None
    name: Any = None
    description: Any = None
    created_at: Any = None
    volume: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def without_texts(self) -> Head:
        """Return what is left of it when only the ids and the volume's size are kept."""
        size = None if self.volume_bytes is None else self.volume_bytes >> 30
        volume = {"base": {"size": size}, "metadata": {}, "image_metadata": {}}
        return replace(self, name=None, description=None, created_at=None, volume=volume)

    @property
    def volume_bytes(self) -> int | None:
        """The volume's size, as its description has it; None if that does not say it."""
        size = self.volume["base"].get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 < size < MAX_END >> 30:
            return None
        return size << 30


def read(container: Container, prefix: str, size: int, found: Callable[[Entry], None]) -> Head:
    """Read a link's ``_metadata``.

    :param size: its length in bytes, as the listing says.
    :param found: called with each data object, in the order of the list.
    :raises BadBytes: it is not what it should be.
    :raises UnsupportedFormat: it has another version.
    :raises Damaged: it cannot be read.
    """
    key = names.metadata_key(prefix)
    values: dict[str, Any] = {}
    base = _Base(prefix)
    for name, value in JsonStream(pieces(container, key, size)).members(("objects",)):
        if name == "objects":
            found(base.entry(value))
        elif name in _MEMBERS:
            # Others are not kept: there may be any number of them.
            values[name] = value
    if not isinstance(values.get("version"), str):
        raise BadBytes("it has no version")
    if values["version"] != VERSION:
        raise UnsupportedFormat(
            f"Object {key} of container {container.name} of store {container.store.name} has another version"
            f" than {VERSION}."
        )
    return Head(
        backup_id=_id(values, "backup_id"),
        volume_id=_id(values, "volume_id"),
        parent_id=None if values.get("parent_id") is None else _id(values, "parent_id"),
        name=values.get("backup_name"),
        description=values.get("backup_description"),
        created_at=values.get("created_at"),
        volume=_volume(values.get("volume_meta")),
    )


class Hashes:
    """The list of hashes of a link, read once from its beginning.

    :param size: its length in bytes, as the listing says.
    :raises BadBytes: it is not what it should be; so for all methods.
    :raises Damaged: it cannot be read; likewise.
    """

    def __init__(self, container: Container, prefix: str, size: int) -> None:
        key = names.hashes_key(prefix)
        stream = JsonStream(pieces(container, key, size))
        sizes = (value for name, value in stream.members(("sha256s",)) if name == "chunk_size")
        block = next(sizes, None)
        if not isinstance(block, int) or not MIN_BLOCK <= block <= MAX_BLOCK:
            raise BadBytes("its block size is missing, or out of bounds")
        self.block_size = block
        self._parts = JsonStream(pieces(container, key, size)).hashes("sha256s")
        self._rest = b""

    def take(self, count: int) -> bytes:
        """Return the digests of the next blocks, joined."""
        wanted = count * _DIGEST_BYTES
        parts = [self._rest]
        length = len(self._rest)
        while length < wanted:
            part = next(self._parts, None)
            if part is None:
                raise BadBytes("it has fewer hashes than the volume has blocks")
            parts.append(part)
            length += len(part)
        joined = b"".join(parts)
        self._rest = joined[wanted:]
        return joined[:wanted]

    def skip(self, count: int) -> None:
        """Pass over digests."""
        while count:
            some = min(count, 1 << 16)
            self.take(some)
            count -= some

    def finish(self) -> None:
        """Make sure that there are no more."""
        if self._rest or next(self._parts, None):
            raise BadBytes("it has more hashes than the volume has blocks")


def pieces(container: Container, key: str, size: int) -> Callable[[], bytes]:
    """Return a function that returns the bytes of an object, a piece at a time."""

    def read_all() -> Iterator[bytes]:
        for start in range(0, size, _PIECE):
            yield objects.read(container, key, start, min(_PIECE, size - start))

    parts = read_all()
    return lambda: next(parts, b"")


class _Base:
    """Turns the items of ``objects`` into entries; all names begin with the link's own."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._own: str | None = None

    def entry(self, item: Any) -> Entry:
        if not isinstance(item, dict) or len(item) != 1:
            raise BadBytes("an item of its objects is not one object")
        ((name, about),) = item.items()
        found = names.split(name)
        if found is None or not isinstance(about, dict) or not self._is_own(found[0]):
            raise BadBytes("it names an object that is not its own")
        offset, length = (_whole(about.get(one), least) for one, least in (("offset", 0), ("length", 1)))
        compression, md5 = about.get("compression"), about.get("md5")
        codec = CODECS.get(compression.lower()) if isinstance(compression, str) else None
        if codec is None:
            raise BadBytes("an object of it is compressed in an unknown way")
        return Entry(found[1], offset, length, codec, _md5(md5))

    def _is_own(self, base: str) -> bool:
        # Where a container is a path, ours is its first part, and the others begin the prefix.
        if self._own is None and base and (self._prefix == base or self._prefix.endswith(f"/{base}")):
            self._own = base
        return base == self._own


def _whole(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < MAX_END:
        raise BadBytes("an object of it has a place that cannot be")
    return value


def _md5(value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        found = binascii.unhexlify(value)
    except (TypeError, ValueError):
        found = b""
    if len(found) != 16:
        raise BadBytes("an object of it has an MD5 that cannot be")
    return found


def _id(values: Mapping[str, Any], name: str) -> str:
    found = values.get(name)
    if not isinstance(found, str) or _ID.fullmatch(found) is None:
        raise BadBytes(f"its {name} is no id")
    return found.lower()


def _volume(text: Any) -> dict[str, dict[str, Any]]:
    """Read the description of the volume; it is JSON in a text.  What cannot be read counts as missing."""
    parts = {
        "base": "volume-base-metadata",
        "metadata": "volume-metadata",
        "image_metadata": "volume-glance-metadata",
    }
    found: Any = None
    if isinstance(text, str):
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
    if not isinstance(found, dict) or found.get("version") not in (1, 2):
        found = {}
    return {name: part if isinstance(part := found.get(key), dict) else {} for name, key in parts.items()}
