"""Which blocks of a source have to be looked at: its extents, widened to whole blocks and joined."""

from __future__ import annotations

from collections.abc import Iterator

from backupfw.engine.format.geometry import Geometry
from backupfw.volume.base import BlockSource


def block_runs(source: BlockSource, geometry: Geometry, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield ``(first, end)`` offsets of runs of blocks that may hold data within ``start … end``.

    ``start`` and ``end`` lie on segment bounds (or at the volume's end), so runs of two ranges never
    share a block and their lengths add up.
    """
    block = geometry.block_size
    run_start = run_end = start
    for offset, length in source.data_extents(start, end):
        first = max(offset - offset % block, start)
        last = min(-(-(offset + length) // block) * block, end)
        if first <= run_end:
            run_end = max(run_end, last)
            continue
        if run_end > run_start:
            yield run_start, run_end
        run_start, run_end = first, last
    if run_end > run_start:
        yield run_start, run_end


def data_segments(source: BlockSource, geometry: Geometry) -> Iterator[int]:
    """Yield the indexes of the segments that may hold data, ascending; holes cost nothing."""
    position = 0
    while position < geometry.length:
        extent = next(iter(source.data_extents(position, geometry.length)), None)
        if extent is None:
            return
        index = max(extent[0], position) // geometry.segment_size
        yield index
        position = (index + 1) * geometry.segment_size
