"""Random histories against the memory store as the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from backupfw.chunkstore.base import Body, ChunkStore
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw.chunkstore.memory import MemoryStore
from backupfw.testing.suite.adoption import Adoption, pattern
from backupfw.testing.suite.objects import BAD_BODIES

PARTS = st.sampled_from(["a", "b", "ab", "a!", "a.o", "a.d", "0", "\u00e9", "..a", "%2F", "l" * 251])
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)
PREFIXES = st.one_of(st.just(""), KEYS, KEYS.map(lambda key: key + "/"), KEYS.map(lambda key: key[:-1]))
SIZES = st.sampled_from([0, 1, 2, 1000, 70_000])


def outcome(action: Any, *arguments: Any) -> Any:
    """Return the result of an action, or the class of the ChunkStoreError that it raises."""
    try:
        return action(*arguments)
    except ChunkStoreError as error:
        return type(error)


def in_folder(folder: str, key: str) -> bool:
    """Return whether a key is in the folder with the name of another key."""
    return key.startswith(f"{folder}/")


class ModelTests(Adoption):
    """Tests of histories."""

    def test_model_random_histories(self, server: Any, store: ChunkStore) -> None:
        suite = self
        keys = KEYS.filter(lambda key: self.can_hold(store, key))

        class Machine(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.container = suite.new_container_name()
                self.model = MemoryStore("model")
                for each in (self.model, store):
                    each.ensure_container(self.container)

            def both(self, method: str, *arguments: Any) -> None:
                expected = outcome(getattr(self.model, method), self.container, *arguments)
                assert outcome(getattr(store, method), self.container, *arguments) == expected

            @rule(key=keys, size=SIZES, seed=st.integers(0, 200))
            def put(self, key: str, size: int, seed: int) -> None:
                held = self.model.contents[self.container]
                if suite.has_folders and any(in_folder(*sorted((key, other))) for other in held):
                    return
                self.both("put", key, Body.from_bytes(pattern(size, seed)))

            @rule(key=keys, bad=st.sampled_from(BAD_BODIES[:3]))
            def put_bad(self, key: str, bad: Any) -> None:
                self.both("put", key, bad(pattern(100)))

            @rule(key=keys)
            def get(self, key: str) -> None:
                self.both("get", key)

            @rule(key=keys, offset=st.sampled_from([0, 1, 999, 65_536]), length=st.sampled_from([1, 2, 1000]))
            def get_range(self, key: str, offset: int, length: int) -> None:
                self.both("get", key, offset, length)

            @rule(keys=st.lists(keys, max_size=4, unique=True))
            def delete(self, keys: Sequence[str]) -> None:
                self.both("delete", keys)

            @rule(prefix=PREFIXES)
            def list_prefix(self, prefix: str) -> None:
                expected = list(self.model.list(self.container, prefix))
                found = suite.eventually(
                    store,
                    lambda: sorted(store.list(self.container, prefix), key=lambda info: info.key),
                    expected,
                )
                assert found == expected

            @rule(prefix=PREFIXES, start=keys)
            def list_after(self, prefix: str, start: str) -> None:
                if not store.capabilities.sorted_listing:
                    return
                expected = list(self.model.list(self.container, prefix, start))
                found = suite.eventually(
                    store, lambda: list(store.list(self.container, prefix, start)), expected
                )
                assert found == expected

            @invariant()
            def server_has_what_the_model_has(self) -> None:
                assert suite.raw_keys(server, self.container) == set(self.model.contents[self.container])

            def teardown(self) -> None:
                for key, data in self.model.contents[self.container].items():
                    assert suite.raw_get(server, self.container, key) == data
                store.delete(self.container, list(self.model.contents[self.container]))
                suite.remove_container(server, self.container)

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=self.model_examples,
                stateful_step_count=25,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
