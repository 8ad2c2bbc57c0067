"""The conformance suite on the memory store, on every layer and on the full stack."""

from __future__ import annotations

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.integrity import IntegrityLayer
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.chunkstore.layers.metrics import MetricsLayer, NullRecorder
from backupfw.chunkstore.layers.names import NamesLayer
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.retry import RetryLayer, RetryPolicy
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.layers.timeout import TimeoutLayer
from backupfw.chunkstore.options import option_values
from backupfw.testing.faults import FaultyStore, LaggingStore, RecordingStore, SlowStore
from tests.unit.chunkstore.memory_suite import MemorySuite


class TestMemoryStore(MemorySuite):
    pass


class LayerSuite(MemorySuite):
    """Large sizes and long listings are for the bare store and the full stack."""

    listing_keys = 2500
    largest = 8 << 20
    model_examples = 8


class TestNamesLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return NamesLayer(store)


class TestMetricsLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return MetricsLayer(store, NullRecorder())


class TestRetryLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return RetryLayer(store)


class TestTimeoutLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return TimeoutLayer(store, 60)


class TestLimitLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return LimitLayer(store, Limits(concurrency=3, bytes_per_second=1e12, requests_per_second=1e9))


class TestIntegrityLayer(LayerSuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        return IntegrityLayer(store, verify_puts=True)


class TestFullStack(MemorySuite):
    def wrap(self, store: ChunkStore) -> ChunkStore:
        options = option_values(layer_options(), max_concurrency=4, max_bytes_per_second=1e12)
        return stack(store, options)


class TestFullStackOverFaults(LayerSuite):
    """A store that fails now and then keeps every guarantee under the layers."""

    def wrap(self, store: ChunkStore) -> ChunkStore:
        faulty = FaultyStore(store, seed=7)
        faulty.fail("any", times=None, rate=0.05)
        options = option_values(
            layer_options(), retry_base_pause=0.001, retry_budget=1e9, operation_timeout=0, retry_tries=20
        )
        return stack(faulty, options)


class TestTestingStores(LayerSuite):
    """The doubles behave, as long as nothing is scripted."""

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return RecordingStore(FaultyStore(SlowStore(LaggingStore(store, lag=0))))


class TestRetryGoesOnInListings(LayerSuite):
    """Listings that break off after each 400 entries are complete under the retry layer."""

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return RetryLayer(_Breaking(store), RetryPolicy(base=0))


class _Breaking(FaultyStore):
    def list(self, container, prefix="", start_after=""):
        from backupfw.chunkstore.errors import Unavailable

        for number, info in enumerate(self.inner.list(container, prefix, start_after)):
            if number == 400:
                raise Unavailable("broken off on purpose")
            yield info
