"""Tests of making, extending, deleting, snapshots and adoption: V11 to V14."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest

from backupfw.errors import InvalidInput, OperationNotSupported, SourceMoved
from backupfw.testing.volume.adoption import Adoption, Subject, adopted, created, new_id
from backupfw.testing.volume.checking import check_point
from backupfw.testing.volume.disk import Disk
from backupfw.testing.volume.writer import Writer
from backupfw.volume.base import Needed, SnapshotRef, VolumeProvider, VolumeRef


class MakingTests(Adoption):
    """Tests of what makes and removes storage."""

    def test_v11_what_is_declared_is_refused(self, server: Any, provider: VolumeProvider) -> None:
        if "create" in self.declared:
            before = set(self.raw_names(server))
            with pytest.raises((OperationNotSupported, InvalidInput)):
                provider.create(VolumeRef(new_id(), self.length), None)
            assert set(self.raw_names(server)) == before
        if "extend" in self.declared:
            volume = Subject(self, server, provider, self.length)
            with pytest.raises((OperationNotSupported, InvalidInput)):
                provider.extend(volume.ref, self.whole(2 * self.length))
            volume.remove()

    @pytest.mark.parametrize("length", [1, 4097, 1_000_003])
    def test_v11_a_new_volume_is_zeros(self, server: Any, provider: VolumeProvider, length: int) -> None:
        self.require("create")
        before = set(self.raw_names(server))
        ref = created(provider, self.whole(length))
        volume = Subject(self, server, provider, self.whole(length), ref)
        assert isinstance(ref.location, str)
        assert provider.look(ref).length == volume.disk.length
        with provider.open_point(ref, new_id()) as point:
            check_point(point, volume.disk)
        volume.check_storage()
        volume.remove()
        assert set(self.raw_names(server)) == before

    def test_v11_made_twice_is_made_once(self, server: Any, provider: VolumeProvider) -> None:
        self.require("create")
        volume = Subject(self, server, provider, self.length, created(provider, self.length))
        volume.fill()
        names = set(self.raw_names(server))
        # The task was killed before it recorded the location.
        again = VolumeRef(volume.ref.id, self.length)
        assert provider.create(again, None) == volume.ref.location
        assert self.open_provider(server).create(again, None) == volume.ref.location
        assert set(self.raw_names(server)) == names
        volume.check_storage()
        volume.remove()

    def test_v11_deleted_twice_is_deleted_once(self, server: Any, provider: VolumeProvider) -> None:
        self.require("create")
        before = set(self.raw_names(server))
        ref = created(provider, self.length)
        other = created(provider, self.length)
        for each in (ref, ref, VolumeRef(ref.id, self.length), VolumeRef(new_id(), 1)):
            provider.delete(each)
        provider.look(other)
        # As by a task that was killed before it recorded the location.
        provider.delete(VolumeRef(other.id, self.length))
        assert set(self.raw_names(server)) == before

    def test_v11_deleted_with_its_points(self, server: Any, provider: VolumeProvider) -> None:
        self.require("create")
        before = set(self.raw_names(server))
        ref = created(provider, self.length)
        for _ in range(2):
            provider.open_point(ref, new_id()).close(keep=True)
        # As the service does it: delete, and then look for what is left of it.
        provider.delete(ref)
        provider.keep_points(ref, Needed)
        assert set(self.raw_names(server)) == before

    def test_v11_a_copy_of_a_volume(self, volume: Subject) -> None:
        self.require("create")
        for length in (self.length, self.whole(self.length + 70_001)):
            with _copied(volume, volume.ref, length) as copy:
                copy.write(0, b"changed")
            volume.check_storage()

    def test_v12_extended_with_zeros(self, server: Any, provider: VolumeProvider) -> None:
        self.require("extend")
        volume = Subject(self, server, provider, self.length)
        volume.fill()
        for length in (self.whole(self.length + 1), self.whole(self.length + 100_001)):
            for _ in range(2):
                provider.extend(volume.ref, length)
            volume.disk.resize(length)
            volume.ref = replace(volume.ref, length=length)
            assert provider.look(volume.ref).length == length
            with provider.open_point(volume.ref, new_id()) as point:
                check_point(point, volume.disk)
            volume.check_storage()
        volume.remove()

    def test_v12_never_shrunk(self, volume: Subject) -> None:
        self.require("extend")
        volume.provider.extend(volume.ref, self.step)
        volume.provider.extend(volume.ref, self.length)
        assert volume.provider.look(volume.ref).length == self.length
        volume.check_storage()

    # ---- snapshots -------------------------------------------------------------------------------

    @pytest.mark.parametrize("in_use", [False, True])
    def test_v13_a_snapshot_never_changes(self, server: Any, volume: Subject, in_use: bool) -> None:
        _require_snapshots(volume.provider)
        with _snapshot(volume, in_use) as (snapshot, was):
            identities = set()
            volume.write(0, b"new")
            volume.write(self.length // 2, b"\xff" * 70_000)
            for provider in (volume.provider, self.open_provider(server)):
                with provider.open_point(snapshot, new_id()) as point:
                    check_point(point, was)
                    point.check_still()
                    identities.add(point.identity)
            assert len(identities) == 1, "the identity of a snapshot changes"
            with volume.provider.open_point(volume.ref, new_id()) as point:
                check_point(point, volume.disk)
                assert point.identity not in identities

    def test_v13_a_snapshot_of_a_volume_in_use_is_one_moment(self, server: Any, volume: Subject) -> None:
        _require_snapshots(volume.provider)
        before = set(self.raw_names(server))
        snapshot = SnapshotRef(new_id(), volume.ref, self.length)
        with Writer(volume) as writer:
            earliest = writer.done
            # Where no snapshot is atomic, none is better than a mixed one.
            with suppress(SourceMoved):
                location = volume.provider.create_snapshot(snapshot, True)
                latest = writer.done + 1
                # What is read of the volume by mistake is of a later moment.
                writer.go_on()
                with volume.provider.open_point(replace(snapshot, location=location), new_id()) as point:
                    assert earliest <= writer.moment(point) <= latest
                volume.provider.delete_snapshot(snapshot)
        assert set(self.raw_names(server)) == before

    def test_v13_programs_wait_while_an_atomic_snapshot_is_taken(self, volume: Subject) -> None:
        _require_snapshots(volume.provider)
        was, snapshot = volume.disk.copy(), SnapshotRef(new_id(), volume.ref, self.length)
        with volume.frozen() as states:
            made = replace(snapshot, location=volume.provider.create_snapshot(snapshot, True))
            # Nobody waits where it is a copy.
            assert len(states) <= 1
            with volume.provider.open_point(made, new_id()) as point:
                check_point(point, states[0] if states else was)
            assert volume.provider.create_snapshot(snapshot, True) == made.location
            assert len(states) <= 1
        volume.provider.delete_snapshot(made)

    def test_v13_made_twice_is_made_once(self, server: Any, volume: Subject) -> None:
        _require_snapshots(volume.provider)
        with _snapshot(volume, False) as (snapshot, was):
            names = set(self.raw_names(server))
            volume.write(0, b"new")
            again = replace(snapshot, location=None)
            assert volume.provider.create_snapshot(again, True) == snapshot.location
            assert set(self.raw_names(server)) == names
            with volume.provider.open_point(snapshot, new_id()) as point:
                check_point(point, was)

    def test_v13_deleted_twice_is_deleted_once(self, server: Any, volume: Subject) -> None:
        _require_snapshots(volume.provider)
        before = set(self.raw_names(server))
        with _snapshot(volume, False) as (snapshot, _), _snapshot(volume, False) as (other, was):
            missing = SnapshotRef(new_id(), volume.ref, self.length)
            for each in (snapshot, snapshot, replace(snapshot, location=None), missing):
                volume.provider.delete_snapshot(each)
            with volume.provider.open_point(other, new_id()) as point:
                check_point(point, was)
            # As by a task that was killed before it recorded the location.
            volume.provider.delete_snapshot(replace(other, location=None))
            assert set(self.raw_names(server)) == before
        volume.check_storage()

    def test_v13_points_and_snapshots_do_not_touch_each_other(self, server: Any, volume: Subject) -> None:
        _require_snapshots(volume.provider)
        with _snapshot(volume, False) as (snapshot, was):
            names = set(self.raw_names(server))
            for keep in (True, False):
                volume.provider.open_point(snapshot, new_id()).close(keep)
            volume.provider.open_point(volume.ref, new_id()).close(keep=True)
            volume.keep()
            assert set(self.raw_names(server)) == names
            with volume.provider.open_point(snapshot, new_id()) as point:
                check_point(point, was)

    def test_v13_a_copy_of_a_snapshot(self, volume: Subject) -> None:
        _require_snapshots(volume.provider)
        self.require("create")
        with _snapshot(volume, False) as (snapshot, was):
            volume.write(0, b"new")
            with _copied(volume, snapshot, self.whole(self.length + 70_001), was):
                pass

    # ---- adoption --------------------------------------------------------------------------------

    def test_v14_adopted_storage_is_used_and_never_deleted(
        self, server: Any, provider: VolumeProvider
    ) -> None:
        self.require("adoptable")
        names = set(self.raw_names(server))
        path = self.adoptable(server, self.length)
        with_it = set(self.raw_names(server))
        volume = Subject(self, server, provider, self.length, adopted(provider, path))
        # Not every storage can be listed.
        with suppress(OperationNotSupported):
            listed = {storage.location: storage.length for storage in provider.adoptable()}
            assert listed.get(volume.ref.location or "") == self.length
        assert volume.ref.length == self.length
        assert volume.ref.storage_id is None or len(volume.ref.storage_id) <= 255
        volume.fill()
        assert provider.look(volume.ref).storage_id == volume.ref.storage_id
        with self.open_provider(server).open_point(volume.ref, new_id()) as point:
            assert point.storage_id == volume.ref.storage_id
            check_point(point, volume.disk)
        provider.delete(volume.ref)
        assert set(self.raw_names(server)) == with_it
        volume.check_storage()
        volume.remove()
        assert set(self.raw_names(server)) == names

    @pytest.mark.parametrize(
        "path",
        ["", "nothing-here", "/nothing/is/here", "x" * 5000, "a\0b", "\u00e9"],
        ids=["empty", "name", "path", "long", "nul", "accent"],
    )
    def test_v14_what_cannot_be_adopted(self, provider: VolumeProvider, path: str) -> None:
        with pytest.raises(InvalidInput) as caught:
            provider.adopt(path)
        assert str(caught.value)


def _require_snapshots(provider: VolumeProvider) -> None:
    if not provider.capabilities.snapshots:
        pytest.skip("declared: it takes no snapshots")


@contextmanager
def _snapshot(volume: Subject, in_use: bool) -> Iterator[tuple[SnapshotRef, Disk]]:
    """Take a snapshot for a ``with`` block; yield it, and its bytes."""
    snapshot = SnapshotRef(new_id(), volume.ref, volume.disk.length)
    snapshot = replace(snapshot, location=volume.provider.create_snapshot(snapshot, in_use))
    try:
        yield snapshot, volume.disk.copy()
    finally:
        volume.provider.delete_snapshot(snapshot)


@contextmanager
def _copied(
    volume: Subject, source: VolumeRef | SnapshotRef, length: int, disk: Disk | None = None
) -> Iterator[Subject]:
    """Make a volume of another one, or of a snapshot, for a ``with`` block; fail if its bytes are others."""
    ref = VolumeRef(new_id(), length)
    ref = replace(ref, location=volume.provider.create(ref, source))
    copy = Subject(volume.suite, volume.server, volume.provider, length, ref)
    copy.disk = (disk or volume.disk).copy()
    copy.disk.resize(length)
    with volume.provider.open_point(ref, new_id()) as point:
        check_point(point, copy.disk)
    copy.check_storage()
    yield copy
    copy.remove()
