"""Proves that a volume back end can be used, with a small volume of its own: what an operator asks for."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress

from backupfw.volume.base import SnapshotRef, VolumeProvider, VolumeRef

_LENGTH = 1 << 20


def check(provider: VolumeProvider) -> Generator[tuple[str, bool], None, None]:
    """Make a volume, write and read it, take a snapshot, extend and delete both.

    Closing the iterator early deletes them, too.

    :return: yields what has been proven, with True; what the provider says it cannot do is left out, and
        yielded with False.
    :raises Exception: the provider's own error, if it cannot do one of these.
    """
    able = provider.capabilities
    content = os.urandom(_LENGTH) if able.writes else bytes(_LENGTH)
    half = _LENGTH // 2
    volume = VolumeRef(str(uuid.uuid4()), _LENGTH)
    snapshot = SnapshotRef(str(uuid.uuid4()), volume, _LENGTH)
    with ExitStack() as made:
        made.enter_context(_at_the_end(lambda: provider.delete(volume)))
        volume = VolumeRef(volume.id, _LENGTH, provider.create(volume, None))
        yield "makes a volume", True
        if able.writes:
            with provider.open_target(volume, 1) as target:
                target.write(0, [content[:half], content[half:]])
                target.flush()
        _expect(provider, volume, content)
        yield "writes and reads it" if able.writes else "reads it", True
        if not able.writes:
            yield "it does not write", False
        if able.snapshots:
            snapshot = SnapshotRef(snapshot.id, volume, _LENGTH)
            made.enter_context(_at_the_end(lambda: provider.delete_snapshot(snapshot)))
            snapshot = SnapshotRef(snapshot.id, volume, _LENGTH, provider.create_snapshot(snapshot, False))
        if able.writes:
            with provider.open_target(volume, 2) as target:
                target.zero(0, _LENGTH)
                target.flush()
        if able.snapshots:
            _expect(provider, snapshot, content)
            unchanged = ", which does not change when the volume is written" if able.writes else ""
            yield f"takes a snapshot{unchanged}", True
        else:
            yield "it takes no snapshots", False
        provider.extend(volume, 2 * _LENGTH)
        volume = VolumeRef(volume.id, 2 * _LENGTH, volume.location)
        _expect(provider, volume, bytes(2 * _LENGTH))
        yield "extends the volume, with zeros", True
    yield "deletes both" if able.snapshots else "deletes it", True


@contextmanager
def _at_the_end(delete: Callable[[], None]) -> Iterator[None]:
    """Delete at the end of a ``with`` block; an error of the block is not replaced by one of the deletion."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            delete()
        raise
    delete()


def _expect(provider: VolumeProvider, ref: VolumeRef | SnapshotRef, content: bytes) -> None:
    point = provider.open_point(ref, str(uuid.uuid4()))
    try:
        found = bytearray(point.length)
        if len(found) == len(content):
            point.read_into(0, memoryview(found))
    finally:
        point.close(keep=False)
    if found != content:
        raise OSError("other bytes were read than were written")
