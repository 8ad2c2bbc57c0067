"""Tests of what is killed, frozen or cancelled, of threads and of processes: V16, V18 and V19."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import pytest
from blake3 import blake3

from backupfw.errors import TargetError, TaskCancelled
from backupfw.testing.processes import PATIENCE, Recipe, Work, other_process
from backupfw.testing.volume.adoption import Adoption, Subject, new_id
from backupfw.testing.volume.checking import check_compared, check_extents, check_point, check_range
from backupfw.volume.base import Needed, SnapshotRef, Tick, VolumeProvider, VolumeRef

T = TypeVar("T")

THREADS = 8
#: More calls of ``tick`` than a small volume can cause.
MOST_TICKS = 200


class InterruptedTests(Adoption):
    """Tests with other processes and threads."""

    def recipe(self, server: Any) -> Recipe:
        """Return how another process makes the provider."""
        provider = type(self.open_provider(server)) if self.provider_class is None else self.provider_class
        return Recipe.of(provider, self.options(server))

    # ---- the fence -------------------------------------------------------------------------------

    @pytest.mark.parametrize("use", ["write", "zero"])
    def test_v16_a_frozen_writer_of_another_process(self, server: Any, volume: Subject, use: str) -> None:
        if not volume.provider.capabilities.fences:
            pytest.skip("declared: it does not fence")
        with other_process(self.recipe(server), _write_late, volume.ref, 1, use) as other:
            other.go()
            assert other.told() == "written"
            other.freeze()
            with volume.provider.open_target(volume.ref, 2) as target:
                target.write(0, [b"right" * 1000])
                target.flush()
                volume.disk.write(0, b"right" * 1000)
                # What it would have written meanwhile comes now.
                other.go()
                other.thaw()
                # It may have been killed.
                with suppress(EOFError, OSError):
                    assert other.told() == "kept out"
                volume.check_storage()
                target.write(6000, [b"still"])
                target.flush()
                volume.disk.write(6000, b"still")
            volume.check_storage()

    # ---- killed ----------------------------------------------------------------------------------

    def test_v18_killed_while_a_volume_is_made(self, server: Any, volume: Subject) -> None:
        self.require("create")
        before = set(self.raw_names(server))

        def fresh() -> tuple[VolumeRef, VolumeRef]:
            return VolumeRef(new_id(), self.length), volume.ref

        for number, (ref, source) in enumerate(self.killed(server, _create, fresh, _delete)):
            if number % 2:
                ref = replace(ref, location=volume.provider.create(ref, source))
                with volume.provider.open_point(ref, new_id()) as point:
                    check_point(point, volume.disk)
            # Whoever deletes may not know the location.
            self.clean(server, before, volume.provider.delete, replace(ref, location=None))
        volume.check_storage()

    def test_v18_killed_while_a_volume_is_deleted(self, server: Any, volume: Subject) -> None:
        self.require("create")
        before = set(self.raw_names(server))

        def fresh() -> tuple[VolumeRef]:
            ref = VolumeRef(new_id(), self.length)
            return (replace(ref, location=volume.provider.create(ref, volume.ref)),)

        for (ref,) in self.killed(server, _delete, fresh):
            self.clean(server, before, volume.provider.delete, ref)

    def test_v18_killed_while_a_volume_is_extended(self, server: Any, volume: Subject) -> None:
        self.require("extend")
        sizes = iter(range(1, 1000))

        def fresh() -> tuple[VolumeRef, int]:
            return volume.ref, self.whole(self.length + next(sizes) * 50_001)

        for _, length in self.killed(server, _extend, fresh):
            volume.provider.extend(volume.ref, length)
            volume.disk.resize(length)
            volume.ref = replace(volume.ref, length=length)
            assert volume.provider.look(volume.ref).length == length
            volume.check_storage()

    def test_v18_killed_while_a_snapshot_is_taken(self, server: Any, volume: Subject) -> None:
        if not volume.provider.capabilities.snapshots:
            pytest.skip("declared: it takes no snapshots")
        before = set(self.raw_names(server))

        def fresh() -> tuple[SnapshotRef]:
            return (SnapshotRef(new_id(), volume.ref, self.length),)

        for number, (ref,) in enumerate(self.killed(server, _snapshot, fresh, _delete_snapshot)):
            if number % 2:
                ref = replace(ref, location=volume.provider.create_snapshot(ref, False))
                with volume.provider.open_point(ref, new_id()) as point:
                    check_point(point, volume.disk)
            self.clean(server, before, volume.provider.delete_snapshot, replace(ref, location=None))
        volume.check_storage()

    def test_v18_killed_while_a_snapshot_is_deleted(self, server: Any, volume: Subject) -> None:
        if not volume.provider.capabilities.snapshots:
            pytest.skip("declared: it takes no snapshots")
        before = set(self.raw_names(server))

        def fresh() -> tuple[SnapshotRef]:
            ref = SnapshotRef(new_id(), volume.ref, self.length)
            return (replace(ref, location=volume.provider.create_snapshot(ref, False)),)

        for (ref,) in self.killed(server, _delete_snapshot, fresh):
            self.clean(server, before, volume.provider.delete_snapshot, ref)
        volume.check_storage()

    def test_v18_killed_while_a_point_is_opened_and_read(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))

        def fresh() -> tuple[VolumeRef, str]:
            return volume.ref, new_id()

        for number, (_, point_id) in enumerate(self.killed(server, _read, fresh)):

            def go_on(point_id: str = point_id) -> None:
                with volume.provider.open_point(volume.ref, point_id) as point:
                    check_point(point, volume.disk)

            # The next attempt goes on with it, or there is none.
            self.clean(server, before, go_on if number % 2 else volume.keep)

    def test_v18_killed_while_a_target_is_written(self, server: Any, volume: Subject) -> None:
        if not volume.provider.capabilities.writes:
            pytest.skip("declared: it does not write")
        before, attempts = set(self.raw_names(server)), itertools.count(1)

        def fresh() -> tuple[VolumeRef, int]:
            return volume.ref, next(attempts)

        for _ in self.killed(server, _overwrite, fresh):
            # The next attempt gets the volume, at the latest when the dead one's hold of it has run out.
            end = time.monotonic() + PATIENCE
            while True:
                try:
                    with volume.provider.open_target(volume.ref, next(attempts)) as target:
                        for offset in range(0, self.length, 1 << 20):
                            data = volume.disk.read(offset, min(1 << 20, self.length - offset))
                            target.write(offset, [data])
                        target.flush()
                        break
                except TargetError:
                    assert time.monotonic() < end, "the next attempt does not get the volume"
                    time.sleep(0.2)
            volume.check_storage()
            assert set(self.raw_names(server)) == before

    def test_v18_killed_while_points_are_removed(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))

        def fresh() -> tuple[VolumeRef]:
            for _ in range(3):
                volume.provider.open_point(volume.ref, new_id()).close(keep=True)
            return (volume.ref,)

        for _ in self.killed(server, _keep_nothing, fresh):
            self.clean(server, before, volume.keep)
        volume.check_storage()

    def clean(
        self, server: Any, before: Collection[str], remove: Callable[..., object], *arguments: object
    ) -> None:
        """Remove what a killed process has left; nothing but what was there before may stay."""
        remove(*arguments)
        assert set(self.raw_names(server)) == before

    def killed(
        self, server: Any, work: Work, fresh: Callable[[], tuple[Any, ...]], undo: Work | None = None
    ) -> Iterator[tuple[Any, ...]]:
        """Let other processes do the same work with fresh arguments, and kill each at another moment.

        Yields the arguments each time, for what follows.

        :param undo: removes what the one process made that is not killed, to know how long it takes.
        """
        recipe, dice = self.recipe(server), random.Random(18)
        arguments = fresh()
        with other_process(recipe, work, *arguments) as other:
            start = time.monotonic()
            other.result()
            longest = time.monotonic() - start
        if undo is not None:
            undo(self.open_provider(server), None, *arguments)
        for number in range(self.kills):
            arguments = fresh()
            with other_process(recipe, work, *arguments) as other:
                other.go()
                time.sleep(longest * (number + dice.random()) / self.kills)
            yield arguments

    # ---- cancelled -------------------------------------------------------------------------------

    def test_v18_cancelled_while_a_volume_is_made(self, server: Any, volume: Subject) -> None:
        self.require("create")
        before = set(self.raw_names(server))
        ref = VolumeRef(new_id(), self.length)
        for tick in _cancelling():
            location = _attempt(volume.provider.create, ref, volume.ref, tick)
            if location is None:
                volume.provider.delete(ref)
                assert set(self.raw_names(server)) == before
        with volume.provider.open_point(replace(ref, location=location), new_id()) as point:
            check_point(point, volume.disk)
        volume.provider.delete(ref)

    def test_v18_cancelled_while_a_snapshot_is_taken(self, server: Any, volume: Subject) -> None:
        if not volume.provider.capabilities.snapshots:
            pytest.skip("declared: it takes no snapshots")
        before = set(self.raw_names(server))
        ref = SnapshotRef(new_id(), volume.ref, self.length)
        for tick in _cancelling():
            location = _attempt(volume.provider.create_snapshot, ref, True, tick)
            if location is None:
                volume.provider.delete_snapshot(ref)
                assert set(self.raw_names(server)) == before
        with volume.provider.open_point(replace(ref, location=location), new_id()) as point:
            check_point(point, volume.disk)
        volume.provider.delete_snapshot(ref)

    def test_v18_cancelled_while_a_point_is_opened(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))
        for tick in _cancelling():
            point = _attempt(volume.provider.open_point, volume.ref, new_id(), tick)
            if point is None:
                # What cancelled attempts leave, this removes.
                volume.keep()
            else:
                check_point(point, volume.disk)
                point.close()
            assert set(self.raw_names(server)) == before

    # ---- at once ---------------------------------------------------------------------------------

    def test_v19_threads_that_read_one_point(self, volume: Subject) -> None:
        provider, token, was = volume.provider, None, volume.disk.copy()
        if provider.capabilities.changes:
            point = provider.open_point(volume.ref, new_id())
            token = point.token
            point.close(keep=True)
            volume.write(self.length // 2, b"new" * 30_000)
        with provider.open_point(volume.ref, new_id()) as point:
            if token is not None:
                check_compared(point, volume.disk, token, was, must=True)

            def read(number: int) -> None:
                dice = random.Random(number)
                for _ in range(12):
                    start, end = sorted(dice.sample(range(point.length + 1), 2))
                    check_extents(point, volume.disk, start, end, token, was)
                    check_range(point, volume.disk, start, min(end, start + 200_000))

            _in_threads(read)

    def test_v19_threads_with_points_of_their_own(self, server: Any, volume: Subject) -> None:
        before = set(self.raw_names(server))

        def read(number: int) -> None:
            for turn in range(3):
                with volume.provider.open_point(volume.ref, new_id()) as point:
                    check_range(point, volume.disk, 0, 5000)
                    check_extents(point, volume.disk, number, self.length - turn)

        _in_threads(read)
        assert set(self.raw_names(server)) == before

    def test_v19_processes_with_one_volume(self, server: Any, volume: Subject) -> None:
        shared, own = new_id(), new_id()
        point = volume.provider.open_point(volume.ref, shared)
        digest = blake3(volume.disk.read(0, self.length)).digest()
        for point_id in (shared, own):
            with other_process(self.recipe(server), _describe, volume.ref, point_id) as other:
                identity, token, found = other.result()
            assert found == digest, "another process reads other bytes"
            if point_id == shared and volume.provider.capabilities.live:
                assert (identity, token) == (point.identity, point.token)
        check_point(point, volume.disk)
        point.close(keep=True)
        if token is not None:
            was = volume.disk.copy()
            volume.write(0, b"new")
            with volume.provider.open_point(volume.ref, new_id()) as point:
                check_compared(point, volume.disk, token, was, must=True)


def _in_threads(work: Callable[[int], None]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for done in [pool.submit(work, number) for number in range(THREADS)]:
            done.result()


def _cancelling() -> Iterator[Tick]:
    """Yield ticks that raise at the first, second, third … call; the last one was not called so often."""
    for most in range(MOST_TICKS):
        calls = [0]

        def tick(calls: list[int] = calls, most: int = most) -> None:
            calls[0] += 1
            if calls[0] > most:
                raise TaskCancelled("somebody cancelled it")

        yield tick
        if calls[0] <= most:
            return
    pytest.fail("tick is called for ever")


def _attempt(action: Callable[..., T], *arguments: Any) -> T | None:
    """Return the result of a call; None if it was cancelled."""
    try:
        return action(*arguments)
    except TaskCancelled:
        return None


# ---- what other processes do


def _write_late(
    provider: VolumeProvider, pipe: Connection, volume: VolumeRef, attempt: int, use: str
) -> object:
    with provider.open_target(volume, attempt) as target:
        target.write(0, [b"early" * 1000])
        target.flush()
        pipe.send("written")
        pipe.recv()
        try:
            if use == "write":
                target.write(0, [b"later" * 1000])
            else:
                target.zero(0, 5000)
            target.flush()
        except BaseException:
            return "kept out"
        return "wrote"


def _create(provider: VolumeProvider, pipe: object, volume: VolumeRef, source: VolumeRef) -> None:
    provider.create(volume, source)


def _delete(provider: VolumeProvider, pipe: object, volume: VolumeRef, *_: object) -> None:
    provider.delete(volume)


def _extend(provider: VolumeProvider, pipe: object, volume: VolumeRef, length: int) -> None:
    provider.extend(volume, length)


def _snapshot(provider: VolumeProvider, pipe: object, snapshot: SnapshotRef) -> None:
    provider.create_snapshot(snapshot, False)


def _delete_snapshot(provider: VolumeProvider, pipe: object, snapshot: SnapshotRef) -> None:
    provider.delete_snapshot(snapshot)


def _read(provider: VolumeProvider, pipe: object, volume: VolumeRef, point_id: str) -> None:
    with provider.open_point(volume, point_id) as point:
        for offset in range(0, point.length, 1 << 20):
            point.read_into(offset, memoryview(bytearray(min(1 << 20, point.length - offset))))


def _overwrite(provider: VolumeProvider, pipe: object, volume: VolumeRef, attempt: int) -> None:
    with provider.open_target(volume, attempt) as target:
        for offset in range(0, volume.length - 5000, 50_000):
            target.write(offset, [b"w" * 5000])
        target.zero(0, volume.length)
        target.flush()


def _keep_nothing(provider: VolumeProvider, pipe: object, volume: VolumeRef) -> None:
    provider.keep_points(volume, Needed)


def _describe(
    provider: VolumeProvider, pipe: object, volume: VolumeRef, point_id: str
) -> tuple[str, str | None, bytes]:
    point = provider.open_point(volume, point_id)
    digest = blake3()
    for offset in range(0, point.length, 1 << 20):
        piece = bytearray(min(1 << 20, point.length - offset))
        point.read_into(offset, memoryview(piece))
        digest.update(piece)
    point.close(keep=True)
    return point.identity, point.token, digest.digest()
