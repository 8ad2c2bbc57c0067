"""Deleting, and containers: G3, G11, G14."""

from __future__ import annotations

from typing import Any

from backupfw.chunkstore.base import ChunkStore
from backupfw.testing.suite.adoption import Adoption, put


class DeletingTests(Adoption):
    """Tests of delete and of containers."""

    def test_g3_missing_keys(self, server: Any, store: ChunkStore, container: str) -> None:
        store.delete(container, ["missing", "missing/below"])
        put(store, container, "key", b"x")
        store.delete(container, ["key"])
        store.delete(container, ["key"])
        assert self.raw_keys(server, container) == set()

    def test_g3_missing_container(self, store: ChunkStore) -> None:
        missing = self.new_container_name()
        store.delete(missing, ["key", "other"])
        assert missing not in list(store.list_containers())

    def test_g11_nothing(self, server: Any, store: ChunkStore, container: str) -> None:
        put(store, container, "key", b"x")
        store.delete(container, [])
        assert self.raw_keys(server, container) == {"key"}

    def test_g11_any_number(self, server: Any, store: ChunkStore, container: str) -> None:
        # With bulk requests: one that is full and one that is not.
        bulk = store.capabilities.bulk_delete
        count = bulk + bulk // 3 + 5 if bulk > 1 else 40
        keys = [f"some/{number % 7}/{number}" for number in range(count)]
        for key in keys:
            self.raw_put(server, container, key, b"x")
        put(store, container, "some/0", b"stays")
        put(store, container, "some", b"stays")
        missing = [f"missing/{number}" for number in range(10)]
        store.delete(container, [*missing, *keys])
        assert self.raw_keys(server, container) == {"some/0", "some"}

    def test_g11_only_what_was_named(self, server: Any, store: ChunkStore, container: str) -> None:
        for key in ("a", "a/b", "a/b/c", "a/bc", "ab"):
            put(store, container, key, b"x")
        store.delete(container, ["a/b"])
        assert self.raw_keys(server, container) == {"a", "a/b/c", "a/bc", "ab"}
        store.delete(container, ["a/b/c", "a"])
        assert self.raw_keys(server, container) == {"a/bc", "ab"}

    def test_g11_a_key_named_twice(self, server: Any, store: ChunkStore, container: str) -> None:
        put(store, container, "key", b"x")
        store.delete(container, ["key", "missing", "key", "missing"])
        assert self.raw_keys(server, container) == set()

    def test_g11_erase(self, server: Any, store: ChunkStore, container: str) -> None:
        for key in ("a/1", "a/b/2", "ab", "b"):
            put(store, container, key, b"x")
        self.eventually(store, lambda: len(list(store.list(container))), 4)
        store.erase(container, "a/")
        assert self.raw_keys(server, container) == {"ab", "b"}
        self.eventually(store, lambda: len(list(store.list(container))), 2)
        store.erase(container, "a/")
        assert self.raw_keys(server, container) == {"ab", "b"}

    def test_g11_settings_are_reported(self, store: ChunkStore, container: str) -> None:
        for name in (container, self.new_container_name()):
            for item in store.inspect(name):
                assert item.ok
                assert item.detail

    def test_g14_ensure_container_again(self, server: Any, store: ChunkStore, container: str) -> None:
        put(store, container, "key", b"x")
        store.ensure_container(container)
        store.ensure_container(container)
        assert self.raw_keys(server, container) == {"key"}
        assert store.get(container, "key") == b"x"

    def test_g14_containers_are_apart(self, server: Any, store: ChunkStore, container: str) -> None:
        other = self.new_container_name()
        store.ensure_container(other)
        try:
            put(store, container, "key", b"one")
            put(store, other, "key", b"two")
            store.delete(container, ["key"])
            assert store.get(other, "key") == b"two"
            assert self.raw_keys(server, container) == set()
        finally:
            self.remove_container(server, other)

    def test_g14_only_empty_containers_go(self, server: Any, store: ChunkStore) -> None:
        name = self.new_container_name()
        assert not store.remove_container(name)
        store.ensure_container(name)
        try:
            put(store, name, "some/key", b"x")
            assert not store.remove_container(name)
            assert store.get(name, "some/key") == b"x"
            store.delete(name, ["some/key"])
            gone = store.remove_container(name)
            assert (name in list(store.list_containers())) == (not gone)
            store.ensure_container(name)
            put(store, name, "some/key", b"y")
            assert self.raw_keys(server, name) == {"some/key"}
        finally:
            self.remove_container(server, name)

    def test_g14_containers_are_listed(self, store: ChunkStore, container: str) -> None:
        names = list(store.list_containers())
        assert container in names
        assert names == sorted(names)

    def test_g14_another_instance_sees_them(self, server: Any, store: ChunkStore, container: str) -> None:
        other = self.open_store(server)
        try:
            assert container in list(other.list_containers())
            put(other, container, "key", b"x")
            assert store.get(container, "key") == b"x"
        finally:
            other.close()
