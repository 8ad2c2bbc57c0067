"""The manifest: the object that holds a backup together, put last, written and read as a stream.

A fixed header, then pages, each with its own checksum: a head page (JSON), pages of segment entries,
pages of origins, an end page.  A page's checksum covers the manifest's key, so a page of another
manifest does not pass; the end page holds the digest of all page checksums in order, so none is
missing, doubled or moved.  ``docs/format.md`` has the exact bytes.

Memory does not grow with the number of segments on either side: the writer spools to an unlinked
file, the reader fetches about one MiB at a time.
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

import zstandard
from blake3 import blake3
from oslo_log import log

from backupfw import naming
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format import keys
from backupfw.engine.format.binary import (
    DIGEST_BYTES,
    BadBytes,
    Cursor,
    decompress,
    digest,
    dump_json,
    parse_json,
)
from backupfw.engine.format.entries import SegmentEntry, decode_entries, decode_origins
from backupfw.engine.format.entries import encode_entries as _encode_entries
from backupfw.engine.format.entries import encode_origins as _encode_origins
from backupfw.engine.format.geometry import MAX_LENGTH, Geometry
from backupfw.engine.format.sealing import (
    CLEAR,
    HASH_BLAKE3,
    HASH_KEYED,
    TAG_BYTES,
    FindKey,
    ObjectCipher,
    Seal,
    Sealing,
    is_sealed,
    marks,
)
from backupfw.errors import Damaged, UnsupportedFormat
from backupfw.volume.base import MAX_TOKEN

LOG = log.getLogger(__name__)

MAGIC = b"BFWmanif"

# The first 16 bytes (magic, version, header length, required features) and the checksum at the
# header's end keep their place in every version, so damage and a newer version can be told apart.
_PREFIX = struct.Struct("<8sHHI")
_HEADER = struct.Struct("<8sHHIIIQQQQQ32s24x")
HEADER_BYTES = _HEADER.size + DIGEST_BYTES
_MAX_HEADER_BYTES = 4096

_PAGE = struct.Struct("<4sBBHIII")
_PAGE_MAGIC = b"PAGE"
_PAGE_HEAD, _PAGE_SEGMENTS, _PAGE_ORIGINS, _PAGE_END, _PAGE_SECRET = 1, 2, 3, 4, 5
_RAW, _ZSTD = 0, 1
_END = struct.Struct("<IQI32s")

#: Most bytes a page may have, stored and unpacked.
MAX_PAGE_BYTES = 4 << 20
#: Most origins a manifest may name: an incremental each hour for 15 years, all of them still in use.  What
#: a reader keeps of so many takes about 20 MB, and with the longest of them 37 MiB.
MAX_ORIGINS = 1 << 17
# A page of entries is closed at this many; one entry is about 120 bytes.
_ENTRIES_PER_PAGE = 1024
_PACKS_PER_PAGE = 16384
_ORIGINS_PER_PAGE = 1024
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class SourceTotals:
    """What the attempt that wrote a manifest found in the source, counted beside the journal.

    :ivar segments: segments that are not all zero.
    :ivar data_bytes: bytes of blocks that are not zero.
    """

    segments: int
    data_bytes: int


@dataclass(frozen=True, slots=True)
class PointNote:
    """What a later backup has to know of the point that a backup was made of.

    :ivar token: what a later point can be compared with; None: none can.
    :ivar trusted: how many backups in a row, up to this one, left out what a point said was the same.
    """

    token: str | None
    trusted: int

    @classmethod
    def of(cls, token: str | None, trusted: int) -> PointNote | None:
        """Return the note, None if there is nothing to note; a provider's impossible token counts as none."""
        if token is not None and not _is_token(token):
            LOG.warning(
                "A volume provider gave a point a token that is no text of at most %d characters: the next"
                " backup reads everything",
                MAX_TOKEN,
            )
            token = None
        return None if token is None and not trusted else cls(token, trusted)

    @classmethod
    def from_json(cls, value: object) -> PointNote | None:
        """Take it from a head; None if it is none: it is only a hint, and the backup is whole without it."""
        if not isinstance(value, Mapping):
            return None
        token, trusted = value.get("token"), value.get("trusted")
        if token is not None and not _is_token(token):
            return None
        # bool is an int in Python; in the format it is not.
        if not isinstance(trusted, int) or isinstance(trusted, bool) or not 0 <= trusted < 1 << 31:
            return None
        return cls(token, trusted)


def _is_token(found: object) -> bool:
    return isinstance(found, str) and len(found) <= MAX_TOKEN and naming.text_problem(found) is None


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What a manifest says of its backup as a whole.

    :ivar origin: the attempt that wrote it; the manifest's key derives from it.
    :ivar geometry: the cut of the volume.
    :ivar mac_id: id of the key that block digests are made with; None without encryption.
    :ivar seal: how the manifest is encrypted; None: it is not.
    :ivar base: key of the manifest whose data was shared, None if there was none.
    :ivar record: the backup's record as the API shows it, and the volume's metadata; JSON values.  Empty, as
        ``point`` is, if it is encrypted and was read without a key.
    :ivar source: what the source was found to hold; None in manifests of releases that did not record it.
    :ivar point: what the next backup has to know of its point; None: nothing.
    """

    origin: keys.Origin
    geometry: Geometry
    mac_id: str | None = None
    seal: Seal | None = None
    base: str | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    source: SourceTotals | None = None
    point: PointNote | None = None

    @property
    def key(self) -> str:
        """The manifest's key."""
        return keys.manifest_key(str(self.origin))

    @property
    def hash_mode(self) -> str:
        """What block digests are."""
        return HASH_BLAKE3 if self.seal is None else HASH_KEYED

    @property
    def key_id(self) -> str | None:
        """Id of the data key; None without encryption."""
        return None if self.seal is None else self.seal.key_id

    def secret_json(self) -> dict[str, Any]:
        """Return what is encrypted, if anything is: what people wrote, and what the storage said."""
        note = self.point
        point = {} if note is None else {"point": {"token": note.token, "trusted": note.trusted}}
        return {"record": dict(self.record), **point}

    def with_secrets(self, value: Mapping[str, Any]) -> ManifestHead:
        """Undo :meth:`secret_json`.

        :raises BadBytes: a field is missing or wrong.
        """
        return replace(
            self, record=_typed(value, "record", dict), point=PointNote.from_json(value.get("point"))
        )

    def to_json(self) -> dict[str, Any]:
        """Return the head page's object."""
        origin = self.origin
        found = self.source
        source = (
            {} if found is None else {"source": {"segments": found.segments, "data_bytes": found.data_bytes}}
        )
        more: dict[str, Any] = self.secret_json()
        if self.seal is not None:
            more = {"mac_id": self.mac_id, "seal": self.seal.encode().hex()}
        return {
            "installation": origin.installation,
            "project": origin.project,
            "volume": origin.volume,
            "backup": origin.backup,
            "epoch": origin.epoch,
            "attempt": origin.attempt,
            "token": origin.token,
            "length": self.geometry.length,
            "block_size": self.geometry.block_size,
            "segment_size": self.geometry.segment_size,
            "hash_mode": self.hash_mode,
            "key_id": self.key_id,
            "base": self.base,
            **source,
            **more,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ManifestHead:
        """Undo :meth:`to_json`; fields that this version does not know are ignored.

        :raises BadBytes: a field is missing or wrong.
        """
        geometry = Geometry(
            _typed(value, "length", int), _typed(value, "block_size", int), _typed(value, "segment_size", int)
        )
        if problem := geometry.problem():
            raise BadBytes(problem)
        source = _typed(value, "source", dict, optional=True)
        seal = _seal_of(_typed(value, "seal", str, optional=True))
        mac_id = _typed(value, "mac_id", str, optional=True)
        head = cls(
            origin=keys.Origin(
                installation=_typed(value, "installation", str),
                project=_typed(value, "project", str),
                volume=_typed(value, "volume", str),
                backup=_typed(value, "backup", str),
                epoch=_typed(value, "epoch", int),
                attempt=_typed(value, "attempt", int),
                token=_typed(value, "token", str),
            ),
            geometry=geometry,
            mac_id=mac_id,
            seal=seal,
            base=_typed(value, "base", str, optional=True),
            source=None
            if source is None
            else SourceTotals(_typed(source, "segments", int), _typed(source, "data_bytes", int)),
        )
        said = (_typed(value, "hash_mode", str), _typed(value, "key_id", str, optional=True))
        if said != (head.hash_mode, head.key_id) or (mac_id is None) != (seal is None):
            raise UnsupportedFormat("a manifest has a hash mode or key that this release does not know")
        return head if seal is not None else head.with_secrets(value)


@dataclass(frozen=True, slots=True)
class ManifestTotals:
    """The sums in a manifest's header.

    :ivar segments: entries, that is segments that are not all zero.
    :ivar data_bytes: bytes of blocks that are not zero: what a restore has to write.
    :ivar referenced_bytes: sizes of all packs and maps it names.
    :ivar manifest_bytes: its own length.
    """

    segments: int
    data_bytes: int
    referenced_bytes: int
    manifest_bytes: int


def _typed(value: Mapping[str, Any], name: str, kind: type, *, optional: bool = False) -> Any:
    found = value.get(name)
    if found is None and optional:
        return None
    # bool is an int in Python; in the format it is not.
    if not isinstance(found, kind) or isinstance(found, bool):
        raise BadBytes(f"field {name} of the head is missing or of a wrong type")
    # JSON can hold halves of surrogate pairs, which no key, log or database can.
    if isinstance(found, str) and naming.text_problem(found) is not None:
        raise BadBytes(f"field {name} of the head is no text")
    return found


def _seal_of(text: str | None) -> Seal | None:
    """Return the seal that a head has as hexadecimal text.

    :raises BadBytes: it is none.
    """
    if text is None:
        return None
    try:
        seal = Seal.decode(bytes.fromhex(text))
    except (ValueError, struct.error) as error:
        raise BadBytes("field seal of the head is no seal") from error
    if seal.encode().hex() != text:
        raise BadBytes("field seal of the head is no seal")
    return seal


def _binding(key: str) -> bytes:
    return digest(key.encode("utf-8"))


class ManifestWriter:
    """Writes one manifest to a spool file and puts it.  Not thread-safe.

    Use it as a context manager; the spool file has no name and goes when it is closed.

    :param head: what the manifest says of the whole backup, without its seal.
    :param sealing: how the backup is encrypted.
    :raises ValueError: the head cannot be a manifest's (geometry, names or size).
    """

    def __init__(self, head: ManifestHead, sealing: Sealing = CLEAR) -> None:
        if problem := head.geometry.problem():
            raise ValueError(problem)
        if keys.parse(head.key) is None:
            raise ValueError(f"{head.key} is not a key of the format")
        self._cipher = sealing.begin(head.key)
        if self._cipher is not None:
            head = replace(head, mac_id=sealing.mac_id, seal=self._cipher.seal)
        self.head = head
        self._binding = _binding(head.key)
        self._file: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  (closed by close)
        self._chain = blake3()
        self._pages = 0
        self._entries: list[SegmentEntry] = []
        self._packs = 0
        self._last = -1
        self._segments = 0
        self._data_bytes = 0
        self._referenced_bytes = 0
        self._origins: set[str] = set()
        self._file.write(bytes(HEADER_BYTES))
        self._page(_PAGE_HEAD, dump_json(head.to_json()))
        if self._cipher is not None:
            self._page(_PAGE_SECRET, dump_json(head.secret_json()), self._cipher)

    def __enter__(self) -> ManifestWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the spool file; idempotent."""
        self._file.close()

    def add(self, entry: SegmentEntry) -> None:
        """Append the entry of a segment that is not all zero.

        :raises ValueError: it is not past the entries before it, or past the volume's end.
        """
        if not self._last < entry.index < self.head.geometry.segments:
            raise ValueError(f"segment {entry.index} is out of order or out of bounds")
        self._last = entry.index
        self._segments += 1
        self._data_bytes += entry.data_bytes
        self._referenced_bytes += entry.map.length + sum(pack.size for pack in entry.packs)
        self._origins |= entry.origins()
        self._entries.append(entry)
        self._packs += len(entry.packs)
        if len(self._entries) >= _ENTRIES_PER_PAGE or self._packs >= _PACKS_PER_PAGE:
            self._flush()

    def put(self, container: Container) -> ManifestTotals:
        """Write the last pages and put the manifest under its key.

        :raises ChunkStoreError: the put failed; the manifest is not there.
        """
        self._flush()
        origins_offset = self._file.tell()
        origins = sorted(self._origins)
        for start in range(0, len(origins), _ORIGINS_PER_PAGE):
            self._page(_PAGE_ORIGINS, _encode_origins(origins[start : start + _ORIGINS_PER_PAGE]))
        end = _END.pack(self._pages + 1, self._segments, len(origins), self._chain.digest())
        if self._cipher is not None:
            end += self._cipher.encrypt(self._file.tell(), b"", end)
        self._page(_PAGE_END, end)
        total = self._file.tell()
        version, features, flags = marks(self._cipher is not None)
        header = _HEADER.pack(
            MAGIC,
            version,
            HEADER_BYTES,
            features,
            flags,
            self._pages,
            total,
            origins_offset,
            self._segments,
            self._data_bytes,
            self._referenced_bytes,
            self._binding,
        )
        self._file.seek(0)
        self._file.write(header + digest(header))
        self._file.flush()
        container.put(self.head.key, Body.from_file(self._file))
        return ManifestTotals(self._segments, self._data_bytes, self._referenced_bytes, total)

    def _flush(self) -> None:
        if self._entries:
            self._page(_PAGE_SEGMENTS, _encode_entries(self._entries))
            self._entries.clear()
            self._packs = 0

    def _page(self, kind: int, payload: bytes, cipher: ObjectCipher | None = None) -> None:
        if len(payload) > MAX_PAGE_BYTES - (0 if cipher is None else TAG_BYTES):
            raise ValueError("the record is too large for a manifest")
        codec, stored = _RAW, payload
        packed = zstandard.ZstdCompressor(level=3).compress(payload)
        if len(packed) < len(payload):
            codec, stored = _ZSTD, packed
        if cipher is not None:
            stored = cipher.encrypt(self._file.tell(), stored, self._binding)
        page = _PAGE.pack(_PAGE_MAGIC, kind, codec, 0, self._pages, len(stored), len(payload)) + stored
        checksum = digest(self._binding + page)
        self._file.write(page + checksum)
        self._chain.update(checksum)
        self._pages += 1


class ManifestReader:
    """Reads a stored manifest.  The header and the head page are read at once, the rest as asked for.

    Not thread-safe, but any number of readers may read one manifest.  Without ``find_key``, what is encrypted
    is not read: which objects it names is known all the same.

    :param container: where it is.
    :param key: its key.
    :param find_key: finds the data key of a manifest that is encrypted.
    :param encrypted: it is known to be encrypted; one that is not was put there by somebody else.
    :ivar head: what it says of the backup.
    :ivar totals: its sums.
    :ivar sealing: how the backup is encrypted; nothing can be read with it without ``find_key``.
    :raises DataKeyMissing: its data key cannot be found; errors of the key store pass through, too.
    :raises Damaged: it is missing or its bytes are wrong.
    :raises UnsupportedFormat: its version or a required feature is not known here.
    """

    def __init__(
        self, container: Container, key: str, find_key: FindKey | None = None, *, encrypted: bool = False
    ) -> None:
        self.container = container
        self.key = key
        #: The prefix of all keys that the manifest names.
        self.volume_prefix = keys.volume_prefix_of(key)
        try:
            try:
                self._read_header()
            except BadBytes as error:
                objects.read_again(container, key, error)
                self._read_header()
            stream = _Stream(self, HEADER_BYTES, 0)
            kind, payload = stream.page()
            if kind != _PAGE_HEAD:
                raise BadBytes("it does not begin with a head page")
            self.head = ManifestHead.from_json(parse_json(payload))
            if (self.head.seal is not None) != self._sealed:
                raise BadBytes("its header and its head disagree about encryption")
            if encrypted and not self._sealed:
                raise BadBytes("it is not encrypted, and it was when it was made")
            if self.head.key != key or keys.parse(key) is None:
                raise BadBytes("it was written under another key")
            geometry = self.head.geometry
            if self.totals.segments > geometry.segments or self.totals.data_bytes > geometry.length:
                raise BadBytes("it names more than the volume has")
            source = self.head.source
            if source not in (None, SourceTotals(self.totals.segments, self.totals.data_bytes)):
                raise BadBytes("it names other segments than the volume had")
        except BadBytes as error:
            raise objects.damaged(container, key, str(error)) from error
        self._after_head = stream
        self.sealing = CLEAR
        self._cipher: ObjectCipher | None = None
        if find_key is not None:
            self.unseal(find_key)

    def unseal(self, find_key: FindKey) -> None:
        """Read what is encrypted, if anything is: the page after the head.

        :param find_key: as of the class; so are the errors.
        """
        seal = self.head.seal
        if seal is None:
            return
        try:
            found = find_key(seal.key_id)
            if found.mac_id != self.head.mac_id:
                raise BadBytes("its data key makes other digests than it says")
            sealing = Sealing(found, find_key)
            cipher = sealing.open(seal, self.key)
            kind, payload = self._after_head.fork().page(cipher)
            if kind != _PAGE_SECRET:
                raise BadBytes("its second page is not the encrypted one")
            self.head = self.head.with_secrets(parse_json(payload))
        except BadBytes as error:
            raise objects.damaged(self.container, self.key, str(error)) from error
        self.sealing, self._cipher = sealing, cipher

    def segments(self) -> Iterator[SegmentEntry]:
        """Yield all entries by ascending segment, each page verified before its first entry.

        Only when the iteration ends normally is it proven that the manifest is whole; may be called
        again for another pass.

        :raises Damaged: the manifest is not whole.
        """
        try:
            yield from self._segments()
        except BadBytes as error:
            raise objects.damaged(self.container, self.key, str(error)) from error

    def origins(self) -> list[str]:
        """Return all origins whose objects the manifest names, sorted; reads only the manifest's end.

        :raises Damaged: those pages are not whole.
        """
        try:
            stream = _Stream(self, self._origins_offset, None)
            found: list[str] = []
            while True:
                kind, payload = stream.page()
                if kind == _PAGE_END:
                    if self._check_end(payload, stream)[2] != len(found):
                        raise BadBytes("its origins are not what its end says")
                    return found
                if kind != _PAGE_ORIGINS:
                    raise BadBytes("its pages are out of order")
                for origin in self._origins_of(payload):
                    if found and origin <= found[-1]:
                        raise BadBytes("its origins are out of order")
                    found.append(origin)
                if len(found) > MAX_ORIGINS:
                    raise BadBytes("it names more origins than any manifest")
        except BadBytes as error:
            raise objects.damaged(self.container, self.key, str(error)) from error

    def _segments(self) -> Iterator[SegmentEntry]:
        stream = self._after_head.fork()
        geometry = self.head.geometry
        count, last, limit = 0, -1, geometry.segments
        # Without the volume's prefix, with which all of them begin.
        named: set[str] = set()
        cut = len(self.volume_prefix)
        origins, last_origin = 0, ""
        data_bytes = referenced = 0
        if self._sealed and stream.page()[0] != _PAGE_SECRET:
            raise BadBytes("its second page is not the encrypted one")
        while True:
            start, chain = stream.position, stream.chain.digest()
            kind, payload = stream.page()
            if kind == _PAGE_SEGMENTS and not origins:
                for entry in decode_entries(payload, self.volume_prefix):
                    if not last < entry.index < limit:
                        raise BadBytes("a segment is out of order or out of bounds")
                    if entry.data_bytes > geometry.segment_length(entry.index):
                        raise BadBytes("a segment has more data than bytes")
                    if len(entry.packs) > geometry.blocks(entry.index):
                        raise BadBytes("a segment has more packs than blocks")
                    last = entry.index
                    count += 1
                    data_bytes += entry.data_bytes
                    referenced += entry.map.length + sum(pack.size for pack in entry.packs)
                    named.update(origin[cut:] for origin in entry.origins())
                    if len(named) > MAX_ORIGINS:
                        raise BadBytes("it names more origins than any manifest")
                    yield entry
            elif kind == _PAGE_ORIGINS:
                if not origins and start != self._origins_offset:
                    raise BadBytes("its origins are not where its header says")
                for origin in self._origins_of(payload):
                    if origin <= last_origin or origin[cut:] not in named:
                        raise BadBytes("its origins are not those of its entries")
                    last_origin = origin
                    origins += 1
            elif kind == _PAGE_END:
                if self._check_end(payload, stream)[3] != chain:
                    raise BadBytes("its pages are not those that were written")
                totals = self.totals
                if (count, data_bytes, referenced) != (
                    totals.segments,
                    totals.data_bytes,
                    totals.referenced_bytes,
                ) or len(named) != origins:
                    raise BadBytes("its sums do not match its entries")
                return
            else:
                raise BadBytes("its pages are out of order")

    def _origins_of(self, payload: bytes) -> list[str]:
        cursor = Cursor(payload)
        origins = decode_origins(cursor, self.volume_prefix)
        cursor.end()
        return origins

    def _check_end(self, payload: bytes, stream: _Stream) -> tuple[int, int, int, bytes]:
        cursor = Cursor(payload)
        pages, segments, origins, chain = cursor.unpack(_END)
        proof = cursor.take(TAG_BYTES if self._sealed else 0)
        cursor.end()
        if self._cipher is not None:
            # All that was read is what a holder of the key wrote.
            self._cipher.decrypt(stream.last, proof, payload[: _END.size])
        if pages != self._pages or stream.number != pages or segments != self.totals.segments:
            raise BadBytes("its end does not match its header")
        if stream.position != self.totals.manifest_bytes:
            raise BadBytes("it is longer than its pages")
        return pages, segments, origins, chain

    def _read_header(self) -> None:
        data = objects.read(self.container, self.key, 0, HEADER_BYTES)
        magic, version, length, features = _PREFIX.unpack_from(data)
        if magic != MAGIC:
            raise BadBytes("it is not a manifest")
        if not _PREFIX.size + DIGEST_BYTES <= length <= _MAX_HEADER_BYTES:
            raise BadBytes("its header's length is wrong")
        if length > len(data):
            data = objects.read(self.container, self.key, 0, length)
        header = data[: length - DIGEST_BYTES]
        if digest(header) != data[length - DIGEST_BYTES : length]:
            raise BadBytes("its header has changed")
        # The flags stand behind the features; a header of another length is of a version not known here.
        flags = int.from_bytes(header[_PREFIX.size : _PREFIX.size + 4], "little")
        self._sealed = is_sealed(f"object {self.key}", version, features, flags)
        if length != HEADER_BYTES:
            raise BadBytes("its header's length is wrong")
        (
            _magic,
            _version,
            _length,
            _features,
            _flags,
            self._pages,
            total,
            self._origins_offset,
            segments,
            data_bytes,
            referenced,
            self.binding,
        ) = _HEADER.unpack(header)
        if self.binding != _binding(self.key):
            raise BadBytes("it was written under another key")
        if not HEADER_BYTES < self._origins_offset < total <= MAX_LENGTH or referenced > MAX_LENGTH:
            raise BadBytes("its header's numbers are wrong")
        self.totals = ManifestTotals(segments, data_bytes, referenced, total)


class _Stream:
    """Reads pages one after the other, about a MiB per request.

    ``number`` is the page expected next; None takes the first page's own.  ``last`` is where the page begins
    that was read last.
    """

    def __init__(self, reader: ManifestReader, position: int, number: int | None) -> None:
        self._reader = reader
        self.position = self.last = position
        self.number = number
        self.chain = blake3()
        self._buffer = b""
        self._start = position

    def fork(self) -> _Stream:
        """Return a stream that goes on from here by itself."""
        other = _Stream(self._reader, self.position, self.number)
        other.chain = self.chain.copy()
        other._buffer, other._start = self._buffer, self._start
        return other

    def page(self, cipher: ObjectCipher | None = None) -> tuple[int, bytes]:
        """Return the next page's kind and unpacked payload, verified; read once more if it is found wrong.

        :param cipher: decrypts the page if it is encrypted; without it its payload is empty.
        """
        number = self.number
        try:
            return self._page(cipher)
        except BadBytes as error:
            objects.read_again(self._reader.container, self._reader.key, error)
            self.number = number
            self._buffer = b""
            return self._page(cipher)

    def _page(self, cipher: ObjectCipher | None) -> tuple[int, bytes]:
        header = self._bytes(_PAGE.size)
        magic, kind, codec, _, number, stored, raw = _PAGE.unpack(header)
        if magic != _PAGE_MAGIC or stored > MAX_PAGE_BYTES or raw > MAX_PAGE_BYTES:
            raise BadBytes("a page's header has changed")
        if self.number is None:
            self.number = number
        if number != self.number:
            raise BadBytes("its pages are out of order")
        size = _PAGE.size + stored
        page = self._bytes(size + DIGEST_BYTES)
        checksum = page[size:]
        if digest(self._reader.binding + page[:size]) != checksum:
            raise BadBytes(f"its page {number} has changed")
        payload = page[_PAGE.size : size]
        if kind == _PAGE_SECRET and cipher is None:
            codec, payload, raw = _RAW, b"", 0
        elif kind == _PAGE_SECRET and cipher is not None:
            payload = cipher.decrypt(self.position, payload, self._reader.binding)
        if codec == _ZSTD:
            payload = decompress(payload, raw)
        elif codec != _RAW or len(payload) != raw:
            raise BadBytes("a page is packed in an unknown way")
        self.last = self.position
        self.position += len(page)
        self.number += 1
        self.chain.update(checksum)
        return kind, payload

    def _bytes(self, length: int) -> bytes:
        """Return bytes from the position on, from the buffer where they are there."""
        begin = self.position - self._start
        if begin + length > len(self._buffer):
            reader = self._reader
            total = reader.totals.manifest_bytes
            if self.position + length > total:
                raise BadBytes("it is cut short")
            wanted = min(max(length, _READ_BYTES), total - self.position)
            self._buffer = objects.read(reader.container, reader.key, self.position, wanted)
            self._start, begin = self.position, 0
        return self._buffer[begin : begin + length]


def read_head(container: Container, key: str, find_key: FindKey | None = None) -> ManifestHead:
    """Return what the manifest under ``key`` says of its backup; two small requests.

    :param find_key: as :class:`ManifestReader` has it.
    :raises Damaged: it is missing or wrong, as far as was read.
    :raises UnsupportedFormat: it is of a version or needs a feature not known here.
    """
    return ManifestReader(container, key, find_key).head


__all__ = [
    "Damaged",
    "ManifestHead",
    "ManifestReader",
    "ManifestTotals",
    "ManifestWriter",
    "UnsupportedFormat",
    "read_head",
]
