"""The retry layer: what it tries again, how often, and when it gives up."""

from __future__ import annotations

import pytest

from backupfw.chunkstore.base import Body, Capabilities
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NoSpace,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from backupfw.chunkstore.layers.retry import RetryBudget, RetryLayer, RetryPolicy
from backupfw.chunkstore.memory import MemoryStore
from backupfw.testing.faults import Fault, FaultyStore

X = Body.from_bytes(b"x")


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.pauses: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds
        self.pauses.append(seconds)

    @property
    def slept(self) -> float:
        return self.now - 1000.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faulty() -> FaultyStore:
    store = FaultyStore(MemoryStore("memory"))
    store.ensure_container("c")
    store.calls.clear()
    return store


def retrying(faulty: FaultyStore, clock: Clock, rand: float = 0.5, **values: object) -> RetryLayer:
    policy = RetryPolicy(**{"tries": 5, "seconds": 1000.0, "base": 1.0, "cap": 8.0} | values)
    return RetryLayer(faulty, policy, sleep=clock.sleep, rand=lambda: rand, clock=clock)


@pytest.mark.parametrize("kind", [NotFound, PermissionDenied, NoSpace, IntegrityError, ChunkStoreError])
def test_permanent_errors_are_tried_once(faulty: FaultyStore, clock: Clock, kind: type) -> None:
    faulty.fail("put", lambda: kind("no"), times=None)
    with pytest.raises(kind):
        retrying(faulty, clock).put("c", "key", X)
    assert faulty.count("put") == 1
    assert clock.slept == 0


@pytest.mark.parametrize("operation", ["put", "get", "list", "delete", "ensure_container"])
def test_temporary_errors_are_tried_again(faulty: FaultyStore, clock: Clock, operation: str) -> None:
    store = retrying(faulty, clock)
    store.put("c", "key", X)
    faulty.calls.clear()
    faulty.fail(operation, times=4)
    calls = {
        "put": lambda: store.put("c", "key", X),
        "get": lambda: store.get("c", "key"),
        "list": lambda: list(store.list("c")),
        "delete": lambda: store.delete("c", ["key"]),
        "ensure_container": lambda: store.ensure_container("c"),
    }
    calls[operation]()
    assert faulty.count(operation) == 5
    # Half of 1, 2, 4 and 8 seconds.
    assert clock.slept == pytest.approx(7.5)


def test_the_last_error_comes_out_as_it_is(faulty: FaultyStore, clock: Clock) -> None:
    faulty.fail("get", lambda: Unavailable("first"), times=4)
    faulty.fail("get", lambda: Unavailable("last"), times=None)
    with pytest.raises(Unavailable) as caught:
        retrying(faulty, clock).get("c", "key")
    assert caught.value.reason == "last"
    assert caught.value.temporary
    assert faulty.count("get") == 5
    assert "after 5 tries" in caught.value.__notes__[0]


def test_pauses_grow_to_the_cap_with_full_jitter(faulty: FaultyStore, clock: Clock) -> None:
    faulty.fail("get", times=None)
    pauses = []

    class Recorder:
        def operation(self, *_: object) -> None: ...

        def retried(self, store: str, operation: str, pause: float, error: ChunkStoreError) -> None:
            pauses.append(pause)

    for rand, expected in ((1.0, [1, 2, 4, 8, 8, 8]), (0.0, [0] * 6)):
        pauses.clear()
        store = RetryLayer(
            faulty,
            RetryPolicy(tries=7, seconds=0, base=1, cap=8),
            recorder=Recorder(),
            sleep=clock.sleep,
            rand=lambda rand=rand: rand,
            clock=clock,
        )
        with pytest.raises(Unavailable):
            store.get("c", "key")
        assert pauses == expected


def test_no_try_begins_after_the_budget_of_seconds(faulty: FaultyStore, clock: Clock) -> None:
    faulty.fail("get", times=None)
    with pytest.raises(Unavailable):
        retrying(faulty, clock, rand=1.0, tries=100, seconds=10.0).get("c", "key")
    # 1 + 2 + 4 fit, the 8 after them do not: it is given up at once, not after the pause.
    assert clock.slept == pytest.approx(7)
    assert faulty.count("get") == 4


def test_retry_after_is_a_lower_bound(faulty: FaultyStore, clock: Clock) -> None:
    faulty.script(Fault("get", error=lambda: Unavailable("busy", retry_after=20)))
    with pytest.raises(NotFound):
        retrying(faulty, clock, rand=0.0).get("c", "key")
    assert clock.slept == pytest.approx(20)


def test_a_retry_after_past_the_budget_gives_up_at_once(faulty: FaultyStore, clock: Clock) -> None:
    faulty.script(Fault("get", error=lambda: Unavailable("busy", retry_after=3600)))
    with pytest.raises(Unavailable):
        retrying(faulty, clock, seconds=60).get("c", "key")
    assert clock.slept == 0


def test_stop_ends_a_pause(faulty: FaultyStore, clock: Clock) -> None:
    faulty.fail("get", times=None)
    store = RetryLayer(
        faulty,
        RetryPolicy(base=100, cap=100),
        stop=lambda: clock.slept > 1,
        sleep=clock.sleep,
        rand=lambda: 1.0,
        clock=clock,
    )
    with pytest.raises(Unavailable) as caught:
        store.get("c", "key")
    assert caught.value.temporary
    assert 1 < clock.slept < 1.5
    with pytest.raises(Unavailable):
        store.get("c", "key")
    assert faulty.count("get") == 2


def test_close_ends_a_pause(faulty: FaultyStore, clock: Clock) -> None:
    faulty.fail("get", times=None)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        store.close()

    store = RetryLayer(faulty, RetryPolicy(base=100, cap=100), sleep=sleep, rand=lambda: 1.0, clock=clock)
    with pytest.raises(ChunkStoreError):
        store.get("c", "key")
    assert faulty.count("get") == 1


def test_the_stores_budget_stops_retries_of_a_store_that_is_down(faulty: FaultyStore, clock: Clock) -> None:
    faulty.fail("get", times=None)
    store = RetryLayer(
        faulty, RetryPolicy(tries=5, base=0), budget=RetryBudget(10, 0.5), sleep=clock.sleep, clock=clock
    )
    for _ in range(20):
        with pytest.raises(Unavailable):
            store.get("c", "key")
    assert faulty.count("get") == 20 + 10
    # Calls that work fill it again.
    faulty.heal()
    store.put("c", "key", X)
    store.put("c", "key", X)
    faulty.fail("get", times=1)
    assert store.get("c", "key") == b"x"


def test_only_remaining_keys_are_deleted_again(faulty: FaultyStore, clock: Clock) -> None:
    seen: list[list[str]] = []

    class Watching(FaultyStore):
        def delete(self, container, keys):
            seen.append(list(keys))
            super().delete(container, keys)

    store = Watching(faulty.inner)
    store.script(Fault("delete", "after", amount=2), Fault("delete", "after", amount=1))
    layer = RetryLayer(store, RetryPolicy(base=0), sleep=clock.sleep, clock=clock)
    for key in "abcde":
        layer.put("c", key, X)
    layer.delete("c", list("abcde"))
    assert seen == [list("abcde"), list("cde"), list("de")]
    assert list(layer.list("c")) == []


def test_permanent_errors_of_a_delete_are_kept_and_named(faulty: FaultyStore, clock: Clock) -> None:
    class Mixed(FaultyStore):
        def delete(self, container, keys):
            errors = {}
            for key in keys:
                if key == "locked":
                    errors[key] = PermissionDenied("locked")
                elif key == "down":
                    errors[key] = Unavailable("down")
                elif key == "once" and not self.count("delete"):
                    errors[key] = Unavailable("once")
                else:
                    self.inner.delete(container, [key])
            self.calls.append(("delete", ",".join(keys)))
            if errors:
                raise DeleteFailed(errors)

    store = Mixed(faulty.inner)
    layer = RetryLayer(store, RetryPolicy(tries=3, base=0), sleep=clock.sleep, clock=clock)
    for key in ("fine", "locked", "down", "once"):
        layer.put("c", key, X)
    with pytest.raises(DeleteFailed) as caught:
        layer.delete("c", ["fine", "locked", "down", "once"])
    assert {key: type(error) for key, error in caught.value.errors.items()} == {
        "locked": PermissionDenied,
        "down": Unavailable,
    }
    assert not caught.value.temporary
    assert {key: error.temporary for key, error in caught.value.errors.items()} == {
        "locked": False,
        "down": True,
    }
    deletes = [keys for operation, keys in store.calls if operation == "delete"]
    assert deletes == ["fine,locked,down,once", "down,once", "down"]
    assert [info.key for info in layer.list("c")] == ["down", "locked"]


def test_deletes_go_in_batches_and_every_batch_is_tried(faulty: FaultyStore, clock: Clock) -> None:
    sizes: list[int] = []

    class Small(FaultyStore):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(bulk_delete=3)

        def delete(self, container, keys):
            sizes.append(len(keys))
            super().delete(container, keys)

    store = Small(faulty.inner)
    store.script(Fault("delete", "after", amount=2, error=lambda: PermissionDenied("no")))
    layer = RetryLayer(store, RetryPolicy(base=0), sleep=clock.sleep, clock=clock)
    for key in "abcdefgh":
        layer.put("c", key, X)
    with pytest.raises(DeleteFailed) as caught:
        layer.delete("c", list("abcdefgh"))
    assert sizes == [3, 3, 2]
    assert set(caught.value.errors) == {"c"}
    assert [info.key for info in layer.list("c")] == ["c"]


@pytest.mark.parametrize("kind", ["before", "after", "cut"])
def test_a_listing_that_breaks_off_goes_on_after_the_last_key(
    faulty: FaultyStore, clock: Clock, kind: str
) -> None:
    keys = [f"{number:03}" for number in range(50)]
    for key in keys:
        faulty.put("c", key, X)
    starts: list[str] = []

    class Breaking(FaultyStore):
        def list(self, container, prefix="", start_after=""):
            starts.append(start_after)
            yield from super().list(container, prefix, start_after)

    store = Breaking(faulty.inner)
    if kind != "cut":
        store.script(*(Fault("list", kind, amount=7) for _ in range(4)))
    layer = RetryLayer(store, RetryPolicy(tries=5, base=0), sleep=clock.sleep, clock=clock)
    assert [info.key for info in layer.list("c")] == keys
    expected = {"before": [""] * 5, "after": ["", "006", "013", "020", "027"], "cut": [""]}
    assert starts == expected[kind]


def test_tries_of_a_listing_count_since_the_last_entry(faulty: FaultyStore, clock: Clock) -> None:
    for number in range(50):
        faulty.put("c", f"{number:03}", X)
    faulty.script(Fault("list", "after", amount=1, times=None))
    layer = retrying(faulty, clock, tries=2, base=0.0)
    assert len(list(layer.list("c"))) == 50


def test_time_the_caller_takes_between_entries_does_not_count(faulty: FaultyStore, clock: Clock) -> None:
    for number in range(5):
        faulty.put("c", f"{number:03}", X)
    faulty.script(Fault("list", "after", amount=2))
    found = []
    for info in retrying(faulty, clock, seconds=10.0).list("c"):
        found.append(info.key)
        clock.now += 3600
    assert len(found) == 5


def test_an_unsorted_listing_is_only_tried_again_before_its_first_entry(
    faulty: FaultyStore, clock: Clock
) -> None:
    class Unsorted(FaultyStore):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(sorted_listing=False)

    store = Unsorted(faulty.inner)
    for key in "abcde":
        store.put("c", key, X)
    layer = RetryLayer(store, RetryPolicy(base=0), sleep=clock.sleep, clock=clock)
    store.script(Fault("list"), Fault("list"))
    assert len(list(layer.list("c"))) == 5
    store.script(Fault("list", "after", amount=2))
    listing = layer.list("c")
    assert len([next(listing), next(listing)]) == 2
    with pytest.raises(Unavailable) as caught:
        next(listing)
    assert caught.value.temporary


def test_a_put_is_sent_whole_again(faulty: FaultyStore, clock: Clock) -> None:
    data = bytes(range(256)) * 9000
    faulty.script(Fault("put", "after"), Fault("put", "before"))
    retrying(faulty, clock).put("c", "key", Body.from_bytes(data))
    assert faulty.get("c", "key") == data
    assert faulty.count("put") == 3


def test_a_conditional_put_whose_answer_was_lost_counts_as_put(faulty: FaultyStore, clock: Clock) -> None:
    faulty.script(Fault("put", "after"))
    retrying(faulty, clock).put("c", "key", X, if_absent=True)
    assert faulty.get("c", "key") == b"x"


def test_a_conditional_put_does_not_take_anothers_object_for_its_own(
    faulty: FaultyStore, clock: Clock
) -> None:
    faulty.put("c", "key", Body.from_bytes(b"other"))
    with pytest.raises(AlreadyExists):
        retrying(faulty, clock).put("c", "key", X, if_absent=True)
    faulty.script(Fault("put", "before"))
    with pytest.raises(AlreadyExists):
        retrying(faulty, clock).put("c", "key", X, if_absent=True)
    assert faulty.get("c", "key") == b"other"
    # The first try meets the same bytes: somebody else's, so it is not absent.
    with pytest.raises(AlreadyExists):
        retrying(faulty, clock).put("c", "key", Body.from_bytes(b"other"), if_absent=True)
