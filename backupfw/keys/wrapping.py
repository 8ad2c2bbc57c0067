"""How a project key wraps a secret: for all key stores whose keys come into the process.

Wrapped bytes are ``0x01``, a random salt of 32 bytes, and the secret encrypted with AES-256-GCM, with its tag
of 16 bytes.  The AES key is HKDF-SHA256 of the project key with this salt.  It is used once, so the nonce is
zero.  The associated data are the key's id, its length before it, and the context.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from backupfw.keys.errors import UnwrapRefused

#: Bytes of a project key.
KEY_BYTES = 32

_VERSION = b"\x01"
_SALT_BYTES = 32
_TAG_BYTES = 16
#: Each key that is derived is used for one encryption.
_NONCE = bytes(12)


def new_key() -> bytes:
    """Return a new random project key."""
    return os.urandom(KEY_BYTES)


def wrap(key: bytes, key_id: str, secret: bytes, context: bytes) -> bytes:
    """Encrypt a secret under a project key; see :meth:`backupfw.keys.base.KeyStore.wrap`.

    :param key: the project key, :data:`KEY_BYTES` bytes.
    """
    salt = os.urandom(_SALT_BYTES)
    return _VERSION + salt + _cipher(key, salt).encrypt(_NONCE, secret, _bound_to(key_id, context))


def unwrap(key: bytes, key_id: str, wrapped: bytes, context: bytes) -> bytes:
    """Return a secret that :func:`wrap` encrypted.

    :raises UnwrapRefused: it was not wrapped so.
    """
    body = 1 + _SALT_BYTES
    if not wrapped.startswith(_VERSION) or len(wrapped) < body + _TAG_BYTES:
        raise UnwrapRefused(key_id)
    try:
        return _cipher(key, wrapped[1:body]).decrypt(_NONCE, wrapped[body:], _bound_to(key_id, context))
    except InvalidTag as error:
        raise UnwrapRefused(key_id) from error


def derived(key: bytes, salt: bytes, purpose: bytes) -> bytes:
    """Return 32 bytes made of a key, from which nobody can tell the key.

    :param purpose: distinguishes what such bytes are used for.
    """
    return HKDF(SHA256(), KEY_BYTES, salt, purpose).derive(key)


def _cipher(key: bytes, salt: bytes) -> AESGCM:
    return AESGCM(derived(key, salt, b"backupfw wrap v1"))


def _bound_to(key_id: str, context: bytes) -> bytes:
    name = key_id.encode("ascii", "backslashreplace")
    return len(name).to_bytes(4, "big") + name + context
