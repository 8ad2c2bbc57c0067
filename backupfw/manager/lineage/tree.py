"""Which manifests can share objects: the rule on a small forest in memory, without a database.

A manifest names its own objects and those it took over from its base.  If two live manifests name one object,
every manifest on the path between them in the lineage tree named it too.  So when one is released, only its
*relatives* must be read (:meth:`Tree.relatives`): the first live manifest on each path that starts there, up
and down, through released and gone manifests.  The nearest live ancestor and the nearest live descendants
alone would be wrong: two children of a deleted base share its packs.

A gone manifest is kept in the tree as long as it is a fork; with at most two neighbours it is dropped
and they are joined (:meth:`Tree.contract`), so the tree has fewer gone ones than live ones.

A *detached* manifest came by an import, so its lineage is not known: it may be a neighbour of every
manifest of its volume, and is treated so, whether it is live or gone.  As long as the volume has
another manifest, one gone detached manifest is kept.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from backupfw.manager.lineage.lifecycle import GONE, LIVE, WRITING

#: States in which a manifest needs its objects: a search for relatives ends there.
HOLDING = frozenset({WRITING, LIVE})


@dataclass(frozen=True, slots=True)
class Node:
    """One manifest in the tree.

    :ivar id: the manifest's id.
    :ivar base_id: the neighbour it points to, or None.
    :ivar state: ``writing``, ``live``, ``released`` or ``gone``.
    :ivar detached: whether its true neighbours are unknown.
    """

    id: str
    base_id: str | None
    state: str
    detached: bool = False


class Tree:
    """The lineage forest of one volume in one container.  Not thread-safe.

    :param nodes: all manifests in the tree, in any order; a base outside of them counts as none.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._nodes = {node.id: node for node in nodes}
        self._base: dict[str, str | None] = {}
        self._children: defaultdict[str, set[str]] = defaultdict(set)
        self._detached = {node.id for node in self._nodes.values() if node.detached}
        for node in self._nodes.values():
            base = node.base_id if node.base_id in self._nodes else None
            self._base[node.id] = base
            if base is not None:
                self._children[base].add(node.id)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._base

    def _joined(self, node_id: str) -> list[str]:
        """Return the neighbours along edges, sorted for repeatable results."""
        near = sorted(self._children[node_id])
        base = self._base[node_id]
        return near if base is None else [base, *near]

    def _possible(self, node_id: str) -> Iterator[str]:
        """Yield the neighbours that exist only because a lineage is unknown.

        A writing manifest is none of them: its base is known and live, and names all objects that it took
        over.
        """
        others = self._base if node_id in self._detached else self._detached
        for other in sorted(others):
            if self._nodes[other].state != WRITING:
                yield other

    def relatives(self, start: str) -> list[str]:
        """Find the manifests in the database that may share objects with ``start``.

        :return: the ids of the first writing or live manifests on every path from ``start``.
        """
        seen, todo, found = {start}, [start], []
        known = True
        while todo:
            here = todo.pop()
            around = self._joined(here)
            # A detached manifest may be a neighbour of every other one: after the first of them, all
            # neighbours that are only possible have been seen.
            if known:
                around.extend(self._possible(here))
                known = here not in self._detached
            for near in around:
                if near in seen:
                    continue
                seen.add(near)
                if self._nodes[near].state in HOLDING:
                    found.append(near)
                else:
                    todo.append(near)
        return found

    def mark_gone(self, node_id: str) -> None:
        """Record that the objects of ``node_id`` are deleted."""
        self._nodes[node_id] = replace(self._nodes[node_id], state=GONE)

    def contract(self) -> dict[str, tuple[str | None, bool]]:
        """Drop gone manifests that are no fork, until none is left.

        :return: what changed: id to (new base, still in the tree).
        """
        changed: set[str] = set()
        dropped: set[str] = set()
        gone = sorted(node_id for node_id in self._base if self._nodes[node_id].state == GONE)
        # A gone detached manifest counts as a neighbour of every other one.  So one of them joins all
        # manifests of the volume, and no gone fork has to stay beside it.
        joint = next((node_id for node_id in gone if node_id in self._detached), None)
        todo = [node_id for node_id in gone if node_id != joint]
        while todo:
            here = todo.pop()
            if here in dropped:
                continue
            near = self._joined(here)
            if len(near) > 2 and joint is None:
                continue
            changed |= self._drop(here, near)
            dropped.add(here)
            # The removal of a manifest with one neighbour takes a neighbour from that one, which may be no
            # fork any more.  With two neighbours, these are joined and keep their numbers.
            if len(near) == 1 and near[0] != joint and self._nodes[near[0]].state == GONE:
                todo.append(near[0])
        if joint is not None and len(self._base) == 1:
            self._drop(joint, [])
            dropped.add(joint)
        return {
            node_id: (self._base.get(node_id), node_id in self._base) for node_id in sorted(changed | dropped)
        }

    def _drop(self, here: str, near: list[str]) -> set[str]:
        """Remove ``here`` and join its two neighbours, if it has two; return the ids whose base changed."""
        base = self._base.pop(here)
        children = self._children.pop(here, set())
        self._detached.discard(here)
        if base is not None:
            self._children[base].discard(here)
        changed = set(children)
        for child in children:
            self._base[child] = None
        if len(near) == 2:
            # A base and a child: the base becomes the base of the child.  Two children: the first becomes the
            # base of the second.
            upper, lower = near
            self._base[lower] = upper
            self._children[upper].add(lower)
        return changed
