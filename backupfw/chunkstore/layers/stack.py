"""The one place where layers are put around a driver.

From the outside in, with the reason for each place::

    names      refuses what must not reach the others
    metrics    counts what callers see: one call, however many tries it took
    retry      each try passes all layers below again
    timeout    bounds one try; a call past its bound still holds its place under the limit
    limit      counts what really runs in the driver
    integrity  checks the driver's answers, so that wrong ones are retried
    driver
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.base import Layer, driver_of
from backupfw.chunkstore.layers.integrity import IntegrityLayer
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.chunkstore.layers.metrics import MetricsLayer, NullRecorder, Recorder
from backupfw.chunkstore.layers.names import NamesLayer
from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.layers.retry import RetryBudget, RetryLayer, RetryPolicy, never
from backupfw.chunkstore.layers.timeout import TimeoutLayer

__all__ = ["layer_options", "layers_of", "set_limits", "stack"]


def stack(
    driver: ChunkStore,
    options: Any = None,
    *,
    metrics: Recorder | None = None,
    stop: Callable[[], bool] = never,
) -> ChunkStore:
    """Put all layers around a driver.

    :param driver: the driver's instance; closing the returned store closes it.
    :param options: values of :func:`layer_options` by name; what is missing has its default.
    :param metrics: where figures go, None for nowhere.
    :param stop: True when the process shuts down: no retry is begun and no pause goes on then.
    """
    value = _values(driver, options)
    recorder = metrics if metrics is not None else NullRecorder()
    store: ChunkStore = IntegrityLayer(driver, verify_puts=value("verify_puts"))
    store = LimitLayer(store, _limits(value))
    store = TimeoutLayer(store, value("operation_timeout"))
    store = RetryLayer(
        store,
        RetryPolicy(
            tries=value("retry_tries"),
            seconds=value("retry_seconds"),
            base=value("retry_base_pause"),
            cap=value("retry_max_pause"),
        ),
        budget=RetryBudget(value("retry_budget")),
        recorder=recorder,
        stop=stop,
    )
    store = MetricsLayer(store, recorder)
    return NamesLayer(store)


def set_limits(store: ChunkStore, options: Any) -> None:
    """Put other limits in force in a store that is in use; calls that wait see them within a moment.

    :param store: what :func:`stack` returned.
    :param options: as for :func:`stack`; only the limits are looked at.
    """
    limits = _limits(_values(driver_of(store), options))
    for layer in layers_of(store):
        if isinstance(layer, LimitLayer):
            layer.set_limits(limits)


def _values(driver: ChunkStore, options: Any) -> Callable[[str], Any]:
    # The instance's, not its class's: a test's layer that stands for a driver takes them over.
    defaults = {opt.dest: driver.layer_defaults.get(opt.dest, opt.default) for opt in layer_options()}
    return lambda name: getattr(options, name, defaults[name])


def _limits(value: Callable[[str], Any]) -> Limits:
    return Limits(
        concurrency=value("max_concurrency"),
        bytes_per_second=value("max_bytes_per_second"),
        requests_per_second=value("max_requests_per_second"),
    )


def layers_of(store: ChunkStore) -> tuple[Layer, ...]:
    """Return the layers of an opened store, the outermost first."""
    layers = []
    while isinstance(store, Layer):
        layers.append(store)
        store = store.inner
    return tuple(layers)
