"""What a point says and reads, checked against the bytes that it must have."""

from __future__ import annotations

from collections.abc import Sequence

from backupfw.testing.suite.adoption import require_bytes
from backupfw.testing.volume.disk import Disk
from backupfw.volume.base import Extent, Kind, Point

#: Bytes of a read: odd, so that reads begin and end anywhere.
_READ = (1 << 20) + 13


def check_extents(
    point: Point, disk: Disk, start: int, end: int, since: str | None = None, was: Disk | None = None
) -> Sequence[Extent]:
    """Fail if the extents of a range are not in order, have gaps, or lie; return them.

    :param disk: the bytes of the point.
    :param was: the bytes of the point with the token ``since``.
    """
    at = start
    found = []
    for extent in point.extents(start, end, since):
        assert extent.offset == at, f"an extent begins at {extent.offset} instead of {at}"
        assert 0 < extent.length <= end - at, f"{extent} in {start} … {end}"
        if extent.kind is Kind.ZERO:
            byte = disk.first_not_zero(extent.offset, extent.length)
            assert byte is None, f"{extent} is said to be zeros, but byte {byte} is not"
        elif extent.kind is Kind.SAME:
            assert was is not None, f"{extent} without a point to compare with"
            assert extent.end <= was.length, f"{extent} is behind the old end {was.length}"
            byte = disk.first_unlike(was, extent.offset, extent.length)
            assert byte is None, f"{extent} is said to be unchanged, but byte {byte} is not"
        else:
            assert extent.kind is Kind.DATA
        at = extent.end
        found.append(extent)
    assert at == end, f"the extents of {start} … {end} end at {at}"
    return found


def check_range(point: Point, disk: Disk, start: int, end: int) -> None:
    """Fail unless a range reads as it must."""
    for offset in range(start, end, _READ):
        found = bytearray(min(_READ, end - offset))
        point.read_into(offset, memoryview(found))
        require_bytes(bytes(found), disk.read(offset, len(found)), offset)


def check_point(point: Point, disk: Disk) -> None:
    """Fail unless a point is what it must be: its length, its extents and its bytes."""
    assert point.length == disk.length
    for extent in check_extents(point, disk, 0, point.length):
        if extent.kind is not Kind.ZERO:
            check_range(point, disk, extent.offset, extent.end)


def check_compared(
    point: Point, disk: Disk, since: str, was: Disk, *, must: bool = False
) -> Sequence[Extent] | None:
    """Compare a point with an earlier one; fail if it lies; return the extents, None if it refuses.

    :param must: fail if it refuses.
    """
    if (reason := point.compare(since)) is not None:
        check_reason(reason)
        assert not must, f"the token of a point that is kept is refused: {reason}"
        return None
    # In parts first: what is said of a part may not depend on what was asked before.
    third = point.length // 3
    for start, end in ((third, 2 * third + 1), (0, 1), (point.length - 1, point.length)):
        check_extents(point, disk, start, end, since, was)
    return check_extents(point, disk, 0, point.length, since, was)


def check_reason(reason: str) -> None:
    """Fail unless users can be shown why there is no comparison."""
    assert isinstance(reason, str)
    assert reason, "no reason is given"
    assert not reason[0].isupper(), f"begins with a capital: {reason!r}"
    assert len(reason) < 200, f"more than a few words: {reason!r}"
    assert "\n" not in reason
    for word in ("://", " /", "'/"):
        assert word not in reason, f"names an endpoint or a path: {reason!r}"


def to_look_at(extents: Sequence[Extent]) -> int:
    """Return how many bytes are not said to be unchanged."""
    return sum(extent.length for extent in extents if extent.kind is not Kind.SAME)
