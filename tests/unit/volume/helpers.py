"""What the volume tests share: providers, and a volume's bytes as a model."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import strategies as st

from backupfw.volume.base import BlockTarget, Kind, Point, SnapshotRef, VolumeRef
from backupfw.volume.local import linux
from backupfw.volume.local.options import local_options
from backupfw.volume.local.provider import LocalProvider

#: A piece of a model history: what, where, how long, with which byte.
Step = tuple[str, int, int, int]


def make_provider(directory: Path, **options: object) -> LocalProvider:
    """A provider with quick waits."""
    values = {opt.dest: opt.default for opt in local_options()}
    values |= {"volumes_dir": str(directory / "volumes"), "snapshot_settle": 0.05, "fence_wait": 0.3}
    unknown = options.keys() - values.keys()
    assert not unknown
    return LocalProvider(type("Options", (), values | options)())


def new_volume(provider: LocalProvider, volume_id: str, content: bytes | int) -> VolumeRef:
    """Make a volume: of zeros, given a length, or with content."""
    length = content if isinstance(content, int) else len(content)
    volume = VolumeRef(volume_id, length, provider.create(VolumeRef(volume_id, length), None))
    if isinstance(content, bytes):
        Path(provider.where(volume)).write_bytes(content)
    return volume


def take_snapshot(provider: LocalProvider, volume: VolumeRef, snapshot_id: str, in_use: bool) -> SnapshotRef:
    location = provider.create_snapshot(SnapshotRef(snapshot_id, volume, volume.length), in_use)
    return SnapshotRef(snapshot_id, volume, volume.length, location)


def read_all(provider: LocalProvider, ref: VolumeRef | SnapshotRef) -> bytes:
    """Read as the engine does: data where the source has some, zeros elsewhere."""
    with provider.open_point(ref, "p") as source:
        result = bytearray(source.length)
        for offset, length in data_of(source, 0, source.length):
            source.read_into(offset, memoryview(result)[offset : offset + length])
    return bytes(result)


def data_of(point: Point, start: int, end: int) -> list[tuple[int, int]]:
    """Return ``(offset, length)`` of the data in a range, after a look at the extents around it."""
    found = []
    for extent in point.extents(start, end) if start < end else ():
        assert extent.offset == start
        assert extent.length > 0
        assert extent.kind in (Kind.DATA, Kind.ZERO)
        start = extent.end
        if extent.kind is Kind.DATA:
            found.append((extent.offset, extent.length))
    assert start == end
    return found


def steps(length: int, kinds: tuple[str, ...], longest: int | None = None) -> st.SearchStrategy[list[Step]]:
    """Draw histories of steps within ``length``; edges at and near blocks are drawn often."""
    near_edges = st.builds(
        lambda block, shift: max(0, min(length, block * 4096 + shift)),
        st.integers(0, length // 4096),
        st.sampled_from([0, 0, 1, -1, 511, 512, 513]),
    )
    offsets = st.one_of(near_edges, st.integers(0, length))
    limit = length if longest is None else longest

    def step(kind: str, one: int, other: int, byte: int) -> Step:
        start, end = sorted((one, other))
        return kind, start, min(end - start, limit), byte

    return st.lists(
        st.builds(step, st.sampled_from(kinds), offsets, offsets, st.integers(1, 255)),
        min_size=1,
        max_size=12,
    )


def play_on_target(target: BlockTarget, model: bytearray, history: list[Step]) -> None:
    """Write and zero the target and the model alike."""
    for kind, offset, length, byte in history:
        if kind == "write":
            data = bytes([byte]) * length
            cut = length // 3
            target.write(offset, [data[:cut], memoryview(data)[cut:]])
            model[offset : offset + length] = data
        else:
            target.zero(offset, length)
            model[offset : offset + length] = bytes(length)


def play_on_file(fd: int, model: bytearray, history: list[Step]) -> None:
    """Write and punch the file and the model alike."""
    for kind, offset, length, byte in history:
        if length == 0:
            continue
        if kind == "write":
            os.pwrite(fd, bytes([byte]) * length, offset)
            model[offset : offset + length] = bytes([byte]) * length
        else:
            linux.punch_hole(fd, offset, length)
            model[offset : offset + length] = bytes(length)
