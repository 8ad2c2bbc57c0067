"""Names, integrity and metrics layers, and the stack of all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from backupfw.chunkstore.base import Body, ObjectInfo
from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, InvalidName, NotFound, Unavailable
from backupfw.chunkstore.layers.base import Layer, Pages, driver_of
from backupfw.chunkstore.layers.integrity import IntegrityLayer
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.chunkstore.layers.metrics import MetricsLayer
from backupfw.chunkstore.layers.names import NamesLayer
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.retry import RetryLayer
from backupfw.chunkstore.layers.stack import layers_of, set_limits, stack
from backupfw.chunkstore.layers.timeout import TimeoutLayer
from backupfw.chunkstore.memory import MemoryStore
from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError
from backupfw.testing.faults import Fault, FaultyStore, RecordingStore
from tests.unit.chunkstore.test_retry import Clock

X = Body.from_bytes(b"x")


@pytest.fixture
def memory() -> MemoryStore:
    store = MemoryStore("memory")
    store.ensure_container("c")
    store.put("c", "key", X)
    return store


def test_a_layer_passes_the_removal_of_a_container_on() -> None:
    class Removing(MemoryStore):
        def remove_container(self, container: str) -> bool:
            return container == "c"

    layer = Layer(Removing("memory"))
    assert layer.remove_container("c")
    assert not layer.remove_container("other")


class TestNames:
    @pytest.fixture
    def recording(self, memory: MemoryStore) -> RecordingStore:
        return RecordingStore(memory)

    @pytest.mark.parametrize(
        "name", ["", ".", "..", "a/b", "a\\b", "x" * 256, "\u00e9" * 128, "a\0", "a\nb", "\udcff"]
    )
    def test_no_call_passes_a_wrong_container_name(self, recording: RecordingStore, name: str) -> None:
        store = NamesLayer(recording)
        for use in (
            lambda: store.put(name, "key", X),
            lambda: store.get(name, "key"),
            lambda: list(store.list(name)),
            lambda: store.delete(name, ["key"]),
            lambda: store.ensure_container(name),
        ):
            with pytest.raises(InvalidName) as caught:
                use()
            assert str(caught.value).isprintable()
        assert not recording.requests

    @pytest.mark.parametrize(
        "key",
        ["", "/", "a//b", "/a", "a/", ".", "a/../b", "x" * 1025, "\u00e9" * 513, "a\0", "a\nb", "\udcff"],
    )
    def test_no_call_passes_a_wrong_key(self, recording: RecordingStore, key: str) -> None:
        store = NamesLayer(recording)
        for use in (
            lambda: store.put("c", key, X),
            lambda: store.get("c", key),
            lambda: store.delete("c", ["key", key]),
        ):
            with pytest.raises(InvalidName) as caught:
                use()
            assert str(caught.value).isprintable()
        assert not recording.requests

    @pytest.mark.parametrize("prefix", ["a\0", "\n", "\udcff"])
    def test_no_listing_passes_a_wrong_prefix(self, recording: RecordingStore, prefix: str) -> None:
        with pytest.raises(InvalidName):
            list(NamesLayer(recording).list("c", prefix))
        with pytest.raises(InvalidName):
            list(NamesLayer(recording).list("c", "", prefix))
        assert not recording.requests

    def test_the_stores_own_rule(self, memory: MemoryStore) -> None:
        class Strict(MemoryStore):
            container_pattern = r"[a-z0-9][a-z0-9.-]{2,62}"

        store = stack(Strict("strict"))
        store.ensure_container("fine-name")
        for name in ("Upper", "ab", "fine-name\n", "x" * 64):
            with pytest.raises(InvalidName):
                store.ensure_container(name)
        assert store.container_pattern == Strict.container_pattern

    def test_the_stores_own_rule_of_keys(self, recording: RecordingStore) -> None:
        recording.key_pattern = r"[A-Za-z0-9._/-]+"
        store = NamesLayer(recording)
        store.put("c", "fine/key", X)
        recording.reset()
        for use in (
            lambda: store.put("c", "a b", X),
            lambda: store.get("c", "\u00e9"),
            lambda: store.delete("c", ["key", "key\n"]),
        ):
            with pytest.raises(InvalidName):
                use()
        assert not recording.requests

    @pytest.mark.parametrize(("offset", "length"), [(0, None), (None, 1), (-1, 1), (0, 0), (0, -1)])
    def test_ranges_that_are_none(
        self, recording: RecordingStore, offset: int | None, length: int | None
    ) -> None:
        with pytest.raises(ValueError, match=r"range|both"):
            NamesLayer(recording).get("c", "key", offset, length)
        assert not recording.requests

    def test_deletes_name_each_key_once(self, recording: RecordingStore) -> None:
        NamesLayer(recording).delete("c", ["a", "b", "a"])
        assert recording.by_key == {("delete", "a"): 1, ("delete", "b"): 1}
        NamesLayer(recording).delete("c", [])
        assert recording.requests["delete"] == 1


class TestIntegrity:
    def test_a_short_range_is_a_temporary_error(self, memory: MemoryStore) -> None:
        memory.put("c", "key", Body.from_bytes(b"0123456789"))
        faulty = FaultyStore(memory)
        faulty.script(Fault("get", "cut", amount=3))
        store = IntegrityLayer(faulty)
        with pytest.raises(IntegrityError) as caught:
            store.get("c", "key", 2, 5)
        assert caught.value.temporary
        assert (caught.value.store, caught.value.container, caught.value.key) == ("memory", "c", "key")
        assert store.get("c", "key", 2, 5) == b"23456"

    def test_a_short_range_is_asked_for_again(self, memory: MemoryStore) -> None:
        memory.put("c", "key", Body.from_bytes(b"0123456789"))
        faulty = FaultyStore(memory)
        store = stack(faulty, option_values(layer_options(), retry_base_pause=0))
        faulty.script(Fault("get", "cut", amount=3, times=2))
        assert store.get("c", "key", 2, 5) == b"23456"
        faulty.script(Fault("get", "cut", amount=3, times=None))
        with pytest.raises(IntegrityError) as caught:
            store.get("c", "key", 2, 5)
        assert caught.value.temporary

    @pytest.mark.parametrize(
        "entries",
        [["p/a", "p/c", "p/b"], ["p/a", "p/a"], ["p/a", "other/b"], ["p/a", "P/b"], ["p"]],
        ids=["order", "twice", "foreign", "case", "shorter"],
    )
    def test_listings_that_cannot_be_right(self, memory: MemoryStore, entries: list[str]) -> None:
        class Lying(FaultyStore):
            def list(self, container, prefix="", start_after=""):
                yield from (ObjectInfo(key, 1) for key in entries)

        with pytest.raises(IntegrityError):
            list(IntegrityLayer(Lying(memory)).list("c", "p/"))

    def test_what_a_driver_finds_changed_is_named_in_the_end(self, memory: MemoryStore) -> None:
        def changed() -> ChunkStoreError:
            return IntegrityError(
                "not the checksum's", store="memory", container="c", key="key", temporary=True
            )

        faulty = FaultyStore(memory)
        store = stack(faulty, option_values(layer_options(), retry_tries=3, retry_base_pause=0))
        # Once may be the wire.
        faulty.fail("get", changed)
        assert store.get("c", "key") == b"x"
        faulty.fail("get", changed, times=None)
        with pytest.raises(IntegrityError) as caught:
            store.get("c", "key")
        assert caught.value.temporary
        assert str(caught.value) == "store memory, container c, key key: not the checksum's"
        assert faulty.count("get") == 2 + 3

    @pytest.mark.parametrize("kind", ["flip", "cut", "lie"])
    def test_a_verified_put_notices_what_the_store_did_not_keep(self, memory: MemoryStore, kind: str) -> None:
        data = Body.from_bytes(b"0123456789")
        faulty = FaultyStore(memory)
        fault = Fault("put", kind, amount=3, times=1)
        faulty.script(fault)
        store = stack(faulty, option_values(layer_options(), verify_puts=True, retry_base_pause=0))
        if kind == "lie":
            with pytest.raises(NotFound):
                store.put("c", "new", data)
            store.put("c", "new", data)
        else:
            store.put("c", "new", data)
            assert faulty.count("put") == 2
        assert fault.struck == 1
        assert store.get("c", "new") == b"0123456789"


class Figures:
    def __init__(self) -> None:
        self.seen: list[tuple] = []
        self.retries: list[tuple] = []

    def operation(self, store, operation, seconds, sent, received, error) -> None:
        self.seen.append((store, operation, seconds, sent, received, type(error).__name__))

    def retried(self, store, operation, pause, error) -> None:
        self.retries.append((store, operation, type(error).__name__))


class TestMetrics:
    def test_calls_bytes_time_and_errors(self, memory: MemoryStore) -> None:
        clock, figures = Clock(), Figures()

        class Slow(FaultyStore):
            def put(self, *arguments, **more):
                clock.now += 2
                super().put(*arguments, **more)

        store = MetricsLayer(Slow(memory), figures, clock)
        store.put("c", "key", Body.from_bytes(b"12345"))
        store.get("c", "key")
        store.get("c", "key", 1, 2)
        with pytest.raises(NotFound):
            store.get("c", "missing")
        store.delete("c", ["key"])
        assert figures.seen == [
            ("memory", "put", 2.0, 5, 0, "NoneType"),
            ("memory", "get", 0.0, 0, 5, "NoneType"),
            ("memory", "get", 0.0, 0, 2, "NoneType"),
            ("memory", "get", 0.0, 0, 0, "NotFound"),
            ("memory", "delete", 0.0, 0, 0, "NoneType"),
        ]

    def test_the_callers_time_between_entries_does_not_count(self, memory: MemoryStore) -> None:
        clock, figures = Clock(), Figures()
        for number in range(1500):
            memory.put("c", f"{number:05}", X)
        for _ in MetricsLayer(memory, figures, clock).list("c"):
            clock.now += 1
        assert [each[1:3] for each in figures.seen] == [("list", 0.0), ("list", 0.0)]

    def test_one_call_however_many_tries(self, memory: MemoryStore) -> None:
        figures = Figures()
        faulty = FaultyStore(memory)
        store = stack(faulty, option_values(layer_options(), retry_base_pause=0), metrics=figures)
        faulty.fail("get", times=2)
        store.get("c", "key")
        assert [each[1] for each in figures.seen] == ["get"]
        assert figures.retries == [("memory", "get", "Unavailable")] * 2


class TestStack:
    def test_the_layers_have_the_documented_order(self, memory: MemoryStore) -> None:
        store = stack(memory)
        assert [type(layer) for layer in layers_of(store)] == [
            NamesLayer,
            MetricsLayer,
            RetryLayer,
            TimeoutLayer,
            LimitLayer,
            IntegrityLayer,
        ]
        assert driver_of(store) is memory
        assert store.wire_name == memory.wire_name
        assert store.capabilities == memory.capabilities

    def test_options_reach_their_layers(self, memory: MemoryStore) -> None:
        options = option_values(
            layer_options(),
            retry_tries=7,
            retry_seconds=33,
            retry_base_pause=0.25,
            retry_max_pause=4,
            operation_timeout=9,
            max_concurrency=3,
            max_bytes_per_second=1e6,
            max_requests_per_second=50,
        )
        _, _, retry, timeout, limit, _ = layers_of(stack(memory, options))
        assert (retry.policy.tries, retry.policy.seconds) == (7, 33)
        assert (retry.policy.base, retry.policy.cap) == (0.25, 4)
        assert timeout.seconds == 9
        assert limit.limits == Limits(3, 1e6, 50)

    def test_limits_are_changed_in_an_open_store(self, memory: MemoryStore) -> None:
        store = stack(RecordingStore(memory), option_values(layer_options(), max_concurrency=3))
        limit = layers_of(store)[4]
        set_limits(store, SimpleNamespace(max_bytes_per_second=5.0, max_concurrency=2))
        assert limit.limits == Limits(2, 5.0, 0)
        set_limits(store, SimpleNamespace())
        assert limit.limits == Limits()
        # A store without that layer has none to change.
        set_limits(memory, SimpleNamespace(max_concurrency=1))

    def test_only_limits_change_while_running(self) -> None:
        mutable = {opt.dest for opt in layer_options() if opt.mutable}
        assert mutable == {"max_concurrency", "max_bytes_per_second", "max_requests_per_second"}

    def test_a_driver_has_defaults_of_its_own(self, memory: MemoryStore) -> None:
        assert layers_of(stack(memory))[3].seconds == 0
        assert layers_of(stack(RecordingStore(memory)))[3].seconds == 0
        assert {opt.dest: opt.default for opt in layer_options()}["operation_timeout"] > 0
        assert {opt.dest: opt.default for opt in layer_options(MemoryStore)}["operation_timeout"] == 0

    def test_stop_reaches_retries(self, memory: MemoryStore) -> None:
        faulty = FaultyStore(memory)
        faulty.fail("get", times=None)
        store = stack(faulty, stop=lambda: True)
        with pytest.raises(Unavailable):
            store.get("c", "key")
        assert faulty.count("get") == 1

    @pytest.mark.parametrize(
        "values", [{"retry_tries": 0}, {"max_concurrency": -1}, {"operation_timeout": "x"}, {"no": 1}]
    )
    def test_wrong_options_of_layers_are_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ConfigError):
            option_values(layer_options(), **values)

    def test_every_option_has_help(self) -> None:
        assert [opt.name for opt in layer_options() if not opt.help] == []

    def test_close_closes_the_driver(self, memory: MemoryStore) -> None:
        stack(memory).close()
        with pytest.raises(ChunkStoreError):
            memory.get("c", "key")

    def test_a_put_is_handed_down_without_copies(self, memory: MemoryStore) -> None:
        seen = []

        class Looking(Layer):
            def put(self, container, key, body, *, if_absent=False):
                seen.append(body)

        store = stack(Looking(memory))
        store.put("c", "key", X)
        assert seen[0] is X


def test_pages_keep_back_an_error_until_the_entries_before_it_are_taken() -> None:
    def entries():
        yield from range(5)
        raise Unavailable("broken off")

    pages = Pages(entries())
    assert pages.take(3) == [0, 1, 2]
    assert pages.take(3) == [3, 4]
    with pytest.raises(Unavailable):
        pages.take(3)
    assert not pages.done
    whole = Pages(iter(range(4)))
    assert whole.take(4) == [0, 1, 2, 3]
    assert not whole.done
    assert whole.take(4) == []
    assert whole.done
