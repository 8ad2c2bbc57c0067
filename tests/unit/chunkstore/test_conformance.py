"""The conformance suite on the memory store and on the full stack, and a part of it on each layer."""

from __future__ import annotations

from collections.abc import Set
from typing import Any, ClassVar

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.integrity import IntegrityLayer
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.chunkstore.layers.metrics import MetricsLayer, NullRecorder
from backupfw.chunkstore.layers.names import NamesLayer
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.retry import RetryLayer
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.layers.timeout import TimeoutLayer
from backupfw.chunkstore.options import option_values
from backupfw.testing.faults import FaultyStore, LaggingStore, RecordingStore, SlowStore
from tests.unit.chunkstore.memory_suite import MemorySuite


class TestMemoryStore(MemorySuite):
    pass


#: What every layer forwards, whether it acts on the call or not.
FORWARDING = {
    "test_model_random_histories",
    "test_the_driver_declares_what_it_must",
    "test_check_proves_a_good_store",
    "test_g7_if_absent",
    "test_g11_a_key_named_twice",
    "test_g11_erase",
    "test_g11_settings_are_reported",
    "test_g14_containers_are_listed",
    "test_g14_only_empty_containers_go",
    "test_g20_put_with_a_lock",
    "test_g18_close_twice",
    "test_g18_closed_stores_refuse",
}

#: What a layer can break that takes a listing in pages, or goes on with one.
PAGES = {"test_g10_complete_with_sizes", "test_g10_lazy", "test_g10_start_after"}

#: What a layer can break that divides a delete.
BATCHES = {"test_g11_any_number"}

#: What a layer can break that keeps a state for all threads.
THREADS = {"test_g13_all_operations"}


class LayerSuite(MemorySuite):
    """A part of the suite: what one layer can break.  The whole suite runs on the bare store and the stack.

    What a layer adds has tests of its own, in the modules beside this one.
    """

    #: The tests of the suite that run.
    part: ClassVar[Set[str]] = FORWARDING
    listing_keys = 2500
    model_examples = 8

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        tests = {name for name in dir(cls) if name.startswith("test_")}
        assert cls.part <= tests
        for name in tests - cls.part:
            setattr(cls, name, None)


class TestNamesLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return NamesLayer(store)


class TestMetricsLayer(LayerSuite):
    part = FORWARDING | PAGES

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return MetricsLayer(store, NullRecorder())


class TestRetryLayer(LayerSuite):
    part = FORWARDING | PAGES | BATCHES

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return RetryLayer(store)


class TestTimeoutLayer(LayerSuite):
    part = FORWARDING | PAGES | THREADS

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return TimeoutLayer(store, 60)


class TestLimitLayer(LayerSuite):
    part = FORWARDING | PAGES | THREADS

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return LimitLayer(store, Limits(concurrency=3, bytes_per_second=1e12, requests_per_second=1e9))


class TestIntegrityLayer(LayerSuite):
    part = FORWARDING | {"test_g1_body_from_a_file", "test_g10_complete_with_sizes"}

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return IntegrityLayer(store, verify_puts=True)


class TestFullStack(MemorySuite):
    # Several pages; the bare store has the full number.
    listing_keys = 2500

    def wrap(self, store: ChunkStore) -> ChunkStore:
        options = option_values(layer_options(), max_concurrency=4, max_bytes_per_second=1e12)
        return stack(store, options)


class TestFullStackOverFaults(LayerSuite):
    """A store that fails now and then still gives right answers through the layers."""

    part = {"test_model_random_histories", "test_g7_if_absent"} | PAGES | BATCHES | THREADS

    def wrap(self, store: ChunkStore) -> ChunkStore:
        faulty = FaultyStore(store, seed=7)
        faulty.fail("any", times=None, rate=0.05)
        options = option_values(
            layer_options(), retry_base_pause=0.001, retry_budget=1e9, operation_timeout=0, retry_tries=20
        )
        return stack(faulty, options)


class TestTestingStores(LayerSuite):
    """The doubles behave, as long as nothing is scripted."""

    part = FORWARDING | PAGES | BATCHES | THREADS

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return RecordingStore(FaultyStore(SlowStore(LaggingStore(store, lag=0))))
