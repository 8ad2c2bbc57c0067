"""Fuzzing of what reads Cinder's format, and its bounds: bombs burst, and long lists are streamed."""

from __future__ import annotations

import bz2
import contextlib
import json
import random
import resource
import time
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from backupfw.chunkstore.base import ObjectInfo
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.engine.cinder_format import compression, restore, verify
from backupfw.engine.cinder_format.chain import Chain, Place
from backupfw.engine.cinder_format.metadata import Hashes
from backupfw.errors import Damaged, InvalidInput, TargetError, UnsupportedFormat
from backupfw.worker import links
from tests.format.cinder_samples import Writer
from tests.fuzz import edits
from tests.fuzz.readers import Control, bounded
from tests.fuzz.test_stored_bytes import SECONDS
from tests.unit.engine.fakes import MemoryTarget

BLOCK = 4 << 10
MIB = 1 << 20
#: What may be said of wrong bytes.
MAY_RAISE = (Damaged, UnsupportedFormat, InvalidInput, TargetError)


def _golden() -> tuple[dict[str, bytes], str, str]:
    data = random.Random(1).randbytes(8 * BLOCK) + bytes(8 * BLOCK)
    writer = Writer(chunk=4 * BLOCK, block=BLOCK)
    full = writer.write(data)
    return writer.objects, full, writer.write(data[: 5 * BLOCK] + b"x" * BLOCK + data[6 * BLOCK :], full)


OBJECTS, FULL, NEWER = _golden()
PARTS = {
    "metadata": f"{NEWER}_metadata",
    "hashes": f"{NEWER}_sha256file",
    "data": f"{FULL}-00002",
    "parent": f"{FULL}_metadata",
}


def read(objects: dict[str, bytes]) -> None:
    """Import, verify and restore what these objects are."""
    store = MemoryStore("mem", contents={"box": objects})
    box = Container(store, "box")
    places = [Place(box, NEWER), Place(box, FULL)]
    with bounded(60):
        try:
            chain = links.read_chain(
                places[0], lambda _: None, lambda name: Container(store, name), Control()
            )
            with contextlib.closing(chain):
                facts = links.facts(chain, "driver", "p1", Control())
            assert facts.key == NEWER
        except MAY_RAISE:
            pass
        found: list[str] = []
        try:
            report = verify.run(places, Control(), lambda _container, key, _reason: found.append(key))
            assert report.damaged == len(found) == len(set(found))
            with contextlib.closing(Chain.of(places, Control())) as chain:
                restore.run(chain, MemoryTarget(MIB, b"\xaa"), Control())
            assert report.ok
        except Damaged:
            # What a verification lets pass can be restored.
            assert found
        except MAY_RAISE:
            pass
    assert all(key.startswith((FULL, NEWER)) for key in found)


_meta = st.sampled_from(["metadata", "parent", "hashes"])


def fuzz(examples: int, number: int = 0) -> None:
    common = settings(
        max_examples=examples, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )

    @common
    @seed(number)
    @given(st.sampled_from(sorted(PARTS)), edits.edits)
    def any_bytes(part: str, todo: Any) -> None:
        read({**OBJECTS, PARTS[part]: edits.changed(OBJECTS[PARTS[part]], todo)})

    @common
    @seed(number)
    @given(_meta, edits.members)
    def any_members(part: str, todo: Any) -> None:
        read({**OBJECTS, PARTS[part]: edits.changed_members(OBJECTS[PARTS[part]], todo)})

    @common
    @seed(number)
    @given(_meta, st.integers(0, 3), edits.members)
    def any_object(part: str, place: int, todo: Any) -> None:
        value = json.loads(OBJECTS[PARTS[part]])
        listed = value.get("objects") or value["sha256s"]
        one = listed[place % len(listed)]
        if isinstance(one, dict):
            changed = json.loads(edits.changed_members(json.dumps(one).encode(), todo))
        else:
            changed = todo[0][1]
        listed[place % len(listed)] = changed
        read({**OBJECTS, PARTS[part]: json.dumps(value).encode()})

    any_bytes()
    any_members()
    any_object()


def test_what_nobody_changed_is_read() -> None:
    read(dict(OBJECTS))


def test_any_bytes_end_in_what_is_said_of_bad_ones() -> None:
    fuzz(25)


@pytest.mark.fuzz
@pytest.mark.timeout(0)
def test_on_and_on() -> None:
    numbers = random.Random()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        fuzz(500, numbers.randrange(1 << 32))


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "zlib": lambda plain: zlib.compress(plain, 1),
    "bz2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}


@pytest.mark.parametrize("codec", ["zlib", "zstd", pytest.param("bz2", marks=pytest.mark.check)])
def test_a_bomb_bursts_at_the_length_that_was_stated(codec: str) -> None:
    bomb = BOMBS[codec](bytes(128 * MIB))
    box = Container(MemoryStore("mem", contents={"box": {"bomb": bomb}}), "box")
    reader = compression.ObjectReader(box, "bomb", len(bomb), compression.CODECS[codec], MIB, None)
    with bounded(60, 64 * MIB), pytest.raises(ValueError, match="longer than its metadata says"):
        reader.finish()


def test_a_window_of_any_size_is_not_made() -> None:
    params = zstandard.ZstdCompressionParameters(window_log=27, enable_ldm=True)
    frame = zstandard.ZstdCompressor(compression_params=params).compressobj()
    data = frame.compress(random.Random(1).randbytes(MIB)) + frame.flush()
    box = Container(MemoryStore("mem", contents={"box": {"x": data}}), "box")
    reader = compression.ObjectReader(box, "x", len(data), compression.ZSTD, MIB, None)
    with pytest.raises(ValueError, match="cannot be decompressed"):
        reader.skip(MIB)


class _List(MemoryStore):
    """Has one object: a list of hashes that is made when it is read."""

    HEAD, ITEM, TAIL = (
        b'{"chunk_size": 32768, "sha256s": [\n',
        b'    "%064x",\n',
        b'    "' + b"f" * 64 + b'"\n]}',
    )

    def __init__(self, count: int) -> None:
        super().__init__("mem", contents={"box": {}})
        self._item = self.ITEM % 7
        self.size = len(self.HEAD) + count * len(self._item) + len(self.TAIL)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        assert offset is not None
        assert length is not None
        start = offset - len(self.HEAD)
        first = max(start, 0) // len(self._item)
        body = self._item * (length // len(self._item) + 2)
        body_start = len(self.HEAD) + first * len(self._item)
        end = self.size - len(self.TAIL)
        text = body[: max(0, end - body_start)]
        if start < 0:
            text, body_start = self.HEAD + text, 0
        text += self.TAIL
        return text[offset - body_start :][:length]

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        raise NotImplementedError


@pytest.mark.check
def test_the_list_of_a_large_volume_is_streamed() -> None:
    """Of 128 GiB; memory does not depend on the length."""
    count = (1 << 37) // 32768
    store = _List(count - 1)
    box = Container(store, "box")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with bounded(300, 64 * MIB):
        hashes = Hashes(box, "volume", store.size)
        hashes.skip(count - 1)
        assert hashes.take(1) == b"\xff" * 32
        hashes.finish()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10


@pytest.mark.check
def test_many_objects_take_no_memory() -> None:
    """A chain of 300 000 objects, as of a volume of 14 TiB; what is kept in memory is bounded."""
    entry = '{"%s-%05d": {"compression": "zlib", "length": 65536, "md5": "' + "0" * 32 + '", "offset": %d}}'
    listed = ",\n".join(entry % (FULL, number, number << 16) for number in range(1, 300_001))
    head = json.loads(OBJECTS[f"{FULL}_metadata"])
    text = json.dumps({**head, "objects": []}).replace('"objects": []', f'"objects": [{listed}]')
    box = Container(MemoryStore("mem", contents={"box": {f"{FULL}_metadata": text.encode()}}), "box")
    del listed
    with bounded(300, 64 * MIB):
        chain = Chain(Control())
        chain.add(Place(box, FULL))
        assert chain.length == 1 << 30
        assert sum(len(task.parts) for task in chain.tasks()) == 1 << 14
        chain.close()


@pytest.mark.check
def test_texts_of_many_links_take_no_memory() -> None:
    """Each of twenty links describes its volume by 100 000 lists."""
    writer = Writer(chunk=BLOCK, block=BLOCK)
    prefixes = [writer.write(bytes(BLOCK))]
    for _ in range(19):
        prefixes.insert(0, writer.write(bytes(BLOCK), prefixes[0], hashes=False))
    base = {"size": 1, "more": [[]] * 100_000}
    meta = json.dumps({"version": 2, "volume-base-metadata": base}, separators=(",", ":"))
    for prefix in prefixes:
        writer.edit(prefix, lambda found: found.update(volume_meta=meta))
    box = Container(MemoryStore("mem", contents={"box": writer.objects}), "box")
    with bounded(60, 48 * MIB), contextlib.closing(Chain(Control())) as chain:
        for prefix in prefixes:
            chain.add(Place(box, prefix))
        assert chain.length == BLOCK
