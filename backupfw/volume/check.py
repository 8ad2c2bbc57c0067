"""Proves that a volume back end can be used, with a small volume of its own: what an operator asks for."""

from __future__ import annotations

import os
import uuid
from collections.abc import Generator

from backupfw.volume.base import SnapshotRef, VolumeProvider, VolumeRef

_LENGTH = 1 << 20


def check(provider: VolumeProvider) -> Generator[str, None, None]:
    """Make a volume, write and read it, take a snapshot, extend and delete both; yield what has been proven.

    Closing the iterator early deletes them, too.

    :raises Exception: the provider's own error, if it cannot do one of these.
    """
    content = os.urandom(_LENGTH)
    half = _LENGTH // 2
    volume = VolumeRef(str(uuid.uuid4()), _LENGTH)
    snapshot = SnapshotRef(str(uuid.uuid4()), volume, _LENGTH)
    try:
        volume = VolumeRef(volume.id, _LENGTH, provider.create(volume, None))
        yield "makes a volume"
        with provider.open_target(volume, 1) as target:
            target.write(0, [content[:half], content[half:]])
            target.flush()
        _expect(provider, volume, content)
        yield "writes and reads it"
        snapshot = SnapshotRef(snapshot.id, volume, _LENGTH)
        snapshot = SnapshotRef(snapshot.id, volume, _LENGTH, provider.create_snapshot(snapshot, False))
        with provider.open_target(volume, 2) as target:
            target.zero(0, _LENGTH)
            target.flush()
        _expect(provider, snapshot, content)
        yield "takes a snapshot, which does not change when the volume is written"
        provider.extend(volume, 2 * _LENGTH)
        volume = VolumeRef(volume.id, 2 * _LENGTH, volume.location)
        _expect(provider, volume, bytes(2 * _LENGTH))
        yield "extends the volume, with zeros"
    finally:
        provider.delete_snapshot(snapshot)
        provider.delete(volume)
    yield "deletes both"


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
