"""The limit and timeout layers, alone and on each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import nullcontext

import pytest

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.cancellation import POLL_INTERVAL, cancelled_by, undoing_if
from backupfw.chunkstore.errors import ChunkStoreError, NotFound, RangeError, Unavailable
from backupfw.chunkstore.layers import timeout as timeout_module
from backupfw.chunkstore.layers.base import Layer
from backupfw.chunkstore.layers.limit import LimitLayer, Limits, TokenBucket
from backupfw.chunkstore.layers.timeout import TimeoutLayer
from backupfw.chunkstore.layers.watch import Watch
from backupfw.chunkstore.memory import MemoryStore
from backupfw.testing.faults import FaultyStore, SlowStore
from tests.unit.chunkstore.test_retry import Clock

X = Body.from_bytes(b"x")


@pytest.fixture
def memory() -> MemoryStore:
    store = MemoryStore("memory")
    store.ensure_container("c")
    store.put("c", "key", X)
    return store


class TestConcurrency:
    def test_as_many_as_allowed_and_no_more(self, memory: MemoryStore) -> None:
        # The barrier opens only when three calls are in the driver together, so three are let in; the
        # count of the most at once shows that a fourth never is.
        barrier = threading.Barrier(3)
        slow = SlowStore(memory, gate=lambda: barrier.wait(30))
        store = LimitLayer(slow, Limits(concurrency=3))
        with ThreadPoolExecutor(12) as pool:
            list(pool.map(lambda number: store.put("c", str(number), X), range(30)))
        assert slow.most_at_once == 3

    def test_every_operation_counts(self, memory: MemoryStore) -> None:
        barrier = threading.Barrier(2)
        slow = SlowStore(memory, gate=lambda: barrier.wait(30))
        store = LimitLayer(slow, Limits(concurrency=2))
        calls = [
            lambda: store.put("c", "a", X),
            lambda: store.get("c", "key"),
            lambda: list(store.list("c")),
            lambda: store.delete("c", ["missing"]),
            lambda: store.ensure_container("c"),
            lambda: store.get("c", "key", 0, 1),
        ]
        with ThreadPoolExecutor(6) as pool:
            for done in [pool.submit(call) for call in calls]:
                done.result()
        assert slow.most_at_once == 2

    def test_it_can_be_raised_while_calls_wait(self, memory: MemoryStore) -> None:
        barrier = threading.Barrier(4)
        slow = SlowStore(memory, gate=lambda: barrier.wait(30))
        store = LimitLayer(slow, Limits(concurrency=1))
        with ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(store.get, "c", "key") for _ in range(4)]
            store.set_limits(Limits(concurrency=4))
            assert [call.result() for call in calls] == [b"x"] * 4
        assert store.limits.concurrency == 4

    def test_a_place_is_given_back_after_an_error(self, memory: MemoryStore) -> None:
        store = LimitLayer(memory, Limits(concurrency=1))
        for _ in range(3):
            with pytest.raises(NotFound):
                store.get("c", "missing")
        assert store.get("c", "key") == b"x"

    def test_a_listing_holds_no_place_while_the_caller_works(self, memory: MemoryStore) -> None:
        store = LimitLayer(memory, Limits(concurrency=1))
        for number in range(2500):
            memory.put("c", f"many/{number:05}", X)
        for number, info in enumerate(store.list("c", "many/")):
            if number % 500 == 0:
                assert store.get("c", info.key) == b"x"
        assert number == 2499

    def test_close_ends_the_wait(self, memory: MemoryStore) -> None:
        entered, leave = threading.Event(), threading.Event()
        slow = SlowStore(memory, gate=lambda: (entered.set(), leave.wait(30)))
        store = LimitLayer(slow, Limits(concurrency=1))
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(store.get, "c", "key")
            assert entered.wait(30)
            second = pool.submit(store.get, "c", "key")
            store.close()
            with pytest.raises(ChunkStoreError):
                second.result(30)
            leave.set()
            with pytest.raises(ChunkStoreError):
                first.result(30)


class TestRates:
    def limited(self, memory: MemoryStore, clock: Clock, **limits: float) -> LimitLayer:
        return LimitLayer(memory, Limits(**limits), sleep=clock.sleep, clock=clock)

    def test_bytes_put_keep_the_rate(self, memory: MemoryStore) -> None:
        clock = Clock()
        store = self.limited(memory, clock, bytes_per_second=1000)
        for _ in range(20):
            store.put("c", "key", Body.from_bytes(bytes(500)))
        # 10 000 bytes; a second's worth is there at the start and the last call may overdraw.
        assert 8 <= clock.slept <= 9.01

    @pytest.mark.parametrize("whole", [True, False])
    def test_bytes_got_keep_the_rate(self, memory: MemoryStore, whole: bool) -> None:
        memory.put("c", "key", Body.from_bytes(bytes(500)))
        clock = Clock()
        store = self.limited(memory, clock, bytes_per_second=1000)
        for _ in range(20):
            assert len(store.get("c", "key") if whole else store.get("c", "key", 0, 500)) == 500
        assert 8 <= clock.slept <= 9.01

    def test_an_object_larger_than_a_seconds_worth(self, memory: MemoryStore) -> None:
        clock = Clock()
        store = self.limited(memory, clock, bytes_per_second=1000)
        store.put("c", "key", Body.from_bytes(bytes(50_000)))
        assert clock.slept == 0
        store.put("c", "key", X)
        assert clock.slept == pytest.approx(49, abs=0.01)

    def test_a_refused_range_costs_nothing(self, memory: MemoryStore) -> None:
        clock = Clock()
        store = self.limited(memory, clock, bytes_per_second=1000)
        for _ in range(10):
            with pytest.raises(RangeError):
                store.get("c", "key", 0, 1_000_000)
        assert clock.slept == 0

    def test_requests_keep_the_rate(self, memory: MemoryStore) -> None:
        clock = Clock()
        store = self.limited(memory, clock, requests_per_second=10)
        for _ in range(50):
            store.get("c", "key")
        for _ in range(50):
            store.delete("c", ["missing"])
        assert 8.8 <= clock.slept <= 9.1

    def test_savings_are_a_second_at_most(self, memory: MemoryStore) -> None:
        clock = Clock()
        store = self.limited(memory, clock, requests_per_second=10)
        clock.now += 3600
        start = clock.now
        for _ in range(51):
            store.get("c", "key")
        assert clock.now - start >= 3.9

    def test_a_rate_can_be_changed_while_a_call_waits(self, memory: MemoryStore) -> None:
        clock = Clock()
        store = self.limited(memory, clock, bytes_per_second=1)
        store.put("c", "key", Body.from_bytes(bytes(10_000)))

        def sleep(seconds: float) -> None:
            clock.sleep(seconds)
            if clock.slept > 1:
                store.set_limits(Limits(bytes_per_second=100_000))

        store._sleep = sleep
        store.put("c", "key", X)
        assert clock.slept < 3

    def test_no_limit_and_then_one(self) -> None:
        clock = Clock()
        bucket = TokenBucket(0, clock)
        assert bucket.take(1e12) == 0
        bucket.set_rate(10)
        assert bucket.take(30) == 0
        assert bucket.take(1) == pytest.approx(2)
        clock.now += 2
        assert bucket.take(1) == 0
        bucket.set_rate(0)
        assert bucket.take(1e12) == 0

    def test_many_threads_cannot_pass_together(self) -> None:
        clock = Clock()
        bucket = TokenBucket(100, clock)
        with ThreadPoolExecutor(8) as pool:
            passed = list(pool.map(lambda _: bucket.take(10) == 0, range(200)))
        assert sum(passed) == 11


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What the timeout layer measures by."""
    clock = Clock()

    class ClockedWatch(Watch):
        def __init__(self) -> None:
            super().__init__(clock)

    monkeypatch.setattr(timeout_module, "Watch", ClockedWatch)
    return clock


def wait_in_line(store: LimitLayer) -> None:
    """Return when a call waits for a place, its watch stopped."""
    end = time.monotonic() + 60
    while True:
        # Whoever is in the line while others hold this has begun to wait.
        with store._changed:
            if store._line:
                return
        assert time.monotonic() < end
        time.sleep(0.01)


def stays(call: Future[bytes]) -> None:
    """The call goes on waiting, although it has looked at the clock a few times."""
    with pytest.raises(FutureTimeout):
        call.result(3 * POLL_INTERVAL)


class TestTimeout:
    def test_a_call_that_hangs_is_given_up(self, memory: MemoryStore) -> None:
        leave = threading.Event()
        store = TimeoutLayer(SlowStore(memory, gate=lambda: leave.wait(30)), 0.05)
        try:
            for use in (
                lambda: store.put("c", "late", X),
                lambda: store.get("c", "key"),
                lambda: next(store.list("c")),
                lambda: store.delete("c", ["gone"]),
                lambda: store.ensure_container("c"),
            ):
                with pytest.raises(Unavailable) as caught:
                    use()
                assert caught.value.temporary
        finally:
            leave.set()

    def test_errors_and_answers_come_through(self, memory: MemoryStore) -> None:
        store = TimeoutLayer(memory, 30)
        assert store.get("c", "key") == b"x"
        with pytest.raises(NotFound):
            store.get("c", "missing")
        assert [info.key for info in store.list("c")] == ["key"]

    def test_zero_uses_no_thread(self, memory: MemoryStore) -> None:
        seen = []
        store = TimeoutLayer(SlowStore(memory, gate=lambda: seen.append(threading.get_ident())), 0)
        store.get("c", "key")
        assert seen == [threading.get_ident()]

    def test_threads_are_used_again(self, memory: MemoryStore) -> None:
        seen = []
        store = TimeoutLayer(SlowStore(memory, gate=lambda: seen.append(threading.current_thread())), 30)
        for _ in range(200):
            store.get("c", "key")
        # A thread comes back a moment after its answer, so a few may take turns.
        assert len(set(seen)) <= 5
        store.close()
        for thread in set(seen):
            thread.join(30)
            assert not thread.is_alive()

    def test_too_many_hanging_calls_are_refused(
        self, memory: MemoryStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(timeout_module, "HANGING_CALLS", 3)
        leave = threading.Event()
        calls = []
        store = TimeoutLayer(SlowStore(memory, gate=lambda: (calls.append(1), leave.wait(30))), 0.02)
        for _ in range(6):
            with pytest.raises(Unavailable):
                store.get("c", "key")
        assert len(calls) == 3
        leave.set()
        # They end, and calls are let through again.
        for _ in range(3000):
            try:
                assert store.get("c", "key") == b"x"
                break
            except Unavailable:
                threading.Event().wait(0.01)
        else:
            pytest.fail("calls are refused for ever")

    def test_a_large_body_has_more_time(self, memory: MemoryStore) -> None:
        leave = threading.Event()
        seconds = 0.3
        store = TimeoutLayer(SlowStore(memory, gate=lambda: leave.wait(seconds)), 0.05)
        store.put("c", "large", Body.from_bytes(bytes(30 << 20)))
        seconds = 60
        try:
            with pytest.raises(Unavailable):
                store.put("c", "small", X)
        finally:
            leave.set()

    def test_waiting_for_a_limit_is_no_timeout(self, memory: MemoryStore, clock: Clock) -> None:
        entered = threading.Event()
        first = threading.Event()

        def gate() -> None:
            if not entered.is_set():
                entered.set()
                first.wait(60)

        limited = LimitLayer(SlowStore(memory, gate=gate), Limits(concurrency=1))
        store = TimeoutLayer(limited, 100)
        with ThreadPoolExecutor(2) as pool:
            slow = pool.submit(limited.get, "c", "key")
            assert entered.wait(60)
            waiting = pool.submit(store.get, "c", "key")
            wait_in_line(limited)
            # One call holds the only place ten times as long as the other may take.
            clock.now += 1000
            stays(waiting)
            first.set()
            assert waiting.result(60) == b"x"
            assert slow.result(60) == b"x"

    def test_a_call_that_timed_out_keeps_its_place(self, memory: MemoryStore, clock: Clock) -> None:
        leave = threading.Event()
        entered = threading.Semaphore(0)
        slow = SlowStore(memory, gate=lambda: (entered.release(), leave.wait(60)))
        limited = LimitLayer(slow, Limits(concurrency=2))
        store = TimeoutLayer(limited, 100)
        with ThreadPoolExecutor(3) as pool:
            hang = [pool.submit(store.get, "c", "key") for _ in range(2)]
            for _ in hang:
                assert entered.acquire(timeout=60)
            clock.now += 1000
            for call in hang:
                with pytest.raises(Unavailable):
                    call.result(60)
            # Two hang in the driver; the third waits for a place and so does not time out, nor get in.
            third = pool.submit(store.get, "c", "key")
            wait_in_line(limited)
            clock.now += 1000
            stays(third)
            leave.set()
            assert third.result(60) == b"x"
        assert slow.most_at_once == 2

    def test_check_of_a_hanging_store_is_a_report(self, memory: MemoryStore) -> None:
        leave = threading.Event()

        class Hanging(FaultyStore):
            def check(self):
                leave.wait(30)

        report = TimeoutLayer(Hanging(memory), 0.01).check()
        leave.set()
        assert not report.ok


def test_a_free_place_goes_to_who_waits_longest() -> None:
    """A caller that comes in the moment a place is free does not overtake one that waits for it."""
    inner = FaultyStore(MemoryStore("mem"))
    store = LimitLayer(inner, Limits(concurrency=1))
    inner.ensure_container("c")
    # As if a call were running.
    store._running = 1
    waiter = threading.Thread(target=store.put, args=("c", "waits", Body.from_bytes(b"x")))
    waiter.start()
    while not store._line:
        time.sleep(0.001)
    with store._changed:
        # Nobody else can look while the place gets free and the newcomer comes.
        store._running = 0
        store._changed.notify_all()
        store.put("c", "new", Body.from_bytes(b"x"))
    waiter.join()
    assert [key for kind, key in inner.calls if kind == "put"] == ["waits", "new"]


class Ended(Exception):
    """What a thread that must end is told."""


class GatedStore(Layer):
    """Holds puts and deletes, after they are done, until it is told to let go."""

    def __init__(self, inner: ChunkStore) -> None:
        super().__init__(inner)
        self.put_done, self.delete_begun = threading.Event(), threading.Event()
        self.let_put_go, self.let_delete_go = threading.Event(), threading.Event()
        self.delete_done = threading.Event()

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        try:
            self.inner.put(container, key, body, if_absent=if_absent)
        finally:
            self.put_done.set()
            self.let_put_go.wait(30)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        self.delete_begun.set()
        self.let_delete_go.wait(30)
        self.inner.delete(container, keys)
        self.delete_done.set()


class TestCancellation:
    """Waits that end because the waiting thread must."""

    def test_a_put_that_ends_late_is_undone(self, memory: MemoryStore) -> None:
        gated = GatedStore(memory)
        gated.let_delete_go.set()

        def check() -> None:
            if gated.put_done.is_set():
                raise Ended

        with cancelled_by(check), pytest.raises(Ended):
            TimeoutLayer(gated, 60).put("c", "late", Body.from_bytes(b"x"))
        assert memory.get("c", "late") == b"x"
        gated.let_put_go.set()
        assert gated.delete_done.wait(30)
        with pytest.raises(NotFound):
            memory.get("c", "late")

    def test_a_put_that_ends_late_stays_if_somebody_may_name_it(self, memory: MemoryStore) -> None:
        gated = GatedStore(memory)
        layer = TimeoutLayer(gated, 60)
        asked = threading.Event()

        def allowed() -> bool:
            assert memory.get("c", "late") == b"x", "it was put"
            asked.set()
            return False

        def check() -> None:
            if gated.put_done.is_set():
                raise Ended

        with cancelled_by(check), undoing_if(allowed), pytest.raises(Ended):
            layer.put("c", "late", Body.from_bytes(b"x"))
        gated.let_put_go.set()
        assert asked.wait(30)
        deadline = time.monotonic() + 30
        while not layer._workers._idle and time.monotonic() < deadline:
            time.sleep(0.01)
        assert memory.get("c", "late") == b"x"
        assert not gated.delete_begun.is_set()

    @pytest.mark.parametrize("allowed", [None, False, True])
    def test_a_put_that_took_too_long_is_undone_only_if_that_is_said(
        self, memory: MemoryStore, allowed: bool | None
    ) -> None:
        gated = GatedStore(memory)
        gated.let_delete_go.set()
        layer = TimeoutLayer(gated, 0.2)
        with (
            nullcontext() if allowed is None else undoing_if(lambda: bool(allowed)),
            pytest.raises(Unavailable),
        ):
            layer.put("c", "late", Body.from_bytes(b"x"))
        gated.let_put_go.set()
        deadline = time.monotonic() + 30
        while not layer._workers._idle and time.monotonic() < deadline:
            time.sleep(0.01)
        assert gated.delete_done.is_set() is (allowed is True)
        assert [info.key for info in memory.list("c")] == (["key"] if allowed else ["key", "late"])

    def test_undoing_what_has_just_ended_keeps_nobody_waiting(self, memory: MemoryStore) -> None:
        gated = GatedStore(memory)
        layer = TimeoutLayer(gated, 60)
        gated_by = threading.Event()

        def check() -> None:
            # The put ends between the look that told so and the wait's end.
            assert gated.put_done.wait(30)
            gated.let_put_go.set()
            while layer._workers._idle == []:
                gated_by.wait(0.01)
            raise Ended

        with ThreadPoolExecutor(1) as pool:

            def act() -> None:
                with cancelled_by(check):
                    layer.put("c", "late", Body.from_bytes(b"x"))

            put = pool.submit(act)
            assert gated.delete_begun.wait(30)
            try:
                # The delete hangs; the thread ends all the same.
                assert isinstance(put.exception(60), Ended)
            finally:
                gated.let_delete_go.set()
        assert gated.delete_done.wait(30)

    def test_what_was_there_before_stays(self, memory: MemoryStore) -> None:
        memory.put("c", "key", Body.from_bytes(b"somebody else's"))
        gated = GatedStore(memory)
        gated.let_delete_go.set()
        layer = TimeoutLayer(gated, 60)

        def check() -> None:
            if gated.put_done.is_set():
                raise Ended

        with cancelled_by(check), pytest.raises(Ended):
            layer.put("c", "key", Body.from_bytes(b"mine"), if_absent=True)
        gated.let_put_go.set()
        deadline = time.monotonic() + 30
        while not layer._workers._idle and time.monotonic() < deadline:
            time.sleep(0.01)
        assert layer._workers._idle
        assert memory.get("c", "key") == b"somebody else's"

    def test_waiting_for_a_rate(self, memory: MemoryStore) -> None:
        layer = LimitLayer(memory, Limits(bytes_per_second=1), sleep=lambda _: None, clock=lambda: 0.0)
        layer.put("c", "first", Body.from_bytes(b"x" * 100))
        looks = iter(range(5))

        def check() -> None:
            if next(looks) == 3:
                raise Ended

        with cancelled_by(check), pytest.raises(Ended):
            layer.put("c", "second", Body.from_bytes(b"x"))
        with pytest.raises(NotFound):
            memory.get("c", "second")

    def test_waiting_for_a_place(self, memory: MemoryStore) -> None:
        gated = GatedStore(memory)
        layer = LimitLayer(gated, Limits(concurrency=1))
        with ThreadPoolExecutor(1) as pool:
            holding = pool.submit(layer.put, "c", "first", Body.from_bytes(b"x"))
            assert gated.put_done.wait(30)

            def check() -> None:
                raise Ended

            with cancelled_by(check), pytest.raises(Ended):
                layer.get("c", "first")
            gated.let_put_go.set()
            holding.result(30)
        # The one that left keeps nobody's place.
        assert layer.get("c", "first") == b"x"
