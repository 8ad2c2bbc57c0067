"""The object that keeps a wrapped data key beside the backups that need it.

Whoever has the store and the key store has all that a restore needs.  ``docs/format.md`` has the bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from backupfw.chunkstore.container import Container
from backupfw.engine import objects
from backupfw.engine.format import keys
from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes, digest, dump_json, parse_json
from backupfw.engine.format.sealing import ALGORITHMS, KEY_BYTES, DataKey, is_sealed, marks
from backupfw.errors import Damaged, DataKeyMissing, UnsupportedFormat

MAGIC = b"BFWdakey"

# magic, version, header length, features, flags, payload length.
_HEADER = struct.Struct("<8sHHIII")
#: Most bytes of the object; real ones have about 500.
MAX_BYTES = 1 << 16
_CONTEXT = b"backupfw data key 2"


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key as it is stored.

    :ivar object_key: the object's key in the container; it names the data key, too.
    :ivar mac_id, algorithm: as :class:`DataKey` has them.
    :ivar project_key_id: the project's key that wraps it, by its id in the key store.
    :ivar wrapped: what the key store made of the secrets.
    """

    object_key: str
    mac_id: str
    algorithm: str
    project_key_id: str
    wrapped: bytes

    @property
    def id(self) -> str:
        """The data key's id."""
        return self.object_key.rsplit("/", 1)[1]

    @property
    def context(self) -> bytes:
        """What the secrets are bound to when they are wrapped."""
        parts = (self.object_key, self.mac_id, self.algorithm)
        return b"\0".join((_CONTEXT, *(part.encode() for part in parts)))

    def unwrapped(self, secret: bytes) -> DataKey:
        """Return the data key.

        :param secret: what the key store gives for ``wrapped``; see :func:`secret_of`.
        :raises BadBytes: it is not the secret of a data key.
        """
        if len(secret) != 2 * KEY_BYTES:
            raise BadBytes("what was wrapped is no data key")
        return DataKey(self.id, self.mac_id, self.algorithm, secret[:KEY_BYTES], secret[KEY_BYTES:])

    def encode(self) -> bytes:
        """Return the object's bytes."""
        payload = dump_json(
            {
                "id": self.id,
                "mac_id": self.mac_id,
                "algorithm": self.algorithm,
                "project_key": self.project_key_id,
                "wrapped": self.wrapped.hex(),
            }
        )
        version, features, flags = marks(sealed=True)
        data = _HEADER.pack(MAGIC, version, _HEADER.size, features, flags, len(payload)) + payload
        return data + digest(digest(self.object_key.encode()) + data)

    @classmethod
    def parse(cls, object_key: str, data: bytes) -> WrappedKey:
        """Undo :meth:`encode`.

        :raises BadBytes: these are not the bytes of a wrapped data key under this key.
        :raises UnsupportedFormat: its version, features or algorithm are not known here.
        """
        if not _HEADER.size + DIGEST_BYTES <= len(data) <= MAX_BYTES or not keys.is_data_key(object_key):
            raise BadBytes("it has the length of no data key")
        if digest(digest(object_key.encode()) + data[:-DIGEST_BYTES]) != data[-DIGEST_BYTES:]:
            raise BadBytes("its bytes have changed")
        magic, version, header, features, flags, length = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise BadBytes("it is no data key")
        if not is_sealed("a data key", version, features, flags):
            raise UnsupportedFormat("a data key has format version 1")
        if header != _HEADER.size or header + length + DIGEST_BYTES != len(data):
            raise BadBytes("its lengths are wrong")
        value = parse_json(data[header:-DIGEST_BYTES])
        texts = [value.get(name) for name in ("id", "mac_id", "algorithm", "project_key", "wrapped")]
        if not all(isinstance(text, str) for text in texts):
            raise BadBytes("a field is missing or of a wrong type")
        key_id, mac_id, algorithm, project_key, wrapped = (str(text) for text in texts)
        try:
            found = cls(object_key, mac_id, algorithm, project_key, bytes.fromhex(wrapped))
        except ValueError as error:
            raise BadBytes("what is wrapped is not hexadecimal") from error
        if key_id != found.id:
            raise BadBytes("it was written under another key")
        if algorithm not in ALGORITHMS:
            raise UnsupportedFormat("a data key has an algorithm that this release does not know")
        return found


def secret_of(key: DataKey) -> bytes:
    """Return what is wrapped of a data key."""
    return key.enc + key.mac


def read_key(container: Container, object_key: str) -> WrappedKey:
    """Read a wrapped data key.

    :raises DataKeyMissing: it is not there.
    :raises Damaged: its bytes are wrong.
    :raises UnsupportedFormat: it is of a version that is not known here.
    :raises ChunkStoreError: the store could not be read.
    """
    try:
        # Its own length first, so that the memory is bounded whatever the object has become.
        header = objects.read(container, object_key, 0, _HEADER.size)
        length = min(_HEADER.size + _HEADER.unpack(header)[5] + DIGEST_BYTES, MAX_BYTES)
        return objects.read_checked(
            container, object_key, 0, length, lambda data: WrappedKey.parse(object_key, data)
        )
    except BadBytes as error:
        raise objects.damaged(container, object_key, str(error)) from error
    except Damaged as error:
        if objects.is_missing(container, object_key):
            raise DataKeyMissing(object_key.rsplit("/", 1)[1]) from error
        raise
