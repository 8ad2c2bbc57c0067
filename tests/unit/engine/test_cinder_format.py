"""Reading Cinder's format: the samples of its drivers, chains of any shape, and what is wrong with them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import IntegrityError
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine.cinder_format import chain as chains
from backupfw.engine.cinder_format import metadata, names, removal, restore, verify
from backupfw.engine.cinder_format.chain import Chain, Place
from backupfw.engine.content_digest import DigestTarget
from backupfw.engine.ports import Checkpoint
from backupfw.errors import Damaged, InvalidInput, TaskCancelled, UnsupportedFormat
from tests.format.cinder_samples import COMPRESS, SAMPLES, Sample, Writer, sample
from tests.unit.engine.fakes import FakeControl, MemoryTarget

BLOCK = 4 << 10


def _writer(**changes: Any) -> Writer:
    return Writer(**{"chunk": 4 * BLOCK, "block": BLOCK, **changes})


def places_of(found: Sample, number: int) -> list[Place]:
    store = MemoryStore("mem", contents=found.copy())
    return [Place(Container(store, name), prefix) for name, prefix in found.places(number)]


def places(writer: Writer, *prefixes: str) -> list[Place]:
    """The chain of these links, the newest first."""
    container = Container(MemoryStore("mem", contents={"box": dict(writer.objects)}), "box")
    return [Place(container, prefix) for prefix in prefixes]


def restored(links: list[Place], length: int, fill: bytes | None = b"\xaa", **options: Any) -> bytes:
    target = MemoryTarget(length, fill)
    chain = Chain.of(links, FakeControl())
    try:
        assert restore.run(chain, target, FakeControl(), **options) == length
    finally:
        chain.close()
    return bytes(target.flushed)


@pytest.mark.parametrize("fill", [None, b"\xaa"])
@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("name", SAMPLES)
def test_what_cinder_wrote_is_restored_to_new_and_used_targets(
    name: str, number: int, fill: bytes | None
) -> None:
    found = sample(name)
    expected = found.backups[number]
    data = restored(places_of(found, number), expected["bytes"], fill)
    assert hashlib.sha256(data).hexdigest() == expected["sha256_of_volume"]


@pytest.mark.parametrize("name", SAMPLES)
def test_what_cinder_wrote_is_verified(name: str) -> None:
    for quick in (False, True):
        report = verify.run(places_of(sample(name), 2), FakeControl(), pytest.fail, quick=quick)
        assert report.ok
        assert report.blocks == (0 if quick else 20)


def test_each_range_is_written_once() -> None:
    found = sample("posix-zlib")
    target = MemoryTarget(found.backups[2]["bytes"], b"\xaa")
    chain = Chain.of(places_of(found, 2), FakeControl())
    restore.run(chain, target, FakeControl())
    chain.close()
    done = sorted([*target.writes, *target.zeros])
    assert [at for at, _ in done] == [0, *(at + size for at, size in done)][:-1]


_states = st.lists(st.lists(st.sampled_from("0abc"), min_size=12, max_size=12), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(
    states=_states,
    chunk=st.sampled_from([1, 2, 4, 5, 12]),
    compression=st.sampled_from(sorted(COMPRESS)),
    hashes=st.booleans(),
    short=st.integers(0, BLOCK - 1),
    small=st.booleans(),
    dirty=st.booleans(),
)
def test_any_chain_restores_to_what_was_backed_up(
    states: list[list[str]],
    chunk: int,
    compression: str,
    hashes: bool,
    short: int,
    small: bool,
    dirty: bool,
) -> None:
    blocks = {
        "0": bytes(BLOCK),
        "a": b"a" * BLOCK,
        "b": random.Random(1).randbytes(BLOCK),
        "c": b"cd" * (BLOCK // 2),
    }
    writer = _writer(chunk=chunk * BLOCK, compression=compression)
    links: list[str] = []
    data = b""
    for state in states:
        data = b"".join(blocks[one] for one in state)
        data = data[: len(data) - short]
        links.insert(0, writer.write(data, links[0] if links else None, hashes=hashes))
    with pytest.MonkeyPatch.context() as patch:
        if small:
            # Tasks that end within objects, and have few parts.
            patch.setattr(chains, "TASK_BYTES", BLOCK)
            patch.setattr(chains, "TASK_BLOCKS", 3)
            patch.setattr(chains, "TASK_PARTS", 2)
        assert restored(places(writer, *links), len(data), b"\xaa" if dirty else None) == data
        assert verify.run(places(writer, *links), FakeControl(), pytest.fail).ok


def test_a_restore_goes_on_at_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "TASK_BYTES", BLOCK)
    data = random.Random(2).randbytes(20 * BLOCK)
    changed = data[: 5 * BLOCK] + bytes(3 * BLOCK) + data[8 * BLOCK :]
    writer = _writer()
    full = writer.write(data)
    newer = writer.write(changed, full)
    saved: list[int] = []
    target = MemoryTarget(len(data), b"\xaa")

    def save(position: int) -> None:
        saved.append(position)
        if len(saved) == 2:
            raise TaskCancelled("stopped")

    chain = Chain.of(places(writer, newer, full), FakeControl())
    with pytest.raises(TaskCancelled):
        restore.run(chain, target, FakeControl(), Checkpoint(0, save), streams=1)
    assert 0 < saved[-1] < len(data)
    assert target.flushed[: saved[-1]] == changed[: saved[-1]]
    begun = len(target.writes)
    restore.run(chain, target, FakeControl(), Checkpoint(saved[-1]))
    chain.close()
    assert target.flushed == changed
    assert min(at for at, _ in target.writes[begun:]) >= saved[-1]


def test_zero_chunks_that_were_left_out_are_zeros_on_a_used_target() -> None:
    data = bytes(4 * BLOCK) + b"x" * 8 * BLOCK
    writer = _writer()
    full = writer.write(data)
    writer.edit(full, lambda found: found["objects"].pop(0))
    assert restored(places(writer, full), len(data)) == data


def test_reversed_objects_and_a_missing_md5_are_fine() -> None:
    data = random.Random(3).randbytes(12 * BLOCK)
    writer = _writer()
    full = writer.write(data)

    def change(found: dict[str, Any]) -> None:
        found["objects"].reverse()
        for one in found["objects"]:
            next(iter(one.values())).pop("md5")
        found["more"] = {"nobody": "knows"}

    writer.edit(full, change)
    assert restored(places(writer, full), len(data)) == data


def test_a_volume_that_became_smaller_ends_where_its_description_says() -> None:
    writer = _writer()
    full = writer.write(b"a" * 4 * BLOCK)
    assert Chain.of(places(writer, full), FakeControl()).length == 4 * BLOCK
    writer.edit(full, lambda found: next(iter(found["objects"][0].values())).update(length=(1 << 30) + BLOCK))
    assert Chain.of(places(writer, full), FakeControl()).length == 1 << 30


def test_blocks_are_compared_with_their_hashes_where_nobody_knows_an_md5() -> None:
    def change(writer: Writer, prefix: str) -> None:
        for link in {key.rsplit("_metadata")[0] for key in writer.objects if key.endswith("_metadata")}:
            writer.edit(link, lambda found: [next(iter(one.values())).pop("md5") for one in found["objects"]])
        _flip("-00002")(writer, prefix)

    links = _wrong(change)
    with pytest.raises(Damaged, match="SHA-256") as caught:
        restored(links, len(_DATA))
    assert caught.value.key == f"{links[1].prefix}-00002"


class _BadWire(MemoryStore):
    """Every object has changed on the way when it is read first."""

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        data = super().get(container, key, offset, length)
        first = names.split(key) is not None and key not in self.seen
        self.seen.add(key)
        return b"\xff" * len(data) if first else data

    seen: set[str]


@pytest.mark.parametrize("fill", [None, b"\xaa"])
def test_what_changed_on_the_way_does_not_stay_where_the_backup_has_zeros(fill: bytes | None) -> None:
    """Without a list of hashes that is known only at the end of an object, when its bytes are written."""
    data = b"a" * (64 << 10) + bytes(128 << 10) + b"b" * (64 << 10)
    writer = _writer(chunk=len(data), compression="none")
    full = writer.write(data, hashes=False)
    store = _BadWire("mem", contents={"box": dict(writer.objects)})
    store.seen = set()
    place = Place(Container(store, "box"), full)
    assert restored([place], len(data), fill) == data
    # A digest cannot take back what it counted.
    store.seen.clear()
    with contextlib.closing(Chain.of([place], FakeControl())) as chain:
        with pytest.raises(IntegrityError, match="on the way") as caught:
            restore.run(chain, DigestTarget(len(data)), FakeControl())
        assert caught.value.temporary
        digests = DigestTarget(len(data)), DigestTarget(len(data))
        restore.run(chain, digests[0], FakeControl())
    digests[1].write(0, [data])
    assert digests[0].digest() == digests[1].digest()


_DATA = random.Random(4).randbytes(12 * BLOCK)


def _wrong(change: Callable[[Writer, str], object]) -> list[Place]:
    writer = _writer(compression="none")
    full = writer.write(_DATA)
    newer = writer.write(b"x" * BLOCK + _DATA[BLOCK:], full)
    change(writer, full)
    return places(writer, newer, full)


def _flip(key: str) -> Callable[[Writer, str], object]:
    def change(writer: Writer, prefix: str) -> None:
        data = bytearray(writer.objects[prefix + key])
        data[-1] ^= 1
        writer.objects[prefix + key] = bytes(data)

    return change


def _meta(change: Callable[[dict[str, Any]], object]) -> Callable[[Writer, str], object]:
    return lambda writer, prefix: writer.edit(prefix, change)


def _first(**values: Any) -> Callable[[Writer, str], object]:
    return _meta(lambda found: next(iter(found["objects"][1].values())).update(values))


@pytest.mark.parametrize(
    ("change", "suffix", "reason"),
    [
        (_flip("-00002"), "-00002", "MD5"),
        (lambda w, p: w.objects.pop(f"{p}-00002"), "-00002", "missing"),
        (lambda w, p: w.objects.update({f"{p}-00002": b""}), "-00002", "too early"),
        (lambda w, p: w.objects.update({f"{p}-00002": w.objects[f"{p}-00002"] + b"?"}), "-00002", "longer"),
        (_first(md5="00" * 16), "-00002", "MD5"),
        (_first(compression="zlib"), "-00002", "decompressed"),
        (_first(compression="bz2"), "-00002", "decompressed"),
        (_first(compression="zstd"), "-00002", "decompressed"),
        (_first(compression="lzma"), "_metadata", "unknown way"),
        (_first(offset=-1), "_metadata", "place"),
        (_first(offset=1.5), "_metadata", "place"),
        (_first(length=True), "_metadata", "place"),
        (_first(length=0), "_metadata", "place"),
        (_first(md5="zz"), "_metadata", "MD5"),
        (_first(offset=0), "_metadata", "begin at 0"),
        (_first(offset=BLOCK), "_metadata", "two of its objects"),
        (_meta(lambda found: found.update(backup_id="../x")), "_metadata", "no id"),
        (_meta(lambda found: found.update(parent_id=found["backup_id"])), "_metadata", "full backup"),
        (
            _meta(lambda found: found.update(volume_id="22222222-1111-4111-8111-111111111111")),
            "_metadata",
            "another volume",
        ),
        (_meta(lambda found: found["objects"].append({})), "_metadata", "not one object"),
        (
            _meta(lambda found: found["objects"].append({"../../etc/passwd-00001": {}})),
            "_metadata",
            "not its own",
        ),
        (lambda w, p: w.objects.update({f"{p}_metadata": b"[]"}), "_metadata", "JSON"),
        (lambda w, p: w.objects.update({f"{p}_metadata": b"{" * 100_000}), "_metadata", "JSON"),
        (lambda w, p: w.objects.update({f"{p}_metadata": b'{"a": ' + b"[" * 100_000}), "_metadata", "JSON"),
        (
            lambda w, p: w.objects.update({f"{p}_metadata": b'{"a":"' + b"a" * (2 << 20) + b'"}'}),
            "_metadata",
            "long",
        ),
        (lambda w, p: w.objects.update({f"{p}_metadata": b"\xff{}"}), "_metadata", "UTF-8"),
        (lambda w, p: w.objects.pop(f"{p}_metadata"), "_metadata", "missing"),
    ],
)
def test_what_is_wrong_is_named(change: Callable[[Writer, str], object], suffix: str, reason: str) -> None:
    links = _wrong(change)
    with pytest.raises(Damaged, match=reason) as caught:
        restored(links, len(_DATA))
    assert caught.value.key == links[1].prefix + suffix
    found: list[tuple[str, str, str]] = []
    report = verify.run(links, FakeControl(), lambda *one: found.append(one))
    assert report.damaged == 1
    assert [one[:2] for one in found] == [("box", links[1].prefix + suffix)]


def test_all_damaged_objects_are_found_in_one_pass() -> None:
    def change(writer: Writer, prefix: str) -> None:
        _flip("-00002")(writer, prefix)
        del writer.objects[f"{prefix}-00003"]

    links = _wrong(change)
    found: list[str] = []
    verify.run(links, FakeControl(), lambda _container, key, _reason: found.append(key))
    assert sorted(found) == [f"{links[1].prefix}-00002", f"{links[1].prefix}-00003"]
    found.clear()
    verify.run(links, FakeControl(), lambda _container, key, _reason: found.append(key), quick=True)
    assert found == [f"{links[1].prefix}-00003"]


def test_an_object_that_newer_links_replace_is_not_needed() -> None:
    writer = _writer(chunk=BLOCK)
    full = writer.write(_DATA)
    newer = writer.write(b"x" * BLOCK + _DATA[BLOCK:], full)
    del writer.objects[f"{full}-00001"]
    assert restored(places(writer, newer, full), len(_DATA))[:BLOCK] == b"x" * BLOCK


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda found: found["sha256s"].pop(), "fewer hashes"),
        (lambda found: found["sha256s"].append("00" * 32), "more hashes"),
        (lambda found: found["sha256s"].__setitem__(3, "zz"), "no SHA-256"),
        (lambda found: found.update(chunk_size=1), "block size"),
        (lambda found: found.pop("chunk_size"), "block size"),
        (lambda found: found.pop("sha256s"), "has no sha256s"),
    ],
)
def test_a_wrong_list_of_hashes_is_named(change: Callable[[dict[str, Any]], object], reason: str) -> None:
    writer = _writer()
    full = writer.write(_DATA)
    key = f"{full}_sha256file"
    found = json.loads(writer.objects[key])
    change(found)
    writer.objects[key] = json.dumps(found, sort_keys=True).encode()
    with pytest.raises(Damaged, match=reason) as caught:
        restored(places(writer, full), len(_DATA))
    assert caught.value.key == key


def test_another_version_is_refused() -> None:
    with pytest.raises(UnsupportedFormat, match="another version"):
        restored(_wrong(_meta(lambda found: found.update(version="2.0.0"))), len(_DATA))


def test_a_chain_that_never_ends_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chains, "MAX_LINKS", 2)
    writer = _writer()
    links = [writer.write(_DATA)]
    for number in range(2):
        links.insert(0, writer.write(bytes([number]) * len(_DATA), links[0]))
    with pytest.raises(InvalidInput, match="more than 2 links"):
        restored(places(writer, *links), len(_DATA))


def test_nothing_else_is_removed() -> None:
    writer = _writer()
    full = writer.write(_DATA)
    others = {f"{full}x-00001", f"{full}-1", f"{full}-00001a", f"{full}_other", "volume_x"}
    writer.objects.update(dict.fromkeys(others, b"?"))
    (link,) = places(writer, full)
    removal.run(link.container, full, FakeControl())
    assert {info.key for info in link.container.list("")} == others


def test_metadata_with_any_number_of_members_takes_bounded_memory() -> None:
    writer = _writer()
    prefix = writer.write(b"x" * BLOCK)
    key = names.metadata_key(prefix)
    found = writer.objects[key]
    many = b"".join(b'"%d": "%s", ' % (number, b"a" * (1 << 19)) for number in range(64))
    writer.objects[key] = b"{" + many + found[1:]
    (place,) = places(writer, prefix)
    tracemalloc.start()
    try:
        head = metadata.read(place.container, prefix, len(writer.objects[key]), lambda _: None)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert head.volume_id == writer.volume
    assert peak < 16 << 20
