"""The operator's check: right stores pass, each kind of broken store is found out, nothing is left."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from backupfw.chunkstore.base import Body, Capabilities, ChunkStore
from backupfw.chunkstore.errors import NotFound, PermissionDenied
from backupfw.chunkstore.layers.retry import RetryLayer, RetryPolicy
from backupfw.chunkstore.memory import MemoryStore
from backupfw.testing import operator
from backupfw.testing.faults import Fault, FaultyStore, LaggingStore


def verdicts(store: ChunkStore) -> dict[str, bool]:
    result: dict[str, bool] = {}
    for verdict in operator.check(store):
        result[verdict.guarantee] = result.get(verdict.guarantee, True) and verdict.ok
        assert verdict.ok or verdict.detail
        assert verdict.guarantee in verdict.line
    return result


def failed(store: ChunkStore) -> set[str]:
    return {guarantee for guarantee, ok in verdicts(store).items() if not ok}


def test_a_good_store_passes_and_is_left_as_it_was() -> None:
    memory = MemoryStore("memory")
    memory.ensure_container("volumebackups")
    memory.put("volumebackups", "somebody/elses", Body.from_bytes(b"x"))
    found = verdicts(memory)
    assert all(found.values())
    assert {f"G{number}" for number in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14)} <= set(found)
    assert memory.contents == {"volumebackups": {"somebody/elses": b"x"}}


def test_it_needs_no_pytest() -> None:
    # An operator's installation has none.
    code = "import sys; sys.modules['pytest'] = None; import backupfw.testing.operator"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_lagging_listing_is_no_fault_where_it_is_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = MemoryStore("memory")

    class Lagging(LaggingStore):
        looks = 0

        def list(self, container, prefix="", start_after=""):
            self.looks += 1
            if self.looks % 2:
                self.catch_up()
            return super().list(container, prefix, start_after)

    monkeypatch.setattr(operator.time, "sleep", lambda _: None)
    assert failed(Lagging(memory)) == set()
    assert memory.contents == {"volumebackups": {}}


class Broken(FaultyStore):
    """A store with one fault in its behaviour, by name."""

    def __init__(self, fault: str) -> None:
        super().__init__(MemoryStore("memory"))
        self.fault = fault

    def put(self, container, key, body, *, if_absent=False):
        if self.fault == "believes bodies":
            body = Body.from_bytes(body.to_bytes())
        if self.fault == "ignores if_absent":
            if_absent = False
        if self.fault == "folds case":
            key = key.lower()
        self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container, key, offset=None, length=None):
        if self.fault == "folds case":
            key = key.lower()
        if self.fault == "short ranges" and offset is not None:
            return self.inner.get(container, key)[offset : offset + length]
        try:
            data = self.inner.get(container, key, offset, length)
        except NotFound:
            if self.fault == "none for missing":
                return b""
            raise
        if self.fault == "flips bits" and len(data) > 1000:
            return data[:-1] + bytes([data[-1] ^ 1])
        return data

    def list(self, container, prefix="", start_after=""):
        if self.fault == "folders":
            prefix = prefix if prefix.endswith("/") or not prefix else prefix + "/"
        for number, info in enumerate(self.inner.list(container, prefix, start_after)):
            if self.fault == "first page" and number == 1000:
                return
            yield info

    def delete(self, container, keys):
        if self.fault == "first batch":
            keys = keys[:100]
        if self.fault == "missing deletes":
            for key in keys:
                self.inner.get(container, key)
        self.inner.delete(container, keys)


@pytest.mark.parametrize(
    ("fault", "guarantee"),
    [
        ("flips bits", "G1"),
        ("none for missing", "G2"),
        ("missing deletes", "G3"),
        ("believes bodies", "G4"),
        ("believes bodies", "G5"),
        ("ignores if_absent", "G7"),
        ("short ranges", "G9"),
        ("first page", "G10"),
        ("folders", "G10"),
        ("first batch", "G11"),
        ("folds case", "G12"),
    ],
)
def test_each_fault_is_found(fault: str, guarantee: str) -> None:
    assert guarantee in failed(Broken(fault))


def test_an_undeclared_conditional_put_is_found() -> None:
    class Undeclared(FaultyStore):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(if_absent=False)

    assert failed(Undeclared(MemoryStore("memory"))) == {"G7"}


def test_a_store_that_is_down_is_reported_at_once() -> None:
    faulty = FaultyStore(MemoryStore("memory"))
    faulty.script(Fault("any", times=None))
    found = verdicts(RetryLayer(faulty, RetryPolicy(base=0)))
    assert found["G14"] is False
    assert "G1" not in found


@pytest.mark.parametrize("operation", ["put", "get", "list", "delete"])
def test_a_missing_permission_is_a_verdict(operation: str) -> None:
    faulty = FaultyStore(MemoryStore("memory"))
    faulty.fail(operation, lambda: PermissionDenied("refused"), times=None)
    assert failed(faulty)


def test_stopping_early_cleans_up() -> None:
    memory = MemoryStore("memory")
    looks = operator.check(memory)
    for verdict in looks:
        if verdict.guarantee == "G4":
            break
    assert memory.contents["volumebackups"]
    looks.close()
    assert memory.contents == {"volumebackups": {}}


def test_a_failing_look_still_cleans_up() -> None:
    memory = MemoryStore("memory")
    faulty = FaultyStore(memory)
    faulty.fail("get", times=None, match=_large_ones())
    failed(faulty)
    assert memory.contents == {"volumebackups": {}}


def _large_ones() -> Callable[[str], bool]:
    return lambda key: "size-" in key
