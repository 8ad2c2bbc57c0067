"""The bytes of wrapped secrets and of key files: what was written once is read for ever."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from backupfw.keys import record, wrapping
from backupfw.keys.base import KeyStore
from backupfw.keys.errors import KeyStoreError, KeyStoreUnavailable, UnwrapRefused
from backupfw.keys.file import MARKER, FileKeyStore
from tests.unit.keys.support import opened

KEY = bytes(range(32))
KEY_ID = "00112233445566778899aabbccddeeff"
SECRET = b"enc" * 10 + b"mac" * 10
CONTEXT = b"what it is for"
#: Made by the first release that had key stores; never edited.
WRAPPED = bytes.fromhex(
    "01bc8a47249038d8e1afa217c5213478227de4e59acf5ba9cb98e5ca3b06cf2aa9165fd79ad41de7b3457dcc"
    "f4b93daf989c7571fa5e26c3888f17ba0081c0536df19a3e1b57194657b2cd9d03c344f9dc741a4ecfcda058"
    "b7bab2fcb31c25f276152ea450201b9d39b0b9937f"
)
RECORD = (
    '{"version": 1, "project_id": "b6f3a1d2c4e54f7a9b8c7d6e5f403122", "check": "469223afb8a60'
    'f391a24fcb9e8702ddc", "key": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}'
)
SEALED = (
    '{"version": 1, "project_id": "b6f3a1d2c4e54f7a9b8c7d6e5f403122", "check": "469223afb8a60'
    'f391a24fcb9e8702ddc", "master": "8fb16815b307c3dc", "wrapped": "Abvqi6TB06Bea05Gp6qWJgOe'
    'xQodTI5tHlMgo+RXhZ/jwbGrta/5Rt6MF6qreE23sGf5DW9zmQbH158gjlXktpfODBitl+QXxljwvE6xWPYV"}'
)


def hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    """RFC 5869 for 32 bytes, written again."""
    extracted = hmac.digest(salt or bytes(32), key, hashlib.sha256)
    return hmac.digest(extracted, info + b"\1", hashlib.sha256)


def test_what_the_first_release_wrapped() -> None:
    assert wrapping.unwrap(KEY, KEY_ID, WRAPPED, CONTEXT) == SECRET


def test_wrapped_bytes_are_what_the_module_says() -> None:
    wrapped = wrapping.wrap(KEY, KEY_ID, SECRET, CONTEXT)
    assert wrapped[:1] == b"\1"
    assert len(wrapped) == 1 + 32 + len(SECRET) + 16
    cipher = AESGCM(hkdf(KEY, wrapped[1:33], b"backupfw wrap v1"))
    bound = len(KEY_ID).to_bytes(4, "big") + KEY_ID.encode() + CONTEXT
    assert cipher.decrypt(bytes(12), wrapped[33:], bound) == SECRET


def test_no_key_of_aes_is_used_twice() -> None:
    salts = {wrapping.wrap(KEY, KEY_ID, SECRET, CONTEXT)[1:33] for _ in range(1000)}
    assert len(salts) == 1000


def test_id_and_context_are_not_mixed_up() -> None:
    wrapped = wrapping.wrap(KEY, "ab", SECRET, b"c")
    with pytest.raises(UnwrapRefused):
        wrapping.unwrap(KEY, "a", wrapped, b"bc")


@pytest.mark.parametrize(("text", "master"), [(RECORD, None), (SEALED, bytes(32))], ids=["plain", "wrapped"])
def test_key_files_of_the_first_release(tmp_path: Path, text: str, master: bytes | None) -> None:
    folder = tmp_path / "keys"
    folder.mkdir(0o700)
    (folder / MARKER).touch()
    (folder / KEY_ID).write_text(text + "\n")
    (folder / KEY_ID).chmod(0o600)
    if master is not None:
        (tmp_path / "master").write_bytes(master)
        (tmp_path / "master").chmod(0o400)
    keys: KeyStore = opened(tmp_path, master)
    assert keys.unwrap(KEY_ID, WRAPPED, CONTEXT) == SECRET
    keys.check()


def test_a_damaged_record_is_not_mistaken_for_another_key() -> None:
    data = record.encoded(KEY, KEY_ID, "project")
    assert record.decoded(data, KEY_ID) == KEY
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        try:
            found = record.decoded(bytes(changed), KEY_ID)
        except KeyStoreError as error:
            shown = repr((error.key_id, error.__cause__))
            assert shown == repr((KEY_ID, None)), "a cause may show the key"
        else:
            # What is between the words of JSON has no meaning.
            assert found == KEY


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "1",
        '"x"',
        "{",
        '{"version": 1}',
        '{"version": 1, "project_id": 5, "key": "AA=="}',
    ]
    + [json.dumps(json.loads(RECORD) | {"key": bad}) for bad in ("", "AA==", "ä", "AAA", None, 7)]
    + [json.dumps(json.loads(RECORD) | {"check": bad}) for bad in ("", "ä", None, 7)],
)
def test_what_is_no_record(text: str) -> None:
    with pytest.raises(KeyStoreError, match="damaged"):
        record.decoded(text.encode(), KEY_ID)


def test_a_record_of_a_later_version() -> None:
    later = json.dumps(json.loads(RECORD) | {"version": 2})
    with pytest.raises(KeyStoreError, match="version 2, which this release does not know"):
        record.decoded(later.encode(), KEY_ID)


def test_a_record_needs_its_own_master_key() -> None:
    data = record.encoded(KEY, KEY_ID, "project", b"m" * 32)
    assert KEY.hex().encode() not in data
    assert record.decoded(data, KEY_ID, b"m" * 32) == KEY
    with pytest.raises(KeyStoreUnavailable, match="none is configured"):
        record.decoded(data, KEY_ID)
    with pytest.raises(KeyStoreUnavailable, match="another master key"):
        record.decoded(data, KEY_ID, b"n" * 32)
    with pytest.raises(KeyStoreError, match="damaged"):
        record.decoded(data, "f" * 32, b"m" * 32)


def test_a_plain_record_stays_readable_when_a_master_key_is_configured() -> None:
    assert record.decoded(RECORD.encode(), KEY_ID, b"m" * 32) == KEY


def test_the_class_is_the_entry_point() -> None:
    from backupfw.keys.loader import load_key_store

    assert load_key_store("file") is FileKeyStore
