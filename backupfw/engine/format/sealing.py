"""How stored objects are encrypted: data keys, and the cipher of one object.

Each object that is encrypted has a *seal*: which data key, and 32 random bytes, the salt.  From both and from
the object's own key a cipher key is derived that no other object has.  Everything that is encrypted in the
object lies at an offset of it, and this offset is the nonce; so no nonce is used twice, because no object is
ever written again under its key.  ``docs/format.md`` has the exact bytes and the reasons.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backupfw.engine.format.binary import DIGEST_BYTES, BadBytes, digest
from backupfw.errors import DataKeyMissing, UnsupportedFormat

#: What the digests of blocks are: BLAKE3, or BLAKE3 with the secret key of the lineage.
HASH_BLAKE3, HASH_KEYED = "blake3", "blake3-keyed"

#: Bytes of every secret key, of a salt, and of what an encrypted part has more than the plain one.
KEY_BYTES = 32
SALT_BYTES = 32
TAG_BYTES = 16

AES_256_GCM, CHACHA20_POLY1305 = "aes-256-gcm", "chacha20-poly1305"
#: The ciphers, by the name that a data key has for its own.
ALGORITHMS: dict[str, type[AESGCM | ChaCha20Poly1305]] = {
    AES_256_GCM: AESGCM,
    CHACHA20_POLY1305: ChaCha20Poly1305,
}

# Objects that are not encrypted have version 1, so that older releases read them.  Encrypted ones have
# version 2, a bit of the required features, and a bit of the flags for the keyed digests.
_CLEAR_MARKS, _SEALED_MARKS = (1, 0, 0), (2, 1, 1)

_SEAL = struct.Struct("<16s32s8x32s")
SEAL_BYTES = _SEAL.size
_NONCE = struct.Struct("<Q4x")
_CONTEXT = b"backupfw object 2\0"


def marks(sealed: bool) -> tuple[int, int, int]:
    """Return version, required features and flags in the header of an object."""
    return _SEALED_MARKS if sealed else _CLEAR_MARKS


def is_sealed(what: str, version: int, features: int, flags: int) -> bool:
    """Say whether an object is encrypted, by what its header has.

    :param what: the object, for the error.
    :raises UnsupportedFormat: this release does not know it.
    """
    found = (version, features, flags)
    if found not in (_CLEAR_MARKS, _SEALED_MARKS):
        raise UnsupportedFormat(
            f"{what} has format version {version}, features {features:#x}, flags {flags:#x}; this release"
            " reads version 1, and version 2 with encryption"
        )
    return found == _SEALED_MARKS


@dataclass(frozen=True, slots=True)
class DataKey:
    """The keys of one volume's backups in one container.

    :ivar id: 32 hexadecimal digits.
    :ivar mac_id: id of ``mac``, as ``id``: backups share blocks if it is the same.
    :ivar algorithm: one of :data:`ALGORITHMS`.
    :ivar enc: 32 secret bytes, from which the cipher keys of objects are derived.
    :ivar mac: 32 secret bytes, with which the digests of blocks are made.
    """

    id: str
    mac_id: str
    algorithm: str
    enc: bytes = field(repr=False)
    mac: bytes = field(repr=False)

    @classmethod
    def new(cls, algorithm: str, after: DataKey | None = None) -> DataKey:
        """Return a random key; one that comes ``after`` another shares blocks with it."""
        mac_id = secrets.token_hex(16) if after is None else after.mac_id
        mac = secrets.token_bytes(KEY_BYTES) if after is None else after.mac
        return cls(secrets.token_hex(16), mac_id, algorithm, secrets.token_bytes(KEY_BYTES), mac)


#: Returns the data key with an id; raises DataKeyMissing, or what the key store raises.
FindKey = Callable[[str], DataKey]


def no_keys(key_id: str) -> DataKey:
    """Find no key: for readers that need none.

    :raises DataKeyMissing: always.
    """
    raise DataKeyMissing(key_id)


@dataclass(frozen=True, slots=True)
class Seal:
    """How one object is encrypted; not secret.

    :ivar key_id: id of the data key.
    :ivar salt: 32 random bytes, drawn for this object.
    :ivar commitment: 32 bytes that only this data key, salt and object give.
    """

    key_id: str
    salt: bytes
    commitment: bytes

    def encode(self) -> bytes:
        """Return the seal's 88 bytes."""
        return _SEAL.pack(bytes.fromhex(self.key_id), self.commitment, self.salt)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Seal:
        """Undo :meth:`encode`."""
        key_id, commitment, salt = _SEAL.unpack(data)
        return cls(key_id.hex(), salt, commitment)


class ObjectCipher:
    """Encrypts or decrypts the parts of one object.  Not thread-safe.

    :param key: the data key.
    :param object_key: the object's key in the container.
    :param salt: the object's; None for a new object.
    :ivar seal: the object's.
    """

    def __init__(self, key: DataKey, object_key: str, salt: bytes | None = None) -> None:
        salt = secrets.token_bytes(SALT_BYTES) if salt is None else salt
        info = b"\0".join((_CONTEXT, key.algorithm.encode(), key.id.encode(), digest(object_key.encode())))
        derived = HKDF(SHA256(), KEY_BYTES + DIGEST_BYTES, salt, info).derive(key.enc)
        self._cipher = ALGORITHMS[key.algorithm](derived[:KEY_BYTES])
        self.seal = Seal(key.id, salt, derived[KEY_BYTES:])

    def encrypt_into(self, offset: int, data: bytes | memoryview, context: bytes, room: memoryview) -> int:
        """Encrypt a part and return its length: :data:`TAG_BYTES` more than the plain one.

        :param offset: where the part will lie in the object.
        :param context: what it is bound to besides its place; the reader must know it.
        :param room: where the encrypted bytes go to.
        """
        length = len(data) + TAG_BYTES
        self._cipher.encrypt_into(_NONCE.pack(offset), data, context, room[:length])
        return length

    def encrypt(self, offset: int, data: bytes | bytearray, context: bytes) -> bytes:
        """Return an encrypted part; see :meth:`encrypt_into`."""
        return self._cipher.encrypt(_NONCE.pack(offset), data, context)

    def decrypt(self, offset: int, data: bytes | memoryview, context: bytes) -> bytes:
        """Return the plain bytes of a part.

        :raises BadBytes: it is not what was encrypted for this object, place and context.
        """
        try:
            return self._cipher.decrypt(_NONCE.pack(offset), data, context)
        except InvalidTag as error:
            raise BadBytes("an encrypted part has changed") from error


class Sealing:
    """How the objects of a lineage are encrypted, or that they are not.  Thread-safe.

    A lineage is what shares blocks: all its data keys have the same ``mac``, and an object says which of them
    it was encrypted with.

    :param key: for new objects; None: nothing is encrypted.
    :param find: returns the lineage's other data keys.
    """

    def __init__(self, key: DataKey | None = None, find: FindKey = no_keys) -> None:
        self._key = key
        self._find = find
        self._mac = None if key is None else key.mac

    @property
    def hash_mode(self) -> str:
        """What the digests of blocks are."""
        return HASH_BLAKE3 if self._key is None else HASH_KEYED

    @property
    def key_id(self) -> str | None:
        """Id of the data key of new objects; None without encryption."""
        return None if self._key is None else self._key.id

    @property
    def mac_id(self) -> str | None:
        """Id of the key of the digests; None without encryption."""
        return None if self._key is None else self._key.mac_id

    def find(self, key_id: str) -> DataKey:
        """Return a data key of the lineage.

        :raises DataKeyMissing: it cannot be found; the key store's own errors pass through, too.
        """
        return self._key if self._key is not None and key_id == self._key.id else self._find(key_id)

    def digest(self, block: bytes | memoryview) -> bytes:
        """Return the 32-byte digest of a block's plain bytes."""
        return (blake3(block) if self._mac is None else blake3(block, key=self._mac)).digest()

    def begin(self, object_key: str) -> ObjectCipher | None:
        """Return the cipher of a new object; None: it is not encrypted."""
        return None if self._key is None else ObjectCipher(self._key, object_key)

    def open(self, seal: Seal | None, object_key: str) -> ObjectCipher | None:
        """Return the cipher of a stored object; None: it is not encrypted.

        :param seal: the object's; None: it says that it is not encrypted.
        :raises BadBytes: the object belongs to another lineage, or its seal is not what was written.
        :raises DataKeyMissing: the data key cannot be found; the key store's own errors pass through, too.
        """
        if seal is None and self._key is None:
            return None
        if seal is None or self._key is None:
            raise BadBytes("it and its manifest disagree about encryption")
        key = self.find(seal.key_id)
        if key.mac_id != self._key.mac_id:
            raise BadBytes("it is encrypted with a key of other backups")
        cipher = ObjectCipher(key, object_key, seal.salt)
        if not hmac.compare_digest(cipher.seal.commitment, seal.commitment):
            raise BadBytes("it is not encrypted with the key that it names")
        return cipher


#: Nothing is encrypted.
CLEAR = Sealing()
