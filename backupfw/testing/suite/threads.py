"""Use from many threads at once: G13."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from backupfw.chunkstore.base import ChunkStore
from backupfw.testing.suite.adoption import Adoption, pattern, put, require_bytes

THREADS = 16


class ThreadTests(Adoption):
    """Tests with 16 threads on one instance."""

    def _in_threads(self, work: Any) -> None:
        start = threading.Barrier(THREADS)

        def run(number: int) -> None:
            start.wait()
            work(number)

        with ThreadPoolExecutor(THREADS) as pool:
            for done in [pool.submit(run, number) for number in range(THREADS)]:
                done.result()

    def test_g13_all_operations(self, server: Any, store: ChunkStore, container: str) -> None:
        def work(number: int) -> None:
            for turn in range(6):
                key = f"{number}/{turn}"
                data = pattern(30_000 + 4096 * number + turn, seed=number)
                put(store, container, key, data)
                require_bytes(store.get(container, key), data)
                require_bytes(store.get(container, key, 20_000, 5000), data[20_000:25_000])
                if not store.capabilities.listing_lag:
                    assert key in {info.key for info in store.list(container, f"{number}/")}
                store.ensure_container(container)
                if turn % 2:
                    store.delete(container, [key, f"{number}/missing"])

        self._in_threads(work)
        expected = {f"{number}/{turn}" for number in range(THREADS) for turn in (0, 2, 4)}
        assert self.raw_keys(server, container) == expected

    def test_g13_neighbours_come_and_go(self, server: Any, store: ChunkStore, container: str) -> None:
        # Where folders are real, a delete that empties one meets a put into it.
        turns = 25 if self.local or self.has_folders else 8

        def work(number: int) -> None:
            for turn in range(turns):
                key = f"deep/er/and/deeper/{number}"
                data = b"%d %d" % (number, turn)
                put(store, container, key, data)
                require_bytes(store.get(container, key), data)
                store.delete(container, [key])
            put(store, container, f"deep/er/and/stays/{number}", b"x")

        self._in_threads(work)
        expected = {f"deep/er/and/stays/{number}" for number in range(THREADS)}
        assert self.raw_keys(server, container) == expected

    def test_g13_one_key(self, store: ChunkStore, container: str) -> None:
        states = [pattern(20_000 + 1000 * number, seed=number) for number in range(THREADS)]

        def work(number: int) -> None:
            for _ in range(5):
                put(store, container, "key", states[number])
                assert store.get(container, "key") in states

        self._in_threads(work)
        assert store.get(container, "key") in states
