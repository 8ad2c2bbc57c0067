"""Tests of points: bytes, lengths, one moment, ids and closing: V1 to V3, V8 and V9."""

from __future__ import annotations

from typing import Any

import pytest

from backupfw.errors import SourceMoved
from backupfw.testing.volume.adoption import REFUSALS, Adoption, Subject, new_id
from backupfw.testing.volume.checking import check_point, check_range
from backupfw.testing.volume.writer import Writer
from backupfw.volume.base import Needed, VolumeProvider


class PointTests(Adoption):
    """Tests of points of volumes; those of snapshots are in ``making``."""

    @pytest.mark.parametrize("length", [1, 511, 4097, 65_537, 1_000_003])
    def test_v2_any_length(self, server: Any, provider: VolumeProvider, length: int) -> None:
        volume = Subject(self, server, provider, self.whole(length))
        volume.write(0, b"\x01")
        volume.write(volume.disk.length - 1, b"\x02")
        with provider.open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)
        volume.remove()

    def test_v1_reads_anywhere(self, volume: Subject) -> None:
        with volume.provider.open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)
            end = point.length
            for start in (0, 1, 511, 512, 4095, end // 3, end // 3 + 999, end - 1000, end - 1):
                for length in (1, 2, 511, 4096, 70_001):
                    check_range(point, volume.disk, start, min(start + length, end))
            check_range(point, volume.disk, 0, end)

    def test_v1_never_less_than_asked(self, volume: Subject) -> None:
        with volume.provider.open_point(volume.ref, new_id()) as point:
            for offset, length in ((point.length - 1, 2), (point.length, 1), (point.length + 5000, 10)):
                with pytest.raises(REFUSALS):
                    point.read_into(offset, memoryview(bytearray(length)))
            check_point(point, volume.disk)

    def test_v2_longer_storage_is_used_as_it_is(self, volume: Subject) -> None:
        self.require("grow")
        volume.grow(self.whole(self.length + 70_001))
        assert volume.provider.look(volume.ref).length == volume.disk.length
        with volume.provider.open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)
            point.release_cache(0, point.length)
        if volume.provider.capabilities.writes:
            with volume.provider.open_target(volume.ref, 1) as target:
                assert target.length == volume.disk.length
                target.write(target.length - 3, [b"end"])
                volume.disk.write(target.length - 3, b"end")
                target.flush()
                target.release_cache(0, target.length)
            volume.check_storage()

    def test_v3_the_same_state_has_the_same_identity(self, volume: Subject) -> None:
        found, point_id = set(), new_id()
        for _ in range(2):
            point = volume.provider.open_point(volume.ref, point_id)
            found.add(point.identity)
            point.close(keep=True)
        assert len(found) == 1

    def test_v3_another_state_has_another_identity(self, volume: Subject) -> None:
        found: set[str] = set()
        for turn in range(3):
            volume.write(self.length // 2, bytes([turn + 1]) * 10)
            with volume.provider.open_point(volume.ref, new_id()) as point:
                assert isinstance(point.identity, str)
                assert point.identity not in found
                found.add(point.identity)

    def test_v3_a_live_point_does_not_move(self, volume: Subject) -> None:
        _require_live(volume.provider)
        was = volume.disk.copy()
        with volume.provider.open_point(volume.ref, new_id()) as point:
            volume.write(0, b"new")
            volume.write(self.length // 3, b"\xff" * 70_000)
            volume.write(self.length - 3, b"new")
            if "discard" not in self.declared:
                volume.discard(self.length // 2, self.length // 3)
            point.check_still()
            check_point(point, was)
        with volume.provider.open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)

    def test_v3_a_live_point_is_one_moment(self, volume: Subject) -> None:
        _require_live(volume.provider)
        with Writer(volume) as writer:
            for _ in range(2):
                before = writer.done
                with volume.provider.open_point(volume.ref, new_id()) as point:
                    moment = writer.moment(point)
                    assert before <= moment
                    writer.go_on()
                    assert writer.moment(point) == moment

    def test_v3_programs_wait_while_a_live_point_is_taken(self, volume: Subject) -> None:
        _require_live(volume.provider)
        point_id = new_id()
        with volume.frozen() as states:
            # Once: the second call goes on with what the first has taken.
            for _ in range(2):
                point = volume.provider.open_point(volume.ref, point_id)
                assert len(states) == 1
                check_point(point, states[0])
                point.close(keep=True)
        volume.provider.keep_points(volume.ref, Needed)

    def test_v3_a_point_that_moves_is_noticed(self, volume: Subject) -> None:
        with volume.provider.open_point(volume.ref, new_id()) as point:
            point.check_still()
            was = point.identity
            volume.write(0, b"new")
            try:
                point.check_still()
            except SourceMoved:
                assert not volume.provider.capabilities.live
                return
        # Not every storage can tell while it is open; at the latest the next point has another identity.
        with volume.provider.open_point(volume.ref, new_id()) as point:
            assert point.identity != was

    def test_v8_the_same_id_is_the_same_point(self, server: Any, volume: Subject) -> None:
        _require_live(volume.provider)
        point_id, was = new_id(), volume.disk.copy()
        with_id: list[tuple[str, str | None]] = []
        for provider in (volume.provider, volume.provider, self.open_provider(server)):
            point = provider.open_point(volume.ref, point_id)
            check_point(point, was)
            with_id.append((point.identity, point.token))
            point.close(keep=True)
            volume.write(len(with_id) * 1000, b"later")
        assert len(set(with_id)) == 1

    def test_v8_what_is_kept_has_the_id_in_its_name(self, server: Any, volume: Subject) -> None:
        before, point_id = set(self.raw_names(server)), new_id()
        with volume.provider.open_point(volume.ref, point_id):
            made = set(self.raw_names(server)) - before
        assert [name for name in made if point_id not in name] == []

    def test_v9_close_keeps_nothing(self, server: Any, volume: Subject) -> None:
        before, point_id = set(self.raw_names(server)), new_id()
        point = volume.provider.open_point(volume.ref, point_id)
        point.close()
        point.close(keep=True)
        assert set(self.raw_names(server)) == before

    def test_v9_the_first_close_decides(self, server: Any, volume: Subject) -> None:
        point = volume.provider.open_point(volume.ref, new_id())
        point.close(keep=True)
        kept = set(self.raw_names(server))
        for keep in (False, True):
            point.close(keep)
            assert set(self.raw_names(server)) == kept

    def test_v9_leaving_a_with_block_keeps_nothing(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))
        with pytest.raises(RuntimeError), volume.provider.open_point(volume.ref, new_id()):
            raise RuntimeError
        assert set(self.raw_names(server)) == before

    def test_v9_a_closed_point_refuses(self, volume: Subject) -> None:
        point = volume.provider.open_point(volume.ref, new_id())
        point.close()
        with pytest.raises(REFUSALS):
            point.read_into(0, memoryview(bytearray(10)))


def _require_live(provider: VolumeProvider) -> None:
    if not provider.capabilities.live:
        pytest.skip("declared: its points are not live: the service reads a snapshot of a volume in use")
