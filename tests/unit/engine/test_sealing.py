"""Encrypted backups: nobody without the keys reads them, and nobody changes them unnoticed."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from backupfw.chunkstore.base import Body
from backupfw.engine import backup, restore, verify
from backupfw.engine.format import keys, manifest, pack
from backupfw.engine.format.binary import BadBytes, digest, dump_json
from backupfw.engine.format.geometry import Geometry
from backupfw.engine.format.key_object import MAGIC, MAX_BYTES, WrappedKey, read_key, secret_of
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import (
    AES_256_GCM,
    CHACHA20_POLY1305,
    CLEAR,
    TAG_BYTES,
    DataKey,
    ObjectCipher,
    Seal,
    Sealing,
    no_keys,
)
from backupfw.engine.ports import BackupResult
from backupfw.errors import Damaged, DataKeyMissing, UnsupportedFormat
from tests.unit.engine.fakes import (
    BLOCK,
    SEGMENT,
    FakeControl,
    FaultyContainer,
    Keyring,
    MemoryJournal,
    MemoryPoint,
    MemoryTarget,
    make_job,
    memory_container,
)

MARK = b"the plaintext that nobody may see"
NAME = "a name that nobody may see"


def content(length: int = 2 * SEGMENT, seed: int = 0) -> bytearray:
    """Marked blocks: some that compress, some that do not, some zeros."""
    rng = random.Random(seed)
    data = bytearray()
    while len(data) < length:
        kind = len(data) // BLOCK % 4
        data += (MARK * BLOCK)[:BLOCK] if kind == 0 else bytes(BLOCK) if kind == 1 else rng.randbytes(BLOCK)
        if kind == 2:
            data[-len(MARK) :] = MARK
    return data[:length]


def run(
    box: FaultyContainer,
    number: int,
    data: bytes,
    ring: Keyring | None,
    base: str | None = None,
    **changes: Any,
) -> BackupResult:
    job = make_job(
        number,
        len(data),
        base,
        sealing=CLEAR if ring is None else ring.sealing,
        record={"backup": {"name": NAME}},
        **changes,
    )
    point = MemoryPoint(bytes(data), token=f"secret token {number}")
    return backup.run(job, point, box, MemoryJournal(), FakeControl())


def restored(box: FaultyContainer, key: str, length: int, ring: Keyring) -> bytes:
    target = MemoryTarget(length, b"\xa5")
    restore.run(key, box, target, FakeControl(), find_key=ring.find)
    return bytes(target.data)


def damage(box: FaultyContainer, key: str, ring: Keyring, *, quick: bool = False) -> list[str]:
    found: list[str] = []
    verify.run(key, box, FakeControl(), lambda name, _: found.append(name), quick=quick, find_key=ring.find)
    return found


def objects(box: FaultyContainer) -> dict[str, bytes]:
    return box.store.contents["box"]  # type: ignore[attr-defined, no-any-return]


def test_the_encrypted_page_may_have_exactly_the_largest_size(monkeypatch: pytest.MonkeyPatch) -> None:
    box, ring = memory_container(), Keyring(AES_256_GCM)
    origin = keys.Origin("i", "p", "v", "b", 0, 1, "0" * 16)
    head = manifest.ManifestHead(origin, Geometry(1 << 28), record={"name": NAME * 50})
    largest = len(dump_json(head.secret_json())) + TAG_BYTES
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", largest)
    with manifest.ManifestWriter(head, ring.sealing) as writer:
        writer.put(box)
    assert manifest.read_head(box, head.key, ring.find).record == head.record
    assert manifest.read_head(box, head.key).record == {}
    monkeypatch.setattr(manifest, "MAX_PAGE_BYTES", largest - 1)
    with pytest.raises(ValueError, match="too large"):
        manifest.ManifestWriter(head, ring.sealing)


@pytest.mark.parametrize("algorithm", [AES_256_GCM, CHACHA20_POLY1305])
def test_an_encrypted_chain_restores_verifies_and_shares(algorithm: str) -> None:
    box, ring = memory_container(), Keyring(algorithm)
    data = content()
    first = run(box, 0, data, ring)
    data[0] ^= 1
    # A new data key shares with the one before it, because the digests are made with the same key.
    ring.rotate()
    second = run(box, 1, data, ring, first.manifest_key)
    assert (second.base_problem, second.changed_segments) == (None, 1)
    assert second.stored_bytes < first.stored_bytes / 2
    assert restored(box, second.manifest_key, len(data), ring) == data
    assert damage(box, second.manifest_key, ring) == damage(box, first.manifest_key, ring, quick=True) == []
    head = ManifestReader(box, second.manifest_key, ring.find).head
    assert (head.hash_mode, head.key_id, head.mac_id) == (
        "blake3-keyed",
        ring.current.id,
        ring.current.mac_id,
    )
    assert head.record == {"backup": {"name": NAME}}
    assert head.point is not None
    assert head.point.token == "secret token 1"
    found = verify.look(second.manifest_key, (), box, FakeControl(), find_key=ring.find)
    assert (found.damaged, found.object_count) == (0, second.object_count)


@pytest.mark.parametrize("before", [None, "other"])
def test_only_backups_with_the_same_key_of_digests_share(before: str | None) -> None:
    box, ring = memory_container(), Keyring()
    data = content()
    first = run(box, 0, data, None if before is None else Keyring())
    second = run(box, 1, data, ring, first.manifest_key)
    assert second.base_problem is not None
    assert "encrypted" in second.base_problem
    assert restored(box, second.manifest_key, len(data), ring) == data
    clear = run(box, 2, data, None, second.manifest_key)
    assert clear.base_problem is not None
    assert clear.stored_bytes == run(memory_container(), 2, data, None).stored_bytes


def test_nothing_of_what_is_stored_can_be_read_in_the_store() -> None:
    box, ring = memory_container(), Keyring()
    data = content()
    result = run(box, 0, data, ring)
    digests = [digest(data[at : at + BLOCK]) for at in range(0, len(data), BLOCK)]
    secrets = [MARK, NAME.encode(), b"secret token", ring.current.enc, ring.current.mac, *digests]
    for key, stored in objects(box).items():
        for secret in secrets:
            assert secret not in stored, key
            assert secret.hex().encode() not in stored, key
    assert "enc" not in repr(ring.current)
    # The same bytes of another volume look different: digests are made with a secret key.
    other = memory_container()
    run(other, 0, data, Keyring())
    assert not set(objects(box).values()) & set(objects(other).values())
    # What is needed to delete is readable without a key; what people wrote is not.
    reader = ManifestReader(box, result.manifest_key)
    named = {name for entry in reader.segments() for name in entry.object_keys()} | {result.manifest_key}
    assert named == set(objects(box))
    assert len(reader.origins()) == 1
    assert (reader.head.record, reader.head.point) == ({}, None)


def test_without_the_right_key_nothing_is_restored() -> None:
    box, ring = memory_container(), Keyring()
    data = content()
    result = run(box, 0, data, ring)
    target = MemoryTarget(len(data))
    for find in (no_keys, Keyring().find):
        with pytest.raises(DataKeyMissing, match=ring.current.id):
            restore.run(result.manifest_key, box, target, FakeControl(), find_key=find)
        with pytest.raises(DataKeyMissing, match=ring.current.id):
            verify.run(result.manifest_key, box, FakeControl(), lambda *_: None, find_key=find)
    was = ring.current
    wrong = DataKey(was.id, was.mac_id, was.algorithm, bytes(32), was.mac)
    with pytest.raises(Damaged, match="not encrypted with the key that it names"):
        restore.run(result.manifest_key, box, target, FakeControl(), find_key=lambda _: wrong)
    other = DataKey(was.id, "00" * 16, was.algorithm, was.enc, was.mac)
    with pytest.raises(Damaged, match="other digests"):
        restore.run(result.manifest_key, box, target, FakeControl(), find_key=lambda _: other)
    assert not any(target.data)


@pytest.mark.parametrize("kind", ["pack", "map", "manifest"])
def test_every_flipped_byte_is_found_and_named(kind: str) -> None:
    box, ring = memory_container(), Keyring()
    data = content(8 * BLOCK)
    result = run(box, 0, data, ring, pack_size=64 << 10)
    key = next(key for key in objects(box) if keys.parse(key).kind == kind)  # type: ignore[union-attr]
    good = objects(box)[key]
    # Blocks are alike: of a pack, the bytes of the first and the last one, and all around them.
    places = range(len(good)) if kind != "pack" else [*range(400), *range(len(good) - 800, len(good))]
    for at in places:
        changed = bytearray(good)
        changed[at] ^= 1 << at % 8
        objects(box)[key] = bytes(changed)
        try:
            assert damage(box, result.manifest_key, ring) == [key], at
        except UnsupportedFormat:
            assert at < 24, at
    objects(box)[key] = good
    assert damage(box, result.manifest_key, ring) == []


def test_exchanged_objects_are_refused() -> None:
    """What a store without keys can do: put one object in the place of another one."""
    box, ring = memory_container(), Keyring()
    data = content()
    result = run(box, 0, data, ring)
    names = sorted(key for key in objects(box) if keys.parse(key).kind == "pack")  # type: ignore[union-attr]
    good = dict(objects(box))
    for one, two in itertools.pairwise(names):
        objects(box)[one], objects(box)[two] = good[two], good[one]
        with pytest.raises(Damaged):
            restored(box, result.manifest_key, len(data), ring)
        assert {one, two} <= set(damage(box, result.manifest_key, ring))
        objects(box).update(good)


def _packs(box: FaultyContainer) -> Iterator[tuple[str, bytearray]]:
    for key, data in list(objects(box).items()):
        if (parsed := keys.parse(key)) is not None and parsed.kind == "pack":
            yield key, bytearray(data)


def test_exchanged_blocks_of_a_pack_are_refused() -> None:
    box, ring = memory_container(), Keyring()
    data = random.Random(1).randbytes(4 * BLOCK)
    result = run(box, 0, data, ring, pack_size=64 << 10)
    [(key, stored)] = _packs(box)
    size = BLOCK + 16
    first, second = pack.HEADER_BYTES, pack.HEADER_BYTES + size
    stored[first:second], stored[second : second + size] = (
        stored[second : second + size],
        stored[first:second],
    )
    objects(box)[key] = bytes(stored)
    with pytest.raises(Damaged, match="encrypted part has changed"):
        restored(box, result.manifest_key, len(data), ring)
    assert damage(box, result.manifest_key, ring) == [key]


def forge(box: FaultyContainer, key: str, change: Callable[[int, bytes], bytes]) -> None:
    """Change a manifest's pages and make every checksum right again, as anybody can."""
    data = objects(box)[key]
    header = bytearray(data[: manifest.HEADER_BYTES - 32])
    binding = digest(key.encode())
    at, chain, out = manifest.HEADER_BYTES, blake3(), bytearray()
    while at < len(data):
        fields = list(manifest._PAGE.unpack_from(data, at))
        size = manifest._PAGE.size
        stored = data[at + size : at + size + fields[5]]
        at += size + fields[5] + 32
        if fields[1] == manifest._PAGE_END:
            stored = manifest._END.pack(*manifest._END.unpack_from(stored)[:3], chain.digest()) + stored[-16:]
        elif fields[2] == 0:
            stored = change(fields[1], stored)
        page = manifest._PAGE.pack(*fields[:5], len(stored), fields[6]) + stored
        checksum = digest(binding + page)
        chain.update(checksum)
        out += page + checksum
    objects(box)[key] = bytes(header + digest(bytes(header)) + out)


@pytest.fixture
def no_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages that are not compressed are easy to change."""

    class Never:
        def __init__(self, level: int) -> None:
            del level

        def compress(self, data: Any) -> bytes:
            return bytes(len(data) + 1)

    monkeypatch.setattr("zstandard.ZstdCompressor", Never)


def test_a_manifest_that_somebody_wrote_without_the_key_is_refused(no_compression: None) -> None:
    box, ring = memory_container(), Keyring()
    data = random.Random(1).randbytes(4 * BLOCK)
    result = run(box, 0, data, ring)
    key = result.manifest_key
    forge(box, key, lambda _kind, stored: stored)
    assert restored(box, key, len(data), ring) == data

    good = objects(box)[key]
    longer = f'"length":{len(data) + 1}'
    for was, becomes in (
        ('"base":null', '"base":"an"'),
        (f'"length":{len(data)}', longer),
    ):
        objects(box)[key] = good

        def change(kind: int, stored: bytes, was: str = was, becomes: str = becomes) -> bytes:
            return stored.replace(was.encode(), becomes.encode()) if kind == manifest._PAGE_HEAD else stored

        forge(box, key, change)
        assert objects(box)[key] != good, was
        # Without the key nobody can tell; with it the manifest is no more what its maker wrote.
        list(ManifestReader(box, key).segments())
        with pytest.raises(Damaged, match="encrypted part has changed"):
            list(ManifestReader(box, key, ring.find).segments())
        with pytest.raises(Damaged):
            restored(box, key, len(data) + 1, ring)


def test_an_older_state_in_the_pages_of_a_manifest_is_refused(no_compression: None) -> None:
    """All checksums are right, as anybody can make them; the proof is that of other pages."""
    box, ring = memory_container(), Keyring()
    old, new = random.Random(1).randbytes(4 * BLOCK), random.Random(2).randbytes(4 * BLOCK)
    first, second = run(box, 0, old, ring).manifest_key, run(box, 1, new, ring).manifest_key
    named = [next(ManifestReader(box, key).segments()).map_key for key in (first, second)]
    pages: dict[int, bytes] = {}
    forge(box, first, lambda kind, stored: pages.setdefault(kind, stored))
    good = objects(box)[second]
    # The whole manifest of the other backup, then its pages.
    objects(box)[second] = objects(box)[first]
    with pytest.raises(Damaged):
        restored(box, second, len(new), ring)
    objects(box)[second] = good
    exchanged = (manifest._PAGE_SEGMENTS, manifest._PAGE_ORIGINS)
    forge(box, second, lambda kind, stored: pages[kind] if kind in exchanged else stored)
    assert [entry.map_key for entry in ManifestReader(box, second).segments()] == named[:1]
    with pytest.raises(Damaged, match="encrypted part has changed"):
        restored(box, second, len(new), ring)
    # And the secret page of the other one: what a restore would call the volume.
    objects(box)[second] = good
    forge(box, second, lambda kind, stored: pages[kind] if kind == manifest._PAGE_SECRET else stored)
    with pytest.raises(Damaged, match="encrypted part has changed"):
        ManifestReader(box, second, ring.find)


def test_a_data_key_is_read_from_the_store() -> None:
    box = memory_container()
    key = DataKey.new(AES_256_GCM)
    place = keys.data_key_key("i/p/v/", key.id)
    wrapped = WrappedKey(place, key.mac_id, key.algorithm, "the project's", secret_of(key))
    data = wrapped.encode()
    with pytest.raises(DataKeyMissing, match=key.id):
        read_key(box, place)
    for stored in (data, data + bytes(100)):
        # What lies behind the promised length is never read.
        box.put(place, Body.from_bytes(stored))
        assert read_key(box, place) == wrapped
    length = struct.Struct("<I")
    hostile = bytearray(data + bytes(MAX_BYTES))
    length.pack_into(hostile, 20, (1 << 32) - 1)
    for stored in (data[:-1], data[:10], b"", data[:-1] + b"\0", bytes(hostile)):
        objects(box)[place] = bytes(stored)
        with pytest.raises(Damaged) as caught:
            read_key(box, place)
        assert caught.value.key == place
    other = DataKey.new(AES_256_GCM)
    objects(box)[place] = WrappedKey(
        keys.data_key_key("i/p/v/", other.id), other.mac_id, key.algorithm, "the project's", b""
    ).encode()
    with pytest.raises(Damaged, match="its bytes have changed"):
        read_key(box, place)


def test_what_is_no_data_key_is_told_apart() -> None:
    place = keys.data_key_key("i/p/v/", KNOWN.id)
    good = WrappedKey(place, KNOWN.mac_id, AES_256_GCM, "the project's", b"w").encode()

    def checked(data: bytes, at: str = place) -> bytes:
        return data + digest(digest(at.encode()) + data)

    payload = good[24:-32]

    def made(magic: bytes = MAGIC, version: int = 2, header: int = 24, length: int | None = None) -> bytes:
        length = len(payload) if length is None else length
        return checked(struct.pack("<8sHHIII", magic, version, header, 1, 1, length) + payload)

    assert made() == good
    for data, problem in (
        (good[:55], "length of no data key"),
        (checked(good[:24]), "its lengths are wrong"),
        (good[:-1], "its bytes have changed"),
        (made(magic=b"BFWother"), "it is no data key"),
        (made(header=25), "its lengths are wrong"),
        (made(length=len(payload) - 1), "its lengths are wrong"),
        (checked(good[:24] + b"[]"), "its lengths are wrong"),
    ):
        with pytest.raises(BadBytes, match=problem):
            WrappedKey.parse(place, data)
    with pytest.raises(UnsupportedFormat, match="a data key has format version 3, features"):
        WrappedKey.parse(place, made(version=3))
    elsewhere = f"i/p/v/other/{KNOWN.id}"
    with pytest.raises(BadBytes, match="length of no data key"):
        WrappedKey.parse(elsewhere, checked(good[:-32], elsewhere))
    # The longest that is read.
    room = MAX_BYTES - len(good)
    padded = payload[:-1] + b',"x":"' + b"x" * (room - 7) + b'"}'
    header = struct.pack("<8sHHIII", MAGIC, 2, 24, 1, 1, len(padded))
    whole = checked(header + padded)
    assert len(whole) == MAX_BYTES
    assert WrappedKey.parse(place, whole).id == KNOWN.id
    with pytest.raises(BadBytes, match="length of no data key"):
        WrappedKey.parse(place, whole + b"x")


def test_new_keys_have_full_length() -> None:
    key = DataKey.new(AES_256_GCM)
    assert [len(bytes.fromhex(text)) for text in (key.id, key.mac_id)] == [16, 16]
    assert [len(key.enc), len(key.mac)] == [32, 32]
    assert len(ObjectCipher(key, "k").seal.salt) == 32
    assert Sealing(key).find(key.id) is key
    assert Sealing().digest(b"block") == digest(b"block")


def test_a_manifest_without_encryption_does_not_stand_for_one_that_had_it() -> None:
    box, ring = memory_container(), Keyring()
    data = content()
    clear = run(box, 0, data, None)
    target = MemoryTarget(len(data))
    with pytest.raises(Damaged, match="not encrypted, and it was when it was made"):
        restore.run(clear.manifest_key, box, target, FakeControl(), find_key=ring.find, encrypted=True)
    found: list[str] = []
    verify.run(clear.manifest_key, box, FakeControl(), lambda key, _: found.append(key), encrypted=True)
    assert found == [clear.manifest_key]
    assert not any(target.data)


def test_an_object_under_another_key_cannot_be_opened() -> None:
    ring = Keyring()
    cipher = ObjectCipher(ring.current, "one/key")
    stored = cipher.encrypt(128, b"plain", b"context")
    assert ring.sealing.open(cipher.seal, "one/key").decrypt(128, stored, b"context") == b"plain"  # type: ignore[union-attr]
    with pytest.raises(BadBytes, match="not encrypted with the key"):
        ring.sealing.open(cipher.seal, "another/key")
    for offset, context in ((129, b"context"), (128, b"")):
        with pytest.raises(BadBytes, match="has changed"):
            cipher.decrypt(offset, stored, context)
    with pytest.raises(BadBytes, match="it and its manifest disagree about encryption"):
        ring.sealing.open(None, "one/key")
    with pytest.raises(BadBytes, match="it and its manifest disagree about encryption"):
        CLEAR.open(cipher.seal, "one/key")
    stranger = DataKey.new(AES_256_GCM)
    with pytest.raises(BadBytes, match="key of other backups"):
        Sealing(ring.current, lambda _: stranger).open(ObjectCipher(stranger, "k").seal, "k")


KNOWN = DataKey(
    "000102030405060708090a0b0c0d0e0f", "f0" * 16, AES_256_GCM, bytes(range(32)), bytes(range(32, 64))
)


@pytest.mark.parametrize("algorithm", [AES_256_GCM, CHACHA20_POLY1305])
def test_known_answers(algorithm: str) -> None:
    """The bytes that docs/format.md defines, made here by the primitives alone."""
    salt, key = bytes(range(64, 96)), "i/p/v/b/1.1-0000000000000000/00000000/p0000"
    data_key = DataKey(KNOWN.id, KNOWN.mac_id, algorithm, KNOWN.enc, KNOWN.mac)

    def hmac_sha256(secret: bytes, data: bytes) -> bytes:
        made = hmac.HMAC(secret, hashes.SHA256())
        made.update(data)
        return made.finalize()

    info = (
        b"backupfw object 2\0\0"
        + algorithm.encode()
        + b"\0"
        + KNOWN.id.encode()
        + b"\0"
        + blake3(key.encode()).digest()
    )
    drawn = hmac_sha256(salt, KNOWN.enc)
    secret = hmac_sha256(drawn, info + b"\1")
    commitment = hmac_sha256(drawn, secret + info + b"\2")
    nonce = struct.pack("<Q", 4096) + bytes(4)
    aead = {AES_256_GCM: AESGCM, CHACHA20_POLY1305: ChaCha20Poly1305}[algorithm](secret)
    cipher = ObjectCipher(data_key, key, salt)
    assert cipher.seal == Seal(KNOWN.id, salt, commitment)
    assert cipher.seal.encode() == bytes.fromhex(KNOWN.id) + commitment + bytes(8) + salt
    assert cipher.encrypt(4096, b"plain", b"context") == aead.encrypt(nonce, b"plain", b"context")
    assert Sealing(data_key).digest(b"block") == blake3(b"block", key=KNOWN.mac).digest()


@pytest.mark.parametrize("algorithm", [AES_256_GCM, CHACHA20_POLY1305])
def test_every_flipped_byte_of_a_data_key_is_found(algorithm: str) -> None:
    key = DataKey.new(algorithm)
    place = keys.data_key_key("i/p/v/", key.id)
    wrapped = WrappedKey(place, key.mac_id, algorithm, "the project's", secret_of(key)[::-1])
    data = wrapped.encode()
    assert WrappedKey.parse(place, data) == wrapped
    assert wrapped.unwrapped(secret_of(key)) == key
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        with pytest.raises(BadBytes):
            WrappedKey.parse(place, bytes(changed))
    with pytest.raises(BadBytes):
        WrappedKey.parse(keys.data_key_key("i/p/w/", key.id), data)
    with pytest.raises(BadBytes):
        wrapped.unwrapped(key.enc)
    for other in (replace(wrapped, object_key="i/p/w/keys/" + key.id), replace(wrapped, mac_id="")):
        assert other.context != wrapped.context
