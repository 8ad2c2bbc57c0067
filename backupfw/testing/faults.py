"""Stores that misbehave on purpose, as layers around any store.

* :class:`FaultyStore` fails, cuts, flips bits and lies as scripted;
* :class:`SlowStore` is slow;
* :class:`LaggingStore` has listings that lag some puts and deletes behind;
* :class:`DiscardingStore` keeps only chosen objects;
* :class:`RecordingStore` counts requests and bytes.

All are thread-safe.  They take the place of the driver: under the layers, or alone.
"""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from backupfw.chunkstore.base import Body, Capabilities, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import ChunkStoreError, DeleteFailed, IntegrityError, NotFound, Unavailable
from backupfw.chunkstore.layers.base import Layer

#: What a fault can be scripted for; ``any`` is each of them.
Operation = Literal["put", "get", "list", "delete", "ensure_container", "any"]
#: Says whether a fault concerns a key (for a delete: one of its keys; else the prefix or "").
KeyMatch = Callable[[str], bool]


def _every_key(_: str) -> bool:
    return True


@dataclass
class Fault:
    """One scripted fault.

    :ivar operation: the operation that fails.
    :ivar kind: ``before`` raises instead of acting; ``after`` acts, then raises (for a listing: after
        ``amount`` entries; for a delete: after ``amount`` keys); ``cut`` returns ``amount`` bytes of an
        answer, or stores them; ``flip`` turns bit ``amount`` of an answer, or of what is stored; ``lie``
        reports success and does nothing.
    :ivar error: makes the error raised.
    :ivar times: how often it strikes; None for always.
    :ivar skip: how many matching calls pass first.
    :ivar match: the keys to which it applies.
    :ivar rate: the probability with which it strikes a matching call.
    :ivar struck: how often it has struck.
    """

    operation: Operation
    kind: Literal["before", "after", "cut", "flip", "lie"] = "before"
    error: Callable[[], ChunkStoreError] = lambda: Unavailable("scripted fault")
    times: int | None = 1
    skip: int = 0
    match: KeyMatch = _every_key
    amount: int = 0
    rate: float = 1.0
    struck: int = field(default=0, compare=False)


class FaultyStore(Layer):
    """Passes calls to its inner store, except for scripted faults.

    :param seed: of the random numbers behind ``rate``.
    """

    def __init__(self, inner: ChunkStore, seed: int = 0) -> None:
        super().__init__(inner)
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._random = random.Random(seed)
        #: Every call: (operation, key, prefix or first key).
        self.calls: list[tuple[str, str]] = []

    def script(self, *faults: Fault) -> None:
        """Add faults; the first that matches a call strikes."""
        with self._lock:
            self._faults.extend(faults)

    def fail(
        self,
        operation: Operation,
        error: Callable[[], ChunkStoreError] = lambda: Unavailable("scripted fault"),
        *,
        times: int | None = 1,
        skip: int = 0,
        match: KeyMatch = _every_key,
        rate: float = 1.0,
    ) -> Fault:
        """Script the most common fault: raise instead of acting.  Returns it, for its ``struck``."""
        fault = Fault(operation, "before", error, times=times, skip=skip, match=match, rate=rate)
        self.script(fault)
        return fault

    def heal(self) -> None:
        """Forget all faults."""
        with self._lock:
            self._faults.clear()

    def count(self, operation: str) -> int:
        """Return the number of calls of one kind, failed ones included."""
        with self._lock:
            return sum(1 for called, _ in self.calls if called == operation)

    def _strike(self, operation: str, keys: Sequence[str]) -> Fault | None:
        with self._lock:
            self.calls.append((operation, keys[0] if keys else ""))
            for fault in self._faults:
                if fault.operation not in (operation, "any") or fault.times == 0:
                    continue
                if not any(fault.match(key) for key in keys):
                    continue
                if fault.rate < 1 and self._random.random() >= fault.rate:
                    continue
                if fault.skip:
                    fault.skip -= 1
                    continue
                if fault.times is not None:
                    fault.times -= 1
                fault.struck += 1
                return fault
        return None

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put, or the scripted fault."""
        fault = self._strike("put", [key])
        if fault is None:
            self.inner.put(container, key, body, if_absent=if_absent)
            return
        if fault.kind == "before":
            raise fault.error()
        if fault.kind == "lie":
            return
        if fault.kind in ("cut", "flip"):
            body = Body.from_bytes(_damaged(body.to_bytes(), fault))
        self.inner.put(container, key, body, if_absent=if_absent)
        if fault.kind == "after":
            raise fault.error()

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get, or the scripted fault."""
        fault = self._strike("get", [key])
        if fault is not None and fault.kind == "before":
            raise fault.error()
        if fault is not None and fault.kind == "lie":
            raise NotFound("no such object", store=self.name, container=container, key=key)
        data = self.inner.get(container, key, offset, length)
        if fault is None:
            return data
        if fault.kind == "after":
            raise fault.error()
        return _damaged(data, fault)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List, or the scripted fault; a lie is an empty listing, a cut one ends early."""
        fault = self._strike("list", [prefix])
        if fault is not None and fault.kind == "before":
            raise fault.error()
        if fault is not None and fault.kind == "lie":
            return
        for number, info in enumerate(self.inner.list(container, prefix, start_after)):
            if fault is not None and fault.kind in ("after", "cut") and number == fault.amount:
                if fault.kind == "cut":
                    return
                raise fault.error()
            yield info

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete, or the scripted fault; ``after`` names the keys past ``amount`` in DeleteFailed."""
        fault = self._strike("delete", keys)
        if fault is None:
            self.inner.delete(container, keys)
            return
        if fault.kind == "before":
            raise fault.error()
        if fault.kind == "lie":
            return
        self.inner.delete(container, keys[: fault.amount])
        left = keys[fault.amount :]
        if left:
            raise DeleteFailed({key: fault.error() for key in left}, store=self.name, container=container)

    def ensure_container(self, container: str) -> None:
        """Make the container, or the scripted fault."""
        fault = self._strike("ensure_container", [container])
        if fault is not None and fault.kind == "before":
            raise fault.error()
        if fault is not None and fault.kind == "lie":
            return
        self.inner.ensure_container(container)
        if fault is not None:
            raise fault.error()


def _damaged(data: bytes, fault: Fault) -> bytes:
    if fault.kind == "cut":
        return data[: fault.amount]
    changed = bytearray(data)
    if changed:
        byte, bit = divmod(fault.amount % (len(changed) * 8), 8)
        changed[byte] ^= 1 << bit
    return bytes(changed)


class SlowStore(Layer):
    """Waits before every call, and for every byte.

    :param latency: seconds before each call.
    :param bytes_per_second: speed of bodies and answers; 0 for as fast as the inner store.
    :param gate: called in each call after the pause, e.g. a barrier's ``wait``.
    """

    def __init__(
        self,
        inner: ChunkStore,
        latency: float = 0.0,
        bytes_per_second: float = 0.0,
        gate: Callable[[], object] | None = None,
    ) -> None:
        super().__init__(inner)
        self.latency = latency
        self.bytes_per_second = bytes_per_second
        self.gate = gate
        self._lock = threading.Lock()
        self._running = 0
        #: The largest number of calls that ran at once.
        self.most_at_once = 0

    def _slow(self, size: int = 0) -> None:
        with self._lock:
            self._running += 1
            self.most_at_once = max(self.most_at_once, self._running)
        try:
            pause = self.latency + (size / self.bytes_per_second if self.bytes_per_second else 0)
            if pause:
                time.sleep(pause)
            if self.gate is not None:
                self.gate()
        finally:
            with self._lock:
                self._running -= 1

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put, slowly."""
        self._slow(body.length)
        self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get, slowly."""
        self._slow(length or 0)
        return self.inner.get(container, key, offset, length)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List; slow once per 1000 entries, like a server's pages."""
        for number, info in enumerate(self.inner.list(container, prefix, start_after)):
            if number % 1000 == 0:
                self._slow()
            yield info

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete; slow once per request, by the store's bulk size."""
        size = max(1, self.capabilities.bulk_delete)
        for start in range(0, len(keys), size):
            self._slow()
            self.inner.delete(container, keys[start : start + size])

    def ensure_container(self, container: str) -> None:
        """Make the container, slowly."""
        self._slow()
        self.inner.ensure_container(container)


class LaggingStore(Layer):
    """Lists the objects as they were before the last ``lag`` puts and deletes.

    Only listings lag.  After :meth:`catch_up` they show everything.

    :param lag: how many changes listings are behind; None means all since the last :meth:`catch_up`.
    """

    def __init__(self, inner: ChunkStore, lag: int | None = None) -> None:
        super().__init__(inner)
        self._lag = lag
        self._lock = threading.Lock()
        # (container, key, what the listing shows while this change is hidden: an entry or None)
        self._hidden: list[tuple[str, str, ObjectInfo | None]] = []

    @property
    def capabilities(self) -> Capabilities:
        """The inner store's, with the lag declared."""
        inner = self.inner.capabilities
        return Capabilities(
            if_absent=inner.if_absent,
            bulk_delete=inner.bulk_delete,
            listing_lag=True,
            sorted_listing=inner.sorted_listing,
            join_gap=inner.join_gap,
        )

    def catch_up(self) -> None:
        """Let listings show the present objects."""
        with self._lock:
            self._hidden.clear()

    def _before(self, container: str, key: str) -> ObjectInfo | None:
        try:
            return ObjectInfo(key, len(self.inner.get(container, key)))
        except NotFound:
            return None

    def _hide(self, container: str, key: str, before: ObjectInfo | None) -> None:
        self._hidden.append((container, key, before))
        if self._lag is not None:
            del self._hidden[: max(0, len(self._hidden) - self._lag)]

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put; listings see it later."""
        with self._lock:
            before = self._before(container, key)
            self.inner.put(container, key, body, if_absent=if_absent)
            self._hide(container, key, before)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List the earlier objects."""
        with self._lock:
            shown = {info.key: info for info in self.inner.list(container, prefix, start_after)}
            # Backwards, so that the oldest hidden change decides.
            for place, key, before in reversed(self._hidden):
                if place != container or not key.startswith(prefix) or key <= start_after:
                    continue
                if before is None:
                    shown.pop(key, None)
                else:
                    shown[key] = before
        yield from (shown[key] for key in sorted(shown))

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete; listings show the keys for a while."""
        with self._lock:
            before = [(key, self._before(container, key)) for key in keys]
            self.inner.delete(container, keys)
            for key, info in before:
                self._hide(container, key, info)


class DiscardingStore(Layer):
    """Counts all puts and keeps only chosen objects; for sizes that fit on no disk.

    Bodies are still read and verified.

    :param keep: returns whether a key is really stored.
    """

    def __init__(self, inner: ChunkStore, keep: KeyMatch) -> None:
        super().__init__(inner)
        self._keep = keep
        self._lock = threading.Lock()
        #: How many objects and bytes were put, kept ones included.
        self.objects = 0
        self.bytes = 0

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put, or only count."""
        if self._keep(key):
            self.inner.put(container, key, body, if_absent=if_absent)
        else:
            problem = body.problem()
            if problem:
                raise IntegrityError(problem, store=self.name, container=container, key=key)
        with self._lock:
            self.objects += 1
            self.bytes += body.length


class RecordingStore(Layer):
    """Counts requests and bytes, in total and per key."""

    def __init__(self, inner: ChunkStore) -> None:
        super().__init__(inner)
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Set all counts to zero."""
        with self._lock:
            #: Requests by operation.
            self.requests: Counter[str] = Counter()
            #: Requests by (operation, key); a delete counts for each of its keys.
            self.by_key: Counter[tuple[str, str]] = Counter()
            #: Bytes by (operation, key).
            self.bytes_by_key: Counter[tuple[str, str]] = Counter()

    def _count(self, operation: str, keys: Sequence[str], size: int = 0) -> None:
        with self._lock:
            self.requests[operation] += 1
            for key in keys:
                self.by_key[operation, key] += 1
                self.bytes_by_key[operation, key] += size

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Put and count."""
        self._count("put", [key], body.length)
        self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Get and count."""
        self._count("get", [key])
        data = self.inner.get(container, key, offset, length)
        with self._lock:
            self.bytes_by_key["get", key] += len(data)
        return data

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List and count once, under the prefix."""
        self._count("list", [prefix])
        yield from self.inner.list(container, prefix, start_after)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete and count the requests, by the store's bulk size."""
        self._count("delete", keys)
        extra = -(-len(keys) // max(1, self.capabilities.bulk_delete)) - 1
        if extra > 0:
            with self._lock:
                self.requests["delete"] += extra
        self.inner.delete(container, keys)

    def ensure_container(self, container: str) -> None:
        """Make the container and count."""
        self._count("ensure_container", [container])
        self.inner.ensure_container(container)
