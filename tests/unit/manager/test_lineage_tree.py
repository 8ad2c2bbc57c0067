"""The lineage rule on the tree in memory, by example and by thousands of random histories."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from backupfw.manager.lineage.lifecycle import GONE, LIVE, RELEASED, WRITING
from backupfw.manager.lineage.tree import Node, Tree
from tests.unit.manager.lineage_simulation import World


def tree(*nodes: tuple[str, str | None, str] | tuple[str, str | None, str, bool]) -> Tree:
    return Tree(Node(*node) for node in nodes)


def test_relatives_of_a_link_are_its_two_live_neighbours() -> None:
    chain = tree(
        ("a", None, LIVE), ("b", "a", LIVE), ("x", "b", RELEASED), ("c", "x", LIVE), ("d", "c", LIVE)
    )
    assert sorted(chain.relatives("x")) == ["b", "c"]


def test_two_children_of_a_gone_base_are_relatives() -> None:
    # The classic mistake: looking for live ancestors and live descendants only.
    fork = tree(("g", None, GONE), ("x", "g", RELEASED), ("y", "g", LIVE), ("z", "g", LIVE))
    assert sorted(fork.relatives("x")) == ["y", "z"]


def test_released_ones_are_walked_through_like_gone_ones() -> None:
    # b is released too, but not deleted yet: c may share with x what b named.
    chain = tree(("x", None, RELEASED), ("b", "x", RELEASED), ("c", "b", LIVE))
    assert chain.relatives("x") == ["c"]


def test_a_writing_manifest_ends_the_search_and_is_named() -> None:
    chain = tree(("x", None, RELEASED), ("w", "x", WRITING))
    assert chain.relatives("x") == ["w"]


def test_a_detached_one_asks_every_live_manifest_of_the_volume_and_the_store() -> None:
    nodes = tree(("d", None, RELEASED, True), ("a", None, LIVE), ("b", "a", LIVE), ("w", "a", WRITING))
    assert nodes.relatives("d") == ["a", "b"]


def test_a_live_detached_one_is_a_relative_of_all() -> None:
    nodes = tree(("x", None, RELEASED), ("d", None, LIVE, True), ("a", None, LIVE))
    assert nodes.relatives("x") == ["d"]


def test_a_gone_detached_one_joins_everything_in_the_volume() -> None:
    # c was made from d, whose unknown base may have been a: a and c may share.
    nodes = tree(("x", None, RELEASED), ("d", None, GONE, True), ("c", "d", LIVE))
    assert nodes.relatives("x") == ["c"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("g", None, GONE)], {"g": (None, False)}),
        ([("a", None, LIVE), ("g", "a", GONE)], {"g": (None, False)}),
        ([("g", None, GONE), ("a", "g", LIVE)], {"a": (None, True), "g": (None, False)}),
        ([("a", None, LIVE), ("g", "a", GONE), ("b", "g", LIVE)], {"b": ("a", True), "g": (None, False)}),
        (
            [("g", None, GONE), ("a", "g", LIVE), ("b", "g", LIVE)],
            {"a": (None, True), "b": ("a", True), "g": (None, False)},
        ),
        ([("g", None, GONE), ("a", "g", LIVE), ("b", "g", LIVE), ("c", "g", LIVE)], {}),
        ([("a", None, LIVE), ("r", "a", RELEASED), ("b", "r", LIVE)], {}),
    ],
    ids=["alone", "leaf", "root of one", "link", "root of two", "fork", "released only"],
)
def test_a_contraction_keeps_only_forks(
    before: list[tuple[str, str | None, str]], after: dict[str, tuple[str | None, bool]]
) -> None:
    assert tree(*before).contract() == after


def test_contraction_goes_on_until_nothing_changes() -> None:
    # The gone leaf goes, then its base is a fork no more, then that one's base is an end.
    nodes = tree(
        ("r", None, GONE),
        ("f", "r", GONE),
        ("leaf", "f", GONE),
        ("a", "f", LIVE),
        ("b", "f", GONE),
        ("c", "b", LIVE),
    )
    changes = nodes.contract()
    assert {one for one, (_, stays) in changes.items() if not stays} == {"r", "f", "leaf", "b"}
    # Only a and c are left, and they are neighbours.
    assert [base for _, (base, stays) in changes.items() if stays and base is not None] in (["a"], ["c"])


def test_a_fork_goes_when_a_later_look_took_one_of_its_three_neighbours() -> None:
    # Gone ones are looked at from the last id to the first: z before g.
    nodes = tree(("z", None, GONE), ("a", "z", LIVE), ("b", "z", LIVE), ("g", "z", GONE))
    assert nodes.contract() == {"a": (None, True), "b": ("a", True), "g": (None, False), "z": (None, False)}


def test_one_gone_detached_one_stays_while_the_volume_has_another() -> None:
    assert tree(("d", None, GONE, True), ("a", None, LIVE)).contract() == {}
    both = tree(("d", None, GONE, True), ("a", None, GONE)).contract()
    assert both == {"a": (None, False), "d": (None, False)}
    two = tree(
        ("d", None, GONE, True), ("e", None, GONE, True), ("a", "e", LIVE), ("b", "e", LIVE), ("c", "e", LIVE)
    )
    assert {one for one, (_, stays) in two.contract().items() if not stays} == {"e"}
    # No fork is needed beside it: all are its neighbours.
    assert two.relatives("d") == ["a", "b", "c"]


class InMemory:
    """The rule, with the tree kept as a table would keep it."""

    def __init__(self) -> None:
        self.nodes: dict[int, Node] = {}

    def add(self, manifest: int, base: int | None, detached: bool) -> None:
        self.nodes[manifest] = Node(str(manifest), None if base is None else str(base), LIVE, detached)

    def _move(self, manifest: int, state: str) -> None:
        self.nodes[manifest] = replace(self.nodes[manifest], state=state)

    def release(self, manifest: int) -> None:
        self._move(manifest, RELEASED)

    def relatives(self, manifest: int) -> Sequence[int]:
        return [int(one) for one in Tree(self.nodes.values()).relatives(str(manifest))]

    def gone(self, manifest: int) -> None:
        self._move(manifest, GONE)
        for changed, (base, stays) in Tree(self.nodes.values()).contract().items():
            if stays:
                self.nodes[int(changed)] = replace(self.nodes[int(changed)], base_id=base)
            else:
                del self.nodes[int(changed)]

    def forget(self, manifests: Sequence[int]) -> None:
        for manifest in manifests:
            del self.nodes[manifest]

    def in_tree(self) -> int:
        return len(self.nodes)


@pytest.mark.parametrize(
    "chunk", [0, 1, 2, *(pytest.param(chunk, marks=pytest.mark.soak) for chunk in range(3, 30))]
)
def test_random_histories_lose_nothing_and_leave_nothing(chunk: int) -> None:
    waits = most = 0
    for seed in range(chunk * 200, chunk * 200 + 200):
        world = World(InMemory(), random.Random(seed))
        world.play(100)
        waits, most = waits + world.waits, max(most, world.most_relatives)
    # The histories are worth something: there were forks, and relatives that went away meanwhile.
    assert most >= 4
    assert waits > 0


@pytest.mark.parametrize(
    "seeds", [range(120), pytest.param(range(120, 2000), marks=pytest.mark.soak)], ids=["some", "many"]
)
def test_random_histories_with_lost_databases(seeds: range) -> None:
    for seed in seeds:
        World(InMemory(), random.Random(seed), disasters=True).play(80)


class NearestOnly(InMemory):
    """The wrong rule: live ancestors and descendants only, not what lies across a gone base."""

    def relatives(self, manifest: int) -> Sequence[int]:
        found: list[int] = []
        base = self.nodes[manifest].base_id
        while base is not None and int(base) in self.nodes:
            if self.nodes[int(base)].state == LIVE:
                found.append(int(base))
                break
            base = self.nodes[int(base)].base_id
        todo = [str(manifest)]
        while todo:
            here = todo.pop()
            for node in self.nodes.values():
                if node.base_id == here:
                    if node.state == LIVE:
                        found.append(int(node.id))
                    else:
                        todo.append(node.id)
        return found


def test_the_simulation_catches_the_wrong_rule() -> None:
    def survives(seed: int) -> bool:
        try:
            World(NearestOnly(), random.Random(seed)).play(100)
        except AssertionError:
            return False
        return True

    assert not all(survives(seed) for seed in range(20))


def test_gone_links_are_joined_each_by_itself() -> None:
    chain = tree(("a", None, LIVE), ("x", "a", GONE), ("b", "x", LIVE), ("y", "b", GONE), ("c", "y", LIVE))
    assert chain.contract() == {
        "b": ("a", True), "c": ("b", True), "x": (None, False), "y": (None, False)
    }  # fmt: skip
    assert chain.contract() == {}


def test_a_dropped_detached_one_is_no_neighbour_any_more() -> None:
    nodes = tree(("d", None, GONE, True), ("e", None, GONE, True), ("a", None, LIVE), ("x", None, RELEASED))
    assert nodes.contract() == {"e": (None, False)}
    assert nodes.relatives("x") == ["a"]


def test_a_base_that_is_in_no_tree_counts_as_none() -> None:
    nodes = tree(("x", "elsewhere", RELEASED), ("y", "x", LIVE))
    assert nodes.relatives("x") == ["y"]
