"""Random histories of a volume, with points at any moment."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from backupfw.testing.volume.adoption import Adoption, Subject, new_id
from backupfw.testing.volume.checking import check_compared, check_point
from backupfw.testing.volume.disk import Disk
from backupfw.volume.base import VolumeProvider

#: Places and lengths as shares of what there is, with what lies at edges drawn often.
_EDGES = st.tuples(st.integers(0, 12), st.sampled_from([0, 0, 1, -1, 511, 512, 513]))
_BYTES = st.integers(0, 255)


@dataclass(frozen=True)
class Kept:
    """A point that was closed, and which the storage may keep."""

    id: str
    identity: str
    token: str | None
    disk: Disk


class ModelTests(Adoption):
    """Tests of histories."""

    def test_model_random_histories(self, server: Any, provider: VolumeProvider) -> None:
        suite, able = self, provider.capabilities
        # Small enough to be looked at as a whole, again and again.
        length = self.whole(min(self.length, 12 * self.grain + 777))

        class Machine(RuleBasedStateMachine):
            def __init__(self) -> None:
                super().__init__()
                self.volume = Subject(suite, server, provider, length)
                self.attempts = itertools.count(1)
                self.kept: list[Kept] = []

            def place(self, edge: tuple[int, int]) -> int:
                """Return an offset at or near an edge of a grain."""
                return max(0, min(self.volume.disk.length, edge[0] * suite.grain + edge[1]))

            def span(self, one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
                start, end = sorted((self.place(one), self.place(other)))
                return start, end - start

            @rule(one=_EDGES, other=_EDGES, byte=_BYTES)
            def write(self, one: tuple[int, int], other: tuple[int, int], byte: int) -> None:
                offset, size = self.span(one, other)
                if size:
                    self.volume.write(offset, bytes([byte]) * size)

            @precondition(lambda _: able.writes)
            @rule(one=_EDGES, other=_EDGES, byte=_BYTES, third=_EDGES)
            def restore(
                self, one: tuple[int, int], other: tuple[int, int], byte: int, third: tuple[int, int]
            ) -> None:
                disk, ref = self.volume.disk, self.volume.ref
                with provider.open_target(ref, next(self.attempts)) as target:
                    for edge in (other, third):
                        offset, size = self.span(one, edge)
                        if not size:
                            continue
                        if edge is other:
                            target.write(offset, [bytes([byte]) * size])
                            disk.write(offset, bytes([byte]) * size)
                        else:
                            target.zero(offset, size)
                            disk.zero(offset, size)
                    target.flush()

            @precondition(lambda _: "discard" not in suite.declared)
            @rule(one=_EDGES, other=_EDGES)
            def discard(self, one: tuple[int, int], other: tuple[int, int]) -> None:
                offset, size = self.span(one, other)
                if size:
                    self.volume.discard(offset, size)

            @precondition(lambda _: "grow" not in suite.declared)
            @rule(more=_EDGES)
            def grow(self, more: tuple[int, int]) -> None:
                longer = suite.whole(self.volume.disk.length + max(1, more[0] % 4 * suite.grain + more[1]))
                if longer <= 4 * length:
                    self.volume.grow(longer)

            @precondition(lambda _: "shrink" not in suite.declared)
            @rule(end=_EDGES)
            def shrink(self, end: tuple[int, int]) -> None:
                shorter = suite.whole(max(1, self.place(end)))
                if shorter < self.volume.disk.length:
                    self.volume.shrink(shorter)

            @rule(keep=st.booleans())
            def point(self, keep: bool) -> None:
                point = provider.open_point(self.volume.ref, new_id())
                disk = self.volume.disk.copy()
                check_point(point, disk)
                for one in self.kept:
                    if one.token is not None:
                        check_compared(point, disk, one.token, one.disk, must=disk.length >= one.disk.length)
                point.close(keep)

            @precondition(lambda _: able.live)
            @rule()
            def begin(self) -> None:
                """A backup is made, and committed."""
                point_id = new_id()
                point = provider.open_point(self.volume.ref, point_id)
                self.kept.append(Kept(point_id, point.identity, point.token, self.volume.disk.copy()))
                point.close(keep=True)

            @precondition(lambda self: self.kept)
            @rule(which=st.integers(0, 10))
            def again(self, which: int) -> None:
                one = self.kept[which % len(self.kept)]
                point = provider.open_point(self.volume.ref, one.id)
                assert (point.identity, point.token) == (one.identity, one.token)
                check_point(point, one.disk)
                point.close(keep=True)

            @precondition(lambda self: self.kept)
            @rule(keep=st.lists(st.booleans(), min_size=1, max_size=4))
            def keep(self, keep: Sequence[bool]) -> None:
                chosen = [one for one, stays in zip(self.kept, itertools.cycle(keep), strict=False) if stays]
                self.volume.keep(read=[one.id for one in chosen])
                gone = [one for one in self.kept if one not in chosen]
                self.kept = chosen
                with provider.open_point(self.volume.ref, new_id()) as point:
                    for one in gone:
                        assert one.token is None or point.compare(one.token) is not None

            @rule()
            def restart(self) -> None:
                nonlocal provider
                provider = self.volume.provider = suite.open_provider(server)

            def teardown(self) -> None:
                self.volume.check_storage()
                self.volume.remove()

        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=self.model_examples,
                stateful_step_count=20,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
