"""Tests of ``keep_points``: V10."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from backupfw.testing.volume.adoption import Adoption, Subject, new_id
from backupfw.testing.volume.checking import check_compared, check_point
from backupfw.volume.base import Needed


class KeepingTests(Adoption):
    """Tests of what the storage keeps between backups."""

    def test_v10_nothing_that_is_not_needed_stays(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))
        for _ in range(3):
            volume.provider.open_point(volume.ref, new_id()).close(keep=True)
            volume.write(0, b"new")
        # Else nobody would call keep_points.
        assert volume.provider.keeps_points or set(self.raw_names(server)) == before
        for _ in range(2):
            volume.keep()
            assert set(self.raw_names(server)) == before
        volume.check_storage()

    @pytest.mark.parametrize("chosen", range(3))
    def test_v10_what_is_compared_with_stays(self, volume: Subject, chosen: int) -> None:
        if not volume.provider.capabilities.changes:
            pytest.skip("declared: it does not know changes")
        points = []
        for turn in range(3):
            point_id = new_id()
            point = volume.provider.open_point(volume.ref, point_id)
            points.append((point_id, point.token or "", volume.disk.copy()))
            point.close(keep=True)
            volume.write(turn * 1000, b"new")
        for _ in range(2):
            volume.keep(compared=[points[chosen][0]])
            with volume.provider.open_point(volume.ref, new_id()) as point:
                for number, (_, token, was) in enumerate(points):
                    if number == chosen:
                        check_compared(point, volume.disk, token, was, must=True)
                    else:
                        assert point.compare(token) is not None, "a point that was removed is compared with"
            volume.write(self.length // 2, b"newer")

    def test_v10_what_is_read_stays(self, server: Any, volume: Subject) -> None:
        if not volume.provider.capabilities.live:
            pytest.skip("declared: its points are not live: nothing is kept of them")
        point_id, was = new_id(), volume.disk.copy()
        point = volume.provider.open_point(volume.ref, point_id)
        seen = point.identity, point.token
        point.close(keep=True)
        volume.provider.open_point(volume.ref, new_id()).close(keep=True)
        volume.write(0, b"new")
        volume.provider = self.open_provider(server)
        for _ in range(2):
            volume.keep(read=[point_id])
            point = volume.provider.open_point(volume.ref, point_id)
            check_point(point, was)
            assert (point.identity, point.token) == seen
            point.close(keep=True)

    def test_v10_a_point_that_is_read_is_not_disturbed(self, volume: Subject) -> None:
        point_id, was = new_id(), volume.disk.copy()
        with volume.provider.open_point(volume.ref, point_id) as point:
            volume.keep(read=[point_id])
            check_point(point, was)

    def test_v10_both_kinds_and_both_at_once(self, volume: Subject) -> None:
        able = volume.provider.capabilities
        if not (able.changes and able.live):
            pytest.skip("declared: it keeps no two kinds of points")
        base, reading, was = new_id(), new_id(), volume.disk.copy()
        point = volume.provider.open_point(volume.ref, base)
        token = point.token or ""
        point.close(keep=True)
        volume.write(self.length // 2, b"new")
        disk = volume.disk.copy()
        volume.provider.open_point(volume.ref, reading).close(keep=True)
        volume.write(0, b"newer")
        for compared, read in (({base}, {reading}), ({base, reading}, {base, reading}), ({base}, {reading})):
            volume.keep(compared, read)
            point = volume.provider.open_point(volume.ref, reading)
            check_point(point, disk)
            check_compared(point, disk, token, was, must=True)
            point.close(keep=True)

    def test_v10_a_point_that_begins_meanwhile_stays(self, volume: Subject) -> None:
        """The service decides what is needed at the moment when it is asked: first look, then ask."""
        if not volume.provider.capabilities.live:
            pytest.skip("declared: its points are not live: nothing is kept of them")
        point_id, was = new_id(), volume.disk.copy()
        asked = []

        def needed() -> Needed:
            # It begins after the service has decided, and before the provider knows that.
            asked.append(1)
            volume.provider.open_point(volume.ref, point_id).close(keep=True)
            volume.write(0, b"new")
            return Needed()

        volume.provider.open_point(volume.ref, new_id()).close(keep=True)
        volume.provider.keep_points(volume.ref, needed)
        if not asked:
            pytest.skip("declared: nothing is kept in the storage, so it need not ask")
        assert len(asked) == 1, "it asked more than once"
        with volume.provider.open_point(volume.ref, point_id) as point:
            check_point(point, was)

    def test_v10_who_cannot_be_asked_removes_nothing(self, server: Any, volume: Subject) -> None:
        volume.provider.open_point(volume.ref, new_id()).close(keep=True)
        kept = set(self.raw_names(server))

        def needed() -> Needed:
            raise ConnectionError("the database is away")

        # With nothing kept it does not ask.
        with suppress(ConnectionError):
            volume.provider.keep_points(volume.ref, needed)
        assert set(self.raw_names(server)) == kept

    def test_v10_points_that_the_service_does_not_know_stay(self, server: Any, volume: Subject) -> None:
        """Another service has adopted the same storage, or the database is a copy of another one's."""
        mine, other = new_id(), new_id()
        volume.provider.open_point(volume.ref, other).close(keep=True)
        # What lets it be read may go: perhaps one point at a time can be read.
        volume.keep(compared=[other])
        kept = set(self.raw_names(server))
        volume.provider.open_point(volume.ref, mine).close(keep=True)
        volume.provider.keep_points(volume.ref, lambda: Needed(known=frozenset((mine,))))
        assert set(self.raw_names(server)) == kept

    def test_v10_other_volumes_are_left_alone(self, server: Any, volume: Subject) -> None:
        other = Subject(self, server, volume.provider, self.length)
        point = other.provider.open_point(other.ref, new_id())
        point.close(keep=True)
        kept = set(self.raw_names(server))
        volume.keep()
        assert set(self.raw_names(server)) == kept
        other.remove()

    def test_v10_foreign_things_are_left_alone(self, server: Any, volume: Subject) -> None:
        self.require("foreign")
        name = self.foreign(server, volume.ref)
        assert name in self.raw_names(server)
        volume.provider.open_point(volume.ref, new_id()).close(keep=True)
        volume.keep()
        assert name in self.raw_names(server)
        with volume.provider.open_point(volume.ref, new_id()):
            pass
        assert name in self.raw_names(server)
        self.remove_foreign(server, volume.ref, name)

    def test_v10_a_volume_that_is_gone(self, server: Any, volume: Subject) -> None:
        self.require("lose")
        volume.provider.open_point(volume.ref, new_id()).close(keep=True)
        self.lose(server, volume.ref)
        for _ in range(2):
            volume.keep()

    def test_v10_a_volume_that_never_was(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))
        location = volume.ref.location
        for place in (None, location and location[:-1] + ("a" if location[-1] != "a" else "b")):
            ref = type(volume.ref)(new_id(), self.length, place)
            volume.provider.keep_points(ref, Needed)
        assert set(self.raw_names(server)) == before
