"""Tests of targets and their fence, and of storage that is not what the catalogue says: V15 to V17."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import pytest

from backupfw.errors import StorageChanged, TargetError
from backupfw.testing.volume.adoption import REFUSALS, Adoption, Subject, adopted, new_id
from backupfw.testing.volume.checking import check_point
from backupfw.volume.base import BlockTarget, VolumeProvider

THREADS = 8


class TargetTests(Adoption):
    """Tests of writing."""

    def test_v15_what_is_written_is_there(self, server: Any, volume: Subject) -> None:
        _require_writes(volume.provider)
        noise = random.Random(15)
        with volume.provider.open_target(volume.ref, 1) as target:
            assert target.length == volume.disk.length
            end = target.length
            for offset, length in ((1, 1), (511, 2), (4095, 70_003), (end // 2, 200_001), (end - 777, 777)):
                data = noise.randbytes(length)
                cut = length // 3
                target.write(offset, [data[:cut], b"", memoryview(data)[cut:]])
                volume.disk.write(offset, data)
            runs = [(offset, [noise.randbytes(5000), noise.randbytes(1)]) for offset in (10_000, 90_001)]
            target.write_runs(runs)
            for offset, buffers in runs:
                volume.disk.write(offset, b"".join(buffers))
            target.flush()
            volume.check_storage()
        with self.open_provider(server).open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)
        if "restart_server" not in self.declared:
            self.restart_server(server)
            volume.check_storage()

    def test_v15_zeros(self, volume: Subject) -> None:
        _require_writes(volume.provider)
        volume.write(0, b"\xff" * self.length)
        with volume.provider.open_target(volume.ref, 1) as target:
            end = target.length
            for offset, length in ((1, 1), (4000, 200), (end // 3, end // 3 + 1), (end - 12_345, 12_345)):
                target.zero(offset, length)
                volume.disk.zero(offset, length)
            target.flush()
        volume.check_storage()
        with volume.provider.open_target(volume.ref, 2) as target:
            target.zero(0, target.length)
            volume.disk.zero(0, target.length)
            target.flush()
        volume.check_storage()

    def test_v15_reads_zero_is_no_lie(self, server: Any, provider: VolumeProvider) -> None:
        _require_writes(provider)
        volume = Subject(self, server, provider, self.length)
        with provider.open_target(volume.ref, 1) as target:
            target.write(self.length // 2, [b"written"])
            volume.disk.write(self.length // 2, b"written")
            target.flush()
        for attempt in (2, 3):
            with provider.open_target(volume.ref, attempt) as target:
                # Whoever is told so leaves out the zeros.
                if target.reads_zero:
                    volume.disk.zero(0, self.length)
        volume.check_storage()
        volume.write(0, b"x")
        with provider.open_target(volume.ref, 4) as target:
            assert not target.reads_zero
        volume.remove()

    def test_v15_many_threads(self, volume: Subject) -> None:
        _require_writes(volume.provider)
        size = self.length // (THREADS * 5)
        noise = random.Random(16)
        pieces = [(number * size, noise.randbytes(size)) for number in range(THREADS * 5)]

        with volume.provider.open_target(volume.ref, 1) as target:

            def write(piece: tuple[int, bytes]) -> None:
                offset, data = piece
                target.write(offset, [data[: size // 2], data[size // 2 :]])
                target.zero(offset, 100)

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(write, pieces))
            target.flush()
        for offset, data in pieces:
            volume.disk.write(offset, bytes(100) + data[100:])
        volume.check_storage()

    def test_v15_closed_twice_and_used_no_more(self, volume: Subject) -> None:
        _require_writes(volume.provider)
        with volume.provider.open_target(volume.ref, 1) as target:
            target.close()
            target.close()
            with pytest.raises(REFUSALS):
                target.write(0, [b"late"])
        volume.check_storage()

    # ---- the fence -------------------------------------------------------------------------------

    def test_v16_an_earlier_writer_is_kept_out(self, server: Any, volume: Subject) -> None:
        _require_fences(volume.provider)
        uses: list[Callable[[BlockTarget], None]] = [
            lambda target: target.write(0, [b"late"]),
            lambda target: target.write_runs([(self.length // 2, [b"late"])]),
            lambda target: target.zero(0, self.length // 2),
        ]
        for number, provider in enumerate((volume.provider, self.open_provider(server))):
            with _lost(volume.provider.open_target(volume.ref, 10 * number + 1)) as earlier:
                earlier.write(100, [b"early"])
                with provider.open_target(volume.ref, 10 * number + 2) as later:
                    for use in uses:
                        with pytest.raises(REFUSALS):
                            _flushed(earlier, use)
                    later.write(100, [b"right"])
                    later.flush()
                    volume.disk.write(100, b"right")
                    volume.check_storage()
                    # Its end does not end the later one's.
                    earlier.close()
                    later.write(200, [b"right"])
                    later.flush()
                    volume.disk.write(200, b"right")
            volume.check_storage()

    def test_v16_the_earlier_one_is_refused(self, server: Any, volume: Subject) -> None:
        _require_fences(volume.provider)
        with volume.provider.open_target(volume.ref, 7) as target:
            for provider in (volume.provider, self.open_provider(server)):
                with pytest.raises(TargetError), provider.open_target(volume.ref, 6):
                    pass
            target.write(0, [b"right"])
            target.flush()
        volume.disk.write(0, b"right")
        volume.check_storage()

    def test_v16_one_of_many_at_once(self, volume: Subject) -> None:
        """Attempts that begin at the same moment: whatever the order, the last one's bytes stay."""
        _require_fences(volume.provider)
        start = threading.Barrier(4)

        def write(attempt: int) -> None:
            start.wait()
            try:
                with volume.provider.open_target(volume.ref, attempt) as target:
                    target.write(0, [bytes([attempt]) * 70_000])
                    target.flush()
            except REFUSALS:
                assert attempt < 4, "the latest attempt was kept out"

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(write, range(1, 5)))
        with volume.provider.open_point(volume.ref, new_id()) as point:
            found = bytearray(70_000)
            point.read_into(0, memoryview(found))
        assert len(set(found)) == 1, "two attempts wrote beside each other"

    # ---- storage that changed --------------------------------------------------------------------

    def test_v17_storage_that_is_gone(self, volume: Subject) -> None:
        self.require("lose")
        self.lose(volume.server, volume.ref)
        self.require_changed(volume)

    def test_v17_storage_that_is_shorter(self, volume: Subject) -> None:
        self.require("shrink")
        self.shrink(volume.server, volume.ref, self.whole(self.length // 2))
        self.require_changed(volume, targets=False)

    def test_v17_storage_that_is_another(self, server: Any, provider: VolumeProvider) -> None:
        self.require("swap")
        self.require("adoptable")
        ref = adopted(provider, self.adoptable(server, self.length))
        volume = Subject(self, server, provider, self.length, ref)
        self.swap(server, ref)
        self.require_changed(volume)
        volume.remove()

    def require_changed(self, volume: Subject, *, targets: bool = True) -> None:
        """Fail unless every way to open a volume finds that its storage is not what the catalogue says."""
        provider = volume.provider
        uses: list[Callable[[], Any]] = [
            lambda: provider.look(volume.ref),
            lambda: provider.open_point(volume.ref, new_id()).close(),
        ]
        if targets and provider.capabilities.writes:
            uses.append(lambda: provider.open_target(volume.ref, 1).__enter__().close())
        if "extend" not in self.declared:
            uses.append(lambda: provider.extend(volume.ref, self.whole(2 * self.length)))
        for use in uses:
            with pytest.raises(StorageChanged) as caught:
                use()
            assert caught.value.hint
            # What users read has no place in it.
            for place in (volume.ref.location, provider.where(volume.ref)):
                assert not place or place == volume.ref.id or place not in str(caught.value)


@contextmanager
def _lost(opened: AbstractContextManager[BlockTarget]) -> Iterator[BlockTarget]:
    """Open a target whose end may say that somebody else had the volume meanwhile."""
    with ExitStack() as stack:
        yield stack.enter_context(opened)
        with suppress(*REFUSALS):
            stack.close()


def _flushed(target: BlockTarget, use: Callable[[BlockTarget], None]) -> None:
    # Storage may keep a writer out only when its writes arrive there.
    use(target)
    target.flush()


def _require_writes(provider: VolumeProvider) -> None:
    if not provider.capabilities.writes:
        pytest.skip("declared: it does not write")


def _require_fences(provider: VolumeProvider) -> None:
    if not provider.capabilities.fences:
        pytest.skip("declared: it does not fence")
