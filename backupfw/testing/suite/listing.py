"""Listing: G10."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from backupfw.chunkstore.base import ChunkStore, ObjectInfo
from backupfw.testing.suite.adoption import Adoption, put


def crowd_keys(count: int) -> list[str]:
    """Return keys in groups whose prefixes are prefixes of each other."""
    shapes = (
        "a/{:06}",
        "a/b/{:06}",
        "ab/{:06}",
        "abc-{:06}",
        "a-{:06}",
        "a0/b/{:06}",
        "\u00e9/{:06}",
        "z{:06}/k",
    )
    keys = [shape.format(number) for number in range(count // len(shapes)) for shape in shapes]
    # Objects whose keys are where the others have a folder, and where folders would sort differently.
    return [*keys, "a", "a/b", "ab", "a/b!", "a!", "\u00e9"]


class ListingTests(Adoption):
    """Tests of listings."""

    @pytest.fixture(scope="class")
    @classmethod
    def crowd(cls, server: Any, store: ChunkStore) -> Iterator[tuple[str, list[ObjectInfo]]]:
        """A container with many objects, and the expected listing."""
        self = cls()
        name = self.new_container_name()
        store.ensure_container(name)
        keys = sorted(key for key in crowd_keys(self.listing_keys) if self.can_hold(store, key))
        expected = [ObjectInfo(key, number % 7) for number, key in enumerate(keys)]
        with ThreadPoolExecutor(16) as pool:
            # list(): an error of any put fails here.
            list(pool.map(lambda info: put(store, name, info.key, b"x" * info.size), expected))
        yield name, expected
        self.remove_container(server, name)

    def test_g10_empty_container(self, store: ChunkStore, container: str) -> None:
        assert list(store.list(container)) == []
        assert list(store.list(container, "prefix")) == []

    def test_g10_complete_with_sizes(self, store: ChunkStore, crowd: tuple[str, list[ObjectInfo]]) -> None:
        name, expected = crowd
        found = self.eventually(store, lambda: sorted(store.list(name), key=lambda info: info.key), expected)
        # Compared without the assertion's help, which would print twelve thousand lines.
        assert len(found) == len(expected)
        assert [pair for pair in zip(found, expected, strict=True) if pair[0] != pair[1]] == []

    def test_g10_sorted_or_declared_unsorted(
        self, store: ChunkStore, crowd: tuple[str, list[ObjectInfo]]
    ) -> None:
        keys = [info.key.encode() for info in store.list(crowd[0])]
        if store.capabilities.sorted_listing:
            assert [pair for pair in itertools.pairwise(keys) if pair[0] >= pair[1]] == []
        else:
            assert len(set(keys)) == len(keys)

    @pytest.mark.parametrize(
        "prefix",
        [
            "a",
            "a/",
            "a/b",
            "a/b/",
            "a/b/0000",
            "ab",
            "ab/",
            "abc",
            "abc-00001",
            "a-",
            "a0",
            "a0/b/00",
            "\u00e9",
            "z",
            "z000001",
            "z000001/",
            "/",
            "//",
            "a//",
            ".",
            "..",
            "../",
            "a/..",
            "a/../",
            "a*",
            "A",
            "missing/",
        ],
    )
    def test_g10_prefix_is_a_raw_string(
        self, store: ChunkStore, crowd: tuple[str, list[ObjectInfo]], prefix: str
    ) -> None:
        name, everything = crowd
        expected = [info for info in everything if info.key.startswith(prefix)]
        found = self.eventually(
            store, lambda: sorted(store.list(name, prefix), key=lambda info: info.key), expected
        )
        assert len(found) == len(expected)
        assert found == expected

    @pytest.mark.parametrize("prefix", ["", "a", "a/", "a/b", "ab/"])
    def test_g10_start_after(
        self, store: ChunkStore, crowd: tuple[str, list[ObjectInfo]], prefix: str
    ) -> None:
        if not store.capabilities.sorted_listing:
            pytest.skip("declared: unsorted listing")
        name, everything = crowd
        keys = [info.key for info in everything if info.key.startswith(prefix)]
        for start in (
            keys[0],
            keys[len(keys) // 2],
            keys[-1],
            keys[len(keys) // 3] + "x",
            "a/b",
            "a/",
            "!",
            "\U0001f642",
        ):
            expected = [key for key in keys if key > start]
            look = functools.partial(self._keys_after, store, name, prefix, start)
            found = self.eventually(store, look, expected)
            assert len(found) == len(expected), start
            assert found == expected, start

    @staticmethod
    def _keys_after(store: ChunkStore, container: str, prefix: str, start: str) -> list[str]:
        return [info.key for info in store.list(container, prefix, start)]

    def test_g10_lazy(self, store: ChunkStore, crowd: tuple[str, list[ObjectInfo]]) -> None:
        listing = store.list(crowd[0])
        assert iter(listing) is listing
        assert isinstance(next(listing), ObjectInfo)
        # Abandoned here: other calls must still work.
        del listing
        assert next(store.list(crowd[0], "z")).key.startswith("z")

    def test_g10_shows_puts_and_deletes(self, store: ChunkStore, container: str) -> None:
        put(store, container, "b", b"22")
        put(store, container, "a", b"1")
        both = [ObjectInfo("a", 1), ObjectInfo("b", 2)]
        assert sorted(self.listed(store, container, both), key=lambda info: info.key) == both
        put(store, container, "a", b"333")
        store.delete(container, ["b"])
        assert list(self.listed(store, container, [ObjectInfo("a", 3)])) == [ObjectInfo("a", 3)]

    def test_g10_changes_while_listing(self, store: ChunkStore, container: str) -> None:
        stable = [f"stable/{number:04}" for number in range(60)]
        for key in stable:
            put(store, container, key, b"x")
        found = []
        for number, info in enumerate(store.list(container)):
            found.append(info.key)
            put(store, container, f"stable/{number:04}/new", b"y")
            store.delete(container, [f"stable/{number:04}/new"])
        if not store.capabilities.listing_lag:
            assert set(stable) <= set(found)
        assert len(set(found)) == len(found)
