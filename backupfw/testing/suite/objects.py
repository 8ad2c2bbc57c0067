"""Putting and getting one object: G1, G2, G4 to G9, G12, G16."""

from __future__ import annotations

import io
import re
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from blake3 import blake3

from backupfw.chunkstore.base import Body, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    InvalidName,
    NotFound,
    NotSupported,
    RangeError,
)
from backupfw.chunkstore.layers.names import NamesLayer
from backupfw.testing.suite.adoption import Adoption, pattern, put, require_bytes

#: Keys that are stored wrong if a driver or server quotes, folds, normalises or splits names.
AWKWARD_KEYS = (
    "a",
    "a/b",
    "a/b/c",
    "a.o",
    "a.d/b",
    "a b/ c /d",
    "ä/ö/ü",
    "\u65e5\u672c\u8a9e/\U0001f642",
    "e\u0301",
    "\u00e9",
    "Case/key",
    "case/KEY",
    "100%/%41/%2F/%",
    "a+b&c=d?e#f;g",
    "~*()[]{}<>|!@$^`'\",:=",
    "back\\slash",
    ".hidden/..two/...three",
    "ends.with.dots...",
    "-dash/--option",
)

#: Of the form that backupfw's own keys have: every store must hold these.
OWN_KEYS = (
    "0f9e-4c.x_Y/Project-1/9a_b.C/7d/1.0123456789abcdef/p0000",
    "/".join(["a" * 64, "b" * 255, "c" * 36, "d" * 36, "1.0123456789abcdef", "manifest"]),
)

#: Sizes around the borders of blocks, pieces and buffers; the largest is added by the suite.
SIZES = (0, 1, 511, 4096, 65_537, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 9_000_001)


class FailingBody(Body):
    """A body whose source breaks off with an OSError in the middle."""

    def pieces(self) -> Iterator[memoryview]:
        """Yield half the bytes, then fail."""
        yield memoryview(self.to_half())
        raise OSError(5, "the source failed on purpose")

    def buffer(self) -> memoryview | None:
        """Say that the bytes are in a file."""
        return None

    def to_half(self) -> bytes:
        """Return the half that can be read."""
        return Body.to_bytes(self)[: self.length // 2]

    def to_bytes(self) -> bytes:
        """Fail."""
        raise OSError(5, "the source failed on purpose")

    def open(self) -> BinaryIO:
        """Return a file that fails in the middle."""
        return _FailingFile(self)


class _FailingFile(io.BytesIO):
    def __init__(self, body: FailingBody) -> None:
        super().__init__(b"".join([bytes(piece) for piece in Body.pieces(body)])[: body.length // 2])

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            raise OSError(5, "the source failed on purpose")
        return data


def short_body(data: bytes) -> Body:
    """Declare one byte more than there is."""
    return Body(data, len(data) + 1, blake3(data + b"x").digest())


def long_body(data: bytes) -> Body:
    """Declare one byte less than there is."""
    return Body(data, len(data) - 1, blake3(data[:-1]).digest())


def wrong_body(data: bytes) -> Body:
    """Declare a checksum the bytes do not have."""
    return Body(data, len(data), blake3(data + b"x").digest())


def failing_body(data: bytes) -> Body:
    """Break off in the middle."""

    class Half(FailingBody):
        def to_half(self) -> bytes:
            return data[: len(data) // 2]

    return Half(data, len(data), blake3(data).digest())


BAD_BODIES = (short_body, long_body, wrong_body, failing_body)


class ObjectTests(Adoption):
    """Tests of one object at a time."""

    @pytest.mark.parametrize("size", SIZES)
    def test_g1_round_trip(self, server: Any, store: ChunkStore, container: str, size: int) -> None:
        data = pattern(size)
        put(store, container, "object", data)
        require_bytes(store.get(container, "object"), data)
        require_bytes(self.raw_get(server, container, "object"), data)

    def test_g1_round_trip_of_the_largest(self, store: ChunkStore, container: str) -> None:
        data = pattern(self.largest)
        put(store, container, "object", data)
        require_bytes(store.get(container, "object"), data)

    def test_g1_body_from_a_file(self, store: ChunkStore, container: str, tmp_path: Path) -> None:
        data = pattern(3_000_001)
        (tmp_path / "body").write_bytes(data)
        with open(tmp_path / "body", "rb") as file:
            file.seek(1000)  # where the file stands must not matter
            store.put(container, "object", Body.from_file(file))
        require_bytes(store.get(container, "object"), data)

    @pytest.mark.parametrize("kind", [bytearray, memoryview])
    def test_g1_body_from_a_buffer(
        self, store: ChunkStore, container: str, kind: Callable[[bytes], bytes]
    ) -> None:
        data = pattern(100_000)
        put(store, container, "object", kind(data))
        require_bytes(store.get(container, "object"), data)

    def test_g1_bytes_the_driver_did_not_write(self, server: Any, store: ChunkStore, container: str) -> None:
        data = pattern(200_000, seed=3)
        self.raw_put(server, container, "by/others", data)
        require_bytes(store.get(container, "by/others"), data)
        assert store.get(container, "by/others", 70_000, 1000) == data[70_000:71_000]
        expected = [ObjectInfo("by/others", len(data))]
        assert list(self.listed(store, container, expected)) == expected
        store.delete(container, ["by/others"])
        assert self.raw_get(server, container, "by/others") is None

    def test_g2_missing_object(self, store: ChunkStore, container: str) -> None:
        put(store, container, "there/below", b"x")
        for key in ("missing", "missing/below", "there", "there/below/deeper", "ther"):
            with pytest.raises(NotFound) as caught:
                store.get(container, key)
            assert not caught.value.temporary
            with pytest.raises(NotFound):
                store.get(container, key, 0, 1)

    def test_g2_missing_container(self, store: ChunkStore) -> None:
        missing = self.new_container_name()
        with pytest.raises(NotFound):
            store.get(missing, "key")
        with pytest.raises(NotFound):
            put(store, missing, "key", b"x")
        with pytest.raises(NotFound):
            list(store.list(missing))
        assert missing not in list(store.list_containers())

    @pytest.mark.parametrize("bad", BAD_BODIES)
    @pytest.mark.parametrize("size", [100, 2_500_000])
    def test_g4_failed_put_leaves_nothing(
        self, server: Any, store: ChunkStore, container: str, bad: Callable[[bytes], Body], size: int
    ) -> None:
        with pytest.raises((ChunkStoreError, OSError)):
            store.put(container, "new/key", bad(pattern(size)))
        assert self.raw_get(server, container, "new/key") is None
        assert self.raw_keys(server, container) == set()
        with pytest.raises(NotFound):
            store.get(container, "new/key")
        assert list(store.list(container)) == []

    @pytest.mark.parametrize("bad", BAD_BODIES)
    def test_g4_failed_put_keeps_the_old_object(
        self, server: Any, store: ChunkStore, container: str, bad: Callable[[bytes], Body]
    ) -> None:
        old = pattern(5000, seed=1)
        put(store, container, "key", old)
        with pytest.raises((ChunkStoreError, OSError)):
            store.put(container, "key", bad(pattern(2_500_000)))
        assert self.raw_get(server, container, "key") == old
        assert store.get(container, "key") == old

    @pytest.mark.parametrize("bad", [short_body, long_body, wrong_body])
    @pytest.mark.parametrize("size", [1, 100, 2_500_000])
    def test_g5_wrong_bodies_are_refused(
        self, store: ChunkStore, container: str, bad: Callable[[bytes], Body], size: int
    ) -> None:
        with pytest.raises(IntegrityError) as caught:
            store.put(container, "key", bad(pattern(size)))
        assert caught.value.key == "key"
        assert caught.value.container == container
        assert caught.value.store == store.name

    @pytest.mark.parametrize(("old", "new"), [(100, 5000), (5000, 100), (1000, 1000), (10, 0), (0, 10)])
    def test_g6_put_replaces(
        self, server: Any, store: ChunkStore, container: str, old: int, new: int
    ) -> None:
        put(store, container, "key", pattern(old, seed=1))
        put(store, container, "key", pattern(new, seed=2))
        assert store.get(container, "key") == pattern(new, seed=2)
        assert self.raw_get(server, container, "key") == pattern(new, seed=2)
        assert self.raw_keys(server, container) == {"key"}

    def test_g6_readers_see_old_or_new(self, store: ChunkStore, container: str) -> None:
        states = [pattern(50_000 + 7000 * number, seed=number) for number in range(8)]
        put(store, container, "key", states[0])
        done = threading.Event()
        seen: list[bool] = []

        def read() -> None:
            while not done.is_set():
                seen.append(store.get(container, "key") in states)

        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        try:
            for turn in range(40):
                put(store, container, "key", states[turn % len(states)])
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert seen
        assert all(seen)

    def test_g7_if_absent(self, server: Any, store: ChunkStore, container: str) -> None:
        first, second = Body.from_bytes(b"first"), Body.from_bytes(b"second")
        if not store.capabilities.if_absent:
            with pytest.raises(NotSupported):
                store.put(container, "key", first, if_absent=True)
            assert self.raw_get(server, container, "key") is None
            return
        store.put(container, "key", first, if_absent=True)
        with pytest.raises(AlreadyExists) as caught:
            store.put(container, "key", second, if_absent=True)
        assert not caught.value.temporary
        assert store.get(container, "key") == b"first"
        store.delete(container, ["key"])
        store.put(container, "key", second, if_absent=True)
        assert self.raw_get(server, container, "key") == b"second"
        assert self.raw_keys(server, container) == {"key"}

    def test_g8_whole_get_is_whole(self, server: Any, store: ChunkStore, container: str) -> None:
        # The driver has not seen these objects, so it must use the store's data about them.
        for size in (0, 1, 65_536, 8_388_609):
            data = pattern(size, seed=9)
            self.raw_put(server, container, f"object/{size}", data)
            found = store.get(container, f"object/{size}")
            require_bytes(found, data)

    def test_g9_ranges(self, store: ChunkStore, container: str) -> None:
        data = pattern(100_000)
        put(store, container, "key", data)
        for offset, length in (
            (0, 1),
            (0, 100_000),
            (1, 99_999),
            (99_999, 1),
            (4095, 2),
            (65_536, 1),
            (50_000, 12_345),
        ):
            found = store.get(container, "key", offset, length)
            assert found == data[offset : offset + length], (offset, length)

    @pytest.mark.parametrize("size", [0, 1, 100_000])
    def test_g9_range_past_the_end(self, store: ChunkStore, container: str, size: int) -> None:
        put(store, container, "key", pattern(size))
        for offset, length in (
            (size, 1),
            (0, size + 1),
            (max(0, size - 1), 2),
            (size + 1000, 10),
            (0, 1 << 40),
        ):
            with pytest.raises(RangeError) as caught:
                store.get(container, "key", offset, length)
            assert not caught.value.temporary

    def test_g12_names_are_stored_as_they_are(self, server: Any, store: ChunkStore, container: str) -> None:
        keys = [key for key in AWKWARD_KEYS if self.can_hold(store, key)]
        for number, key in enumerate(keys):
            put(store, container, key, b"%d" % number)
        for number, key in enumerate(keys):
            assert store.get(container, key) == b"%d" % number, key
            assert self.raw_get(server, container, key) == b"%d" % number, key
        assert self.raw_keys(server, container) == set(keys)
        listed = self.eventually(
            store, lambda: sorted(info.key for info in store.list(container)), sorted(keys)
        )
        assert listed == sorted(keys)
        store.delete(container, keys)
        assert self.raw_keys(server, container) == set()

    def test_g12_names_it_cannot_hold_are_refused(
        self, server: Any, store: ChunkStore, container: str
    ) -> None:
        names = NamesLayer(store)
        for key in AWKWARD_KEYS:
            if not re.fullmatch(store.key_pattern, key):
                with pytest.raises(InvalidName):
                    put(names, container, key, b"x")
        assert self.raw_keys(server, container) == set()
        for key in OWN_KEYS:
            assert re.fullmatch(store.key_pattern, key), f"key_pattern refuses backupfw's own keys: {key}"

    def test_g12_longest_keys(self, server: Any, store: ChunkStore, container: str) -> None:
        part = min(self.longest_part, 1024)
        keys = [
            "/".join(char * part for char in "uvwxy")[:1024].rstrip("/"),
            # 1024 bytes of two-, three- and four-byte characters, and of many parts
            *(
                "/".join([char * (part // len(char.encode()))] * 8)
                .encode()[:1024]
                .decode("utf-8", "ignore")
                .rstrip("/")
                for char in ("\u00e9", "\u20ac", "\U0001f642")
            ),
            "a/" * 511 + "ab",
            *("z" * length for length in (238, 239, 240, 241, 253, 255, 256, 480) if length <= part),
            *("z" * length + "/w" for length in (238, 239, 240, 241, 253, 255, 256, 480) if length <= part),
        ]
        keys = [key for key in keys if self.can_hold(store, key)]
        for key in keys:
            put(store, container, key, key.encode())
        for key in keys:
            assert store.get(container, key) == key.encode()
        assert self.raw_keys(server, container) == set(keys)
        if store.capabilities.sorted_listing:
            found = self.eventually(store, lambda: [i.key for i in store.list(container)], sorted(set(keys)))
            assert found == sorted(set(keys))

    def test_g16_a_range_costs_its_own_size(self, store: ChunkStore, container: str) -> None:
        size = min(self.largest, 32 << 20)
        put(store, container, "key", pattern(size))
        store.get(container, "key", 0, 1)
        tracemalloc.start()
        try:
            store.get(container, "key", size // 2, 100_000)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 << 20
