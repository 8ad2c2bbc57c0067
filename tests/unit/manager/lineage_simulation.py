"""Random histories of backups and deletes, played against any implementation of the lineage rule.

Objects are numbers.  A backup names its own and some of its base's.  A release asks its relatives,
then deletes in steps that interleave with everything else, may be killed and begin again, and is
gone at last.  The store must never lack what a live manifest names, and holds nothing else as soon
as no release is under way.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class Lineage(Protocol):
    """What the simulation plays against."""

    def add(self, manifest: int, base: int | None, detached: bool) -> None: ...

    def release(self, manifest: int) -> None: ...

    def relatives(self, manifest: int) -> Sequence[int]: ...

    def gone(self, manifest: int) -> None: ...

    def forget(self, manifests: Sequence[int]) -> None: ...

    def in_tree(self) -> int: ...


@dataclass
class Release:
    """One release under way: nothing asked yet, these relatives still to read, or these objects to delete."""

    manifest: int
    unread: list[int] | None = None
    keep: set[int] = field(default_factory=set)
    todo: list[int] | None = None


@dataclass
class World:
    lineage: Lineage
    random: random.Random
    disasters: bool = False
    refs: dict[int, set[int]] = field(default_factory=dict)  # manifests that are in the store
    live: set[int] = field(default_factory=set)
    pending: list[Release] = field(default_factory=list)
    store: set[int] = field(default_factory=set)
    next_object: int = 0
    next_manifest: int = 0
    most_relatives: int = 0
    waits: int = 0

    def play(self, steps: int) -> None:
        """Take that many random steps, checking after each."""
        for _ in range(steps):
            roll = self.random.random()
            if not self.live or roll < 0.45:
                self.backup()
            elif roll < 0.7:
                self.release()
            elif self.disasters and roll < 0.72 and not self.pending:
                self.lose_database()
            elif self.pending:
                self.go_on(self.random.choice(self.pending))
            self.check()
        while self.pending:
            self.go_on(self.random.choice(self.pending))
            self.check()

    def backup(self) -> None:
        base = None
        if self.live and self.random.random() < 0.9:
            base = self.random.choice(sorted(self.live))
        own = set(range(self.next_object, self.next_object + self.random.randint(0, 4)))
        self.next_object += len(own)
        taken = (
            {one for one in self.refs.get(base, ()) if self.random.random() < 0.8}
            if base is not None
            else set()
        )
        manifest, self.next_manifest = self.next_manifest, self.next_manifest + 1
        self.refs[manifest] = own | taken
        self.store |= own
        self.live.add(manifest)
        self.lineage.add(manifest, base, False)

    def release(self) -> None:
        manifest = self.random.choice(sorted(self.live))
        self.live.discard(manifest)
        self.lineage.release(manifest)
        self.pending.append(Release(manifest))

    def go_on(self, release: Release) -> None:
        mine = self.refs[release.manifest]
        if self.random.random() < 0.05:
            release.unread = release.todo = None  # killed; begins again
        if release.unread is None:
            release.unread = list(self.lineage.relatives(release.manifest))
            release.keep = set()
            self.most_relatives = max(self.most_relatives, len(release.unread))
        elif release.unread:
            relative = release.unread.pop()
            if relative in self.refs:
                release.keep |= self.refs[relative]
            else:
                release.unread = None  # it went meanwhile: asked anew
                self.waits += 1
        elif release.todo is None:
            release.todo = sorted(mine - release.keep)
        elif release.todo:
            self.random.shuffle(release.todo)
            self.store.discard(release.todo.pop())
        else:
            del self.refs[release.manifest]
            self.pending.remove(release)
            self.lineage.gone(release.manifest)

    def lose_database(self) -> None:
        """Some or all live manifests are forgotten and entered again by import, without a lineage."""
        lost = [one for one in sorted(self.live) if self.random.random() < 0.6]
        self.lineage.forget(lost)
        for manifest in lost:
            self.lineage.add(manifest, None, True)

    def check(self) -> None:
        need = set().union(*(self.refs[one] for one in self.live))
        assert need <= self.store, ("lost", need - self.store)
        named = need.union(*(self.refs[release.manifest] for release in self.pending))
        assert self.store <= named, ("left over", self.store - named)
        if not self.pending and not self.disasters:
            # Every gone one that is kept is a fork, and a forest has fewer forks than ends.
            assert self.lineage.in_tree() <= max(2 * len(self.live) - 1, 0)
