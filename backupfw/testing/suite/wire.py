"""Faults between driver and server, made by a proxy in the middle: G4, G5, G8, G10, G11, G13, G17."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from backupfw.chunkstore.base import ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, NoSpace, NotFound, Unavailable
from backupfw.chunkstore.layers.timeout import TimeoutLayer
from backupfw.testing.proxy import Direction, Fault, FaultProxy, Kind
from backupfw.testing.suite.adoption import Adoption, of_servers, pattern, put, require_bytes

T = TypeVar("T")

#: Bytes of the objects whose transfers meet faults.
SIZE = 1 << 20
#: A byte past the head of every request and answer, within such an object.
INSIDE = 200_000
#: Tries of a call until it meets its fault: a driver may first use connections from before the fault.
TRIES = 50
#: Seconds of the timeout layer in front of a hole.
LIMIT = 0.5
#: Kinds of ends of connections, and the byte at which they come.
CUTS: tuple[tuple[Kind, int], ...] = (("reset", 0), ("reset", INSIDE), ("close", INSIDE))


class WireTests(Adoption):
    """Tests of failures of the network or the server in the middle of a call."""

    @pytest.fixture(scope="class")
    @classmethod
    def proxy(cls, server: Any) -> Iterator[FaultProxy]:
        """A proxy in front of the server, for all tests of the class."""
        self = cls()
        self.require("open_through")
        with FaultProxy(*self.server_address(server)) as proxy:
            yield proxy

    @pytest.fixture(scope="class")
    @classmethod
    def far_store(cls, server: Any, proxy: FaultProxy) -> Iterator[ChunkStore]:
        """A store at the other end of the proxy."""
        store = cls().open_through(server, proxy.host, proxy.port)
        yield store
        store.close()

    @pytest.fixture
    def wire(self, proxy: FaultProxy) -> Iterator[FaultProxy]:
        """The proxy, without faults before and after the test."""
        proxy.heal()
        yield proxy
        proxy.heal()

    # ---- torn and short transfers ----------------------------------------------------------------

    @of_servers
    @pytest.mark.parametrize(("kind", "at"), CUTS)
    def test_g4_put_that_is_cut(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore, kind: Kind, at: int
    ) -> None:
        old = pattern(SIZE, seed=1)
        for key, expected in (("new", None), ("old", old)):
            if expected is not None:
                self.raw_put(server, container, key, expected)
            met(
                wire.fault("up", kind, at),
                lambda key=key: put(far_store, container, key, pattern(SIZE, seed=2)),  # type: ignore[misc]
            )
            wire.heal()
            assert self.raw_get(server, container, key) == expected, key
            # The same call again does it.
            retried(lambda key=key: put(far_store, container, key, pattern(SIZE, seed=2)))  # type: ignore[misc]
            assert self.raw_get(server, container, key) == pattern(SIZE, seed=2), key

    @of_servers
    def test_g4_put_whose_answer_is_cut(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        data = pattern(SIZE)
        met(wire.fault("down", "reset"), lambda: put(far_store, container, "key", data))
        # It may have been stored or not; but if it was, then completely.
        assert self.raw_get(server, container, "key") in (None, data)
        wire.heal()
        retried(lambda: put(far_store, container, "key", data))
        require_bytes(self.raw_get(server, container, "key"), data)

    @of_servers
    @pytest.mark.parametrize("whole", [True, False], ids=["whole", "range"])
    @pytest.mark.parametrize(("kind", "at"), CUTS)
    def test_g8_get_that_is_cut(
        self,
        server: Any,
        container: str,
        wire: FaultProxy,
        far_store: ChunkStore,
        kind: Kind,
        at: int,
        whole: bool,
    ) -> None:
        data = pattern(SIZE)
        self.raw_put(server, container, "key", data)
        part = (None, None) if whole else (1000, SIZE - 1000)
        met(wire.fault("down", kind, at), lambda: far_store.get(container, "key", *part))
        wire.heal()
        require_bytes(retried(lambda: far_store.get(container, "key", *part)), data if whole else data[1000:])

    @of_servers
    @pytest.mark.parametrize("kind", ["reset", "close"])
    def test_g10_listing_that_is_cut(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore, kind: Kind
    ) -> None:
        # Few keys, but long ones: their listing goes on for some kilobytes.
        expected = [ObjectInfo(f"{'key' * 30}{number:02}", 1) for number in range(40)]
        for info in expected:
            self.raw_put(server, container, info.key, b"x")
        self.eventually(far_store, lambda: retried(lambda: list(far_store.list(container))), expected)
        # Well past the answer's head, and before its end.
        met(wire.fault("down", kind, 1500), lambda: list(far_store.list(container)))
        wire.heal()
        found = self.eventually(
            far_store, lambda: sorted(retried(lambda: list(far_store.list(container))), key=key_of), expected
        )
        assert found == expected

    @of_servers
    def test_g11_delete_whose_answer_is_cut(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        keys = [f"key{number}" for number in range(5)]
        for key in keys:
            self.raw_put(server, container, key, b"x")
        # A driver may send other requests before its first delete; they must not meet the fault.
        retried(lambda: far_store.delete(container, ["missing", "missing too"]))
        met(wire.fault("down", "reset"), lambda: far_store.delete(container, keys))
        wire.heal()
        retried(lambda: far_store.delete(container, keys))
        assert self.raw_keys(server, container) == set()

    # ---- corruption ------------------------------------------------------------------------------

    @of_servers
    def test_g5_put_that_is_changed_on_the_way(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        data = pattern(SIZE)
        fault = wire.fault("up", "flip", INSIDE)
        met(fault, lambda: put(far_store, container, "key", data))
        wire.heal()
        assert self.raw_get(server, container, "key") is None
        retried(lambda: put(far_store, container, "key", data))
        require_bytes(self.raw_get(server, container, "key"), data)

    @of_servers
    def test_g8_whole_get_that_is_changed_on_the_way(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        data = pattern(SIZE)
        # Put by the driver: a server may have no checksum of objects that others have put.
        retried(lambda: put(far_store, container, "key", data))
        error = met(wire.fault("down", "flip", INSIDE), lambda: far_store.get(container, "key"))
        assert isinstance(error, IntegrityError)
        wire.heal()
        require_bytes(retried(lambda: far_store.get(container, "key")), data)

    # ---- delays, holes, refusals -----------------------------------------------------------------

    @of_servers
    def test_g17_a_slow_line_changes_nothing(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        data = pattern(SIZE)
        wire.latency, wire.rate = 0.05, 8e6
        retried(lambda: put(far_store, container, "key", data))
        require_bytes(far_store.get(container, "key"), data)
        require_bytes(far_store.get(container, "key", 1000, 500_000), data[1000:501_000])
        expected = [ObjectInfo("key", SIZE)]
        assert list(self.listed(far_store, container, expected)) == expected
        far_store.delete(container, ["key"])
        assert self.raw_keys(server, container) == set()

    @of_servers
    @pytest.mark.parametrize("direction", ["up", "down"])
    def test_g17_a_hole_is_given_up_in_time(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore, direction: Direction
    ) -> None:
        self.raw_put(server, container, "there", b"x")
        # With the timeout layer, as in the service.  It is not closed: that would close the store.
        limited = TimeoutLayer(far_store, LIMIT)
        for use in (lambda: put(limited, container, "key", b"x"), lambda: limited.get(container, "there")):
            fault = wire.fault(direction, "hole", times=None)
            start = time.monotonic()
            error = met(fault, use)
            assert isinstance(error, Unavailable)
            assert time.monotonic() - start < self.unreachable_seconds
        wire.heal()
        assert retried(lambda: far_store.get(container, "there")) == b"x"

    @of_servers
    def test_g17_a_server_that_refuses_for_a_while(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        self.raw_put(server, container, "key", b"x")
        wire.refuse()
        for use in (lambda: put(far_store, container, "new", b"x"), lambda: far_store.get(container, "key")):
            with pytest.raises(Unavailable) as caught:
                use()
            assert caught.value.temporary
        wire.accept()
        assert retried(lambda: far_store.get(container, "key")) == b"x"
        retried(lambda: put(far_store, container, "new", b"x"))
        assert self.raw_keys(server, container) == {"key", "new"}

    @of_servers
    def test_g13_connections_end_under_many_threads(
        self, server: Any, container: str, wire: FaultProxy, far_store: ChunkStore
    ) -> None:
        fault = wire.fault("up", "reset", INSIDE, times=5)

        def work(number: int) -> int:
            failures = 0
            for turn in range(6):
                data = pattern(300_000 + turn, seed=number)
                try:
                    put(far_store, container, f"{number}", data)
                    require_bytes(far_store.get(container, f"{number}"), data)
                except ChunkStoreError as error:
                    if not error.temporary:
                        raise
                    failures += 1
            return failures

        with ThreadPoolExecutor(8) as pool:
            failures = sum(pool.map(work, range(8)))
        assert fault.struck, "no fault was met: does open_through() lead through the proxy?"
        assert failures
        wire.heal()
        for number in range(8):
            retried(lambda number=number: put(far_store, container, f"{number}", b"x"))  # type: ignore[misc]
        assert self.raw_keys(server, container) == {str(number) for number in range(8)}

    # ---- what the server does: it forgets tokens, it is full --------------------------------------

    @of_servers
    def test_g17_expired_token_is_renewed(self, server: Any, store: ChunkStore, container: str) -> None:
        self.require("expire_token")
        uses: tuple[Callable[[], object], ...] = (
            lambda: put(store, container, "key", pattern(SIZE)),
            lambda: store.get(container, "key"),
            lambda: store.get(container, "key", 5, 1),
            lambda: list(store.list(container)),
            lambda: store.ensure_container(container),
            lambda: list(store.list_containers()),
            lambda: store.delete(container, ["key"]),
        )
        for use in uses:
            self.expire_token(server, store)
            use()
        assert self.raw_keys(server, container) == set()

    @of_servers
    def test_g17_token_expires_under_many_threads(
        self, server: Any, store: ChunkStore, container: str
    ) -> None:
        self.require("expire_token")

        def work(number: int) -> None:
            for turn in range(8):
                # Once: a driver must handle one expired token per call, but not two.
                if (number, turn) == (0, 3):
                    self.expire_token(server, store)
                key = f"{number}/{turn}"
                put(store, container, key, pattern(10_000, seed=number))
                assert store.get(container, key) == pattern(10_000, seed=number)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(work, range(8)))
        expected = {f"{number}/{turn}" for number in range(8) for turn in range(8)}
        assert self.raw_keys(server, container) == expected

    def test_g4_full_store(self, server: Any, container: str) -> None:
        self.require("full_store")
        with self.full_store(server, container) as store:
            with pytest.raises(NoSpace) as caught:
                put(store, container, "new", pattern(self.no_room))
            assert not caught.value.temporary
            with pytest.raises(NotFound):
                store.get(container, "new")
            assert [info.key for info in store.list(container)] == []
            assert list(store.list(container, "new")) == []


class RestartTests(Adoption):
    """The test of a server that ends and starts again.

    It is the first of the suite's bases, so it is the last test of its class: after it, all idle connections
    of a store may be dead.
    """

    @of_servers
    def test_g17_server_restarts_in_mid_transfer(self, mortal_server: Any) -> None:
        self.require("open_through")
        self.require("restart_server")
        server = mortal_server
        address = self.server_address(server)
        container = self.new_container_name()
        large = pattern(min(self.largest, 16 << 20))
        with FaultProxy(*address) as putting, FaultProxy(*address) as getting:
            putter = self.open_through(server, putting.host, putting.port)
            getter = self.open_through(server, getting.host, getting.port)
            try:
                putter.ensure_container(container)
                put(putter, container, "there", large)
                with ThreadPoolExecutor(2) as pool:
                    holds = putting.fault("up", "hold", INSIDE), getting.fault("down", "hold", INSIDE)
                    try:
                        put_ = underway(
                            holds[0], lambda: pool.submit(put, putter, container, "new", pattern(SIZE))
                        )
                        get_ = underway(holds[1], lambda: pool.submit(getter.get, container, "there"))
                        self.restart_server(server)
                    finally:
                        for hold in holds:
                            hold.release()
                    error = put_.exception(self.unreachable_seconds)
                    assert isinstance(error, ChunkStoreError), "the put did not fail"
                    assert error.temporary
                    # The get may succeed if all bytes were sent before the restart; then they are right.
                    error = get_.exception(self.unreachable_seconds)
                    assert error is None or (isinstance(error, ChunkStoreError) and error.temporary), error
                    if error is None:
                        require_bytes(get_.result(), large)
                # The same instances work again once the server does.
                eventually_works(lambda: putter.ensure_container(container), self.patience)
                with pytest.raises(NotFound):
                    eventually_works(lambda: getter.get(container, "new"), self.patience)
                eventually_works(lambda: put(putter, container, "new", b"x"), self.patience)
                assert eventually_works(lambda: getter.get(container, "new"), self.patience) == b"x"
                putter.delete(container, ["new", "there"])
            finally:
                putter.close()
                getter.close()
        self.remove_container(server, container)


def key_of(info: ObjectInfo) -> str:
    """Return an entry's key, to sort by."""
    return info.key


def met(fault: Fault, action: Callable[[], object]) -> ChunkStoreError:
    """Repeat an action until it meets the fault; return its error, a temporary one.

    A driver may first find that its connections from before the fault are dead: that is a temporary error,
    too.
    """
    for _ in range(TRIES):
        try:
            action()
        except ChunkStoreError as error:
            if not error.temporary:
                raise
            if fault.struck:
                return error
        else:
            assert not fault.struck, f"the fault ({fault.kind} {fault.direction}) went unnoticed"
    pytest.fail("no call met the fault: does open_through() lead through the proxy?")


def retried(action: Callable[[], T]) -> T:
    """Repeat an action until connections from before a fault are used up."""
    for _ in range(TRIES):
        try:
            return action()
        except ChunkStoreError as error:
            if not error.temporary:
                raise
            last = error
    raise last


def eventually_works(action: Callable[[], T], seconds: float) -> T:
    """Repeat an action until it works, as long as its errors are temporary."""
    end = time.monotonic() + seconds
    while True:
        try:
            return action()
        except ChunkStoreError as error:
            if not error.temporary or time.monotonic() > end:
                raise
        time.sleep(0.1)


def underway(hold: Fault, begin: Callable[[], Future[T]]) -> Future[T]:
    """Begin calls until one is held; return it."""
    for _ in range(TRIES):
        call = begin()
        while not hold.reached.wait(0.02):
            if call.done():
                break
        else:
            return call
        if hold.reached.is_set():
            return call
    pytest.fail("no call was held: does open_through() lead through the proxy?")
