"""Proves that a volume back end can be used, with a small volume of its own: what an operator asks for."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import islice

from backupfw.errors import BackupfwError, InvalidInput, OperationNotSupported
from backupfw.volume.base import Kind, Needed, SnapshotRef, VolumeProvider, VolumeRef

_LENGTH = 1 << 20
_HALF = _LENGTH // 2


def check(provider: VolumeProvider) -> Generator[tuple[str, bool], None, None]:
    """Make a volume, write and read it, look for what changed, take a snapshot, extend and delete both.

    Closing the iterator early deletes them, too.

    :return: yields what has been proven, with True; what the provider says it cannot do is left out, and
        yielded with False.
    :raises Exception: the provider's own error, if it cannot do one of these.
    """
    able = provider.capabilities
    content = os.urandom(_LENGTH) if able.writes else bytes(_LENGTH)
    volume = VolumeRef(str(uuid.uuid4()), _LENGTH)
    snapshot = SnapshotRef(str(uuid.uuid4()), volume, _LENGTH)
    with ExitStack() as made:
        made.enter_context(_at_the_end(lambda: provider.delete(volume)))
        try:
            volume = VolumeRef(volume.id, _LENGTH, provider.create(volume, None))
        except (InvalidInput, OperationNotSupported):
            yield "it makes no volumes: they are adopted", False
            yield from _listed(provider)
            return
        made.enter_context(_at_the_end(lambda: provider.keep_points(volume, Needed)))
        yield "makes a volume", True
        if able.writes:
            with provider.open_target(volume, 1) as target:
                target.write(0, [content[:_HALF], content[_HALF:]])
                target.flush()
        _expect(provider, volume, content)
        yield "writes and reads it" if able.writes else "reads it", True
        if able.writes:
            yield from _points(provider, volume, content)
        else:
            yield "it does not write", False
        if able.snapshots:
            snapshot = SnapshotRef(snapshot.id, volume, _LENGTH)
            made.enter_context(_at_the_end(lambda: provider.delete_snapshot(snapshot)))
            snapshot = SnapshotRef(snapshot.id, volume, _LENGTH, provider.create_snapshot(snapshot, False))
        if able.writes:
            with provider.open_target(volume, 5) as target:
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


def _listed(provider: VolumeProvider) -> Iterator[tuple[str, bool]]:
    try:
        list(islice(provider.adoptable(), 1))
    except OperationNotSupported:
        yield "it does not list what can be adopted", False
    else:
        yield "lists what can be adopted", True


def _points(provider: VolumeProvider, volume: VolumeRef, content: bytes) -> Iterator[tuple[str, bool]]:
    """Look for what changed, and whether earlier writers are kept out; the volume's bytes stay the same."""
    able = provider.capabilities
    if able.changes:
        _find_change(provider, volume, content)
        yield "knows what changed, and removes the points that are not needed", True
    else:
        yield "it does not know what changed", False
    if not able.fences:
        yield "it does not keep earlier writers out", False
        return
    with provider.open_target(volume, 3) as earlier, provider.open_target(volume, 4) as later:
        with suppress(BackupfwError, OSError, ValueError):
            earlier.write(_HALF, [b"late"])
            earlier.flush()
        later.flush()
    _expect(provider, volume, content)
    yield "keeps an earlier writer out", True


def _find_change(provider: VolumeProvider, volume: VolumeRef, content: bytes) -> None:
    """Make a point, write, and let another point say what changed.

    :raises OSError: it says what is not so, or something of the points stays.
    """
    first = provider.open_point(volume, str(uuid.uuid4()))
    token = first.token
    first.close(keep=True)
    with provider.open_target(volume, 2) as target:
        target.write(0, [bytes([content[0] ^ 1])])
        target.flush()
    with provider.open_point(volume, str(uuid.uuid4())) as point:
        problem = "it has no token" if token is None else point.compare(token)
        if token is None or problem is not None:
            raise OSError(f"a point that is kept cannot be compared with: {problem}")
        extent = next(point.extents(0, point.length, token))
        if extent.kind is not Kind.DATA:
            raise OSError(f"what was written is said to be {extent.kind.value}")
    provider.keep_points(volume, Needed)
    with provider.open_point(volume, str(uuid.uuid4())) as point:
        if point.compare(token) is None:
            raise OSError("a point that was removed is compared with")
    with provider.open_target(volume, 2) as target:
        target.write(0, [content[:1]])
        target.flush()


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
