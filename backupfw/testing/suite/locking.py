"""Locks of objects: G20."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.errors import ChunkStoreError, DeleteFailed, NotFound, Retained, locked_until
from backupfw.testing.suite.adoption import Adoption, put

#: How far the clocks of test and server, and the servers' rounding, may differ.
_TOLERANCE = timedelta(seconds=2)


class LockingTests(Adoption):
    """Tests of locks, for drivers that say ``object_lock``."""

    @pytest.fixture
    def locking(self, server: Any, store: ChunkStore) -> Iterator[tuple[ChunkStore, str]]:
        """A store, and a container of it that was made for locks."""
        if not store.object_lock:
            pytest.skip("declared: object_lock = False")
        opened = self.open_locking(server)
        name = self.new_container_name()
        opened.ensure_container(name)
        yield opened, name
        opened.erase(name, "")
        self.remove_container(server, name)
        opened.close()

    def _locked(self, store: ChunkStore, container: str, key: str) -> datetime:
        until = datetime.now(UTC) + timedelta(seconds=self.lock_seconds)
        store.put(container, key, Body.from_bytes(b"locked").locked(until))
        return until

    def _wait(self, store: ChunkStore, container: str, key: str) -> None:
        """Wait until the object can be erased, which must take no longer than its lock and the tolerance."""
        end = time.monotonic() + 2 * self.lock_seconds + _TOLERANCE.total_seconds() + 5
        while time.monotonic() < end:
            with suppress(Retained, DeleteFailed):
                store.erase(container, key)
                return
            time.sleep(0.1)
        pytest.fail("the lock does not end")

    def test_g20_put_with_a_lock(self, server: Any, locking: tuple[ChunkStore, str]) -> None:
        store, container = locking
        put(store, container, "free", b"free")
        until = self._locked(store, container, "locked")
        told = store.locked_until(container, "locked")
        assert told is not None
        assert abs(told - until) <= _TOLERANCE
        assert store.locked_until(container, "free") is None
        with pytest.raises(ChunkStoreError) as caught:
            store.erase(container, "locked")
        assert not caught.value.temporary
        end = locked_until(caught.value)
        assert end is not None
        assert abs(end - until) <= _TOLERANCE
        with pytest.raises(DeleteFailed) as failed:
            store.delete(container, ["locked", "free", "missing"])
        assert set(failed.value.errors) == {"locked"}
        assert isinstance(failed.value.errors["locked"], Retained)
        assert locked_until(failed.value) is not None
        assert self.raw_keys(server, container) == {"locked"}
        assert store.get(container, "locked") == b"locked"
        self._wait(store, container, "locked")
        assert self.raw_keys(server, container) == set()

    def test_g20_a_lock_is_renewed_and_never_ends_earlier(
        self, server: Any, locking: tuple[ChunkStore, str]
    ) -> None:
        store, container = locking
        put(store, container, "key", b"data")
        until = datetime.now(UTC) + timedelta(seconds=self.lock_seconds)
        store.lock(container, "key", until)
        store.lock(container, "key", until + timedelta(seconds=1))
        # As long already: nothing to do, and the longer one stays.
        store.lock(container, "key", until)
        told = store.locked_until(container, "key")
        assert told is not None
        assert told >= until + timedelta(seconds=1) - timedelta(milliseconds=1)
        with pytest.raises(ChunkStoreError):
            store.erase(container, "key")
        assert self.raw_get(server, container, "key") == b"data"
        self._wait(store, container, "key")
        assert self.raw_keys(server, container) == set()

    def test_g20_what_is_missing_has_no_lock(self, locking: tuple[ChunkStore, str]) -> None:
        store, container = locking
        until = datetime.now(UTC) + timedelta(days=1)
        for place in ((container, "missing"), (self.new_container_name(), "key")):
            with pytest.raises(NotFound):
                store.lock(*place, until)
            with pytest.raises(NotFound):
                store.locked_until(*place)
