"""What a snapshot of an image holds, and what changed in it since an earlier one.

Ceph answers the second question in two ways.  The object map is quick (``whole_object``), but says too
little after the image was rolled back to a snapshot older than the one that is compared with: what the
rollback changed back looks unchanged.  So it is asked only which objects there are.  For those, the cluster
is asked object by object (about 0.1 ms each): that is exact whatever happened, and names the bytes.  Without
a valid object map, all objects that the image could have are asked for.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import itemgetter
from typing import Any

from backupfw.volume.base import Extent, Kind
from backupfw_rbd.cluster import bindings

#: Two ranges with fewer bytes between them than so many objects are asked for at once.
_NEAR = 16

#: How many ranges are asked for at the same time.
_QUESTIONS = 4

#: ``(offset, end)`` of a range of bytes.
Range = tuple[int, int]


class Known:
    """What is known of the bytes of a point: some ranges are data or zeros, all others are ``rest``.

    :param data: in any order, may overlap.
    :param zeros: the same; where they overlap with data, it is data.
    """

    def __init__(self, data: Iterable[Range], zeros: Iterable[Range], rest: Kind) -> None:
        self._rest = rest
        merged = merge(data)
        pieces = [(*one, Kind.DATA) for one in merged]
        pieces += [(*one, Kind.ZERO) for one in without(merge(zeros), merged)]
        self._pieces = sorted(pieces, key=itemgetter(0))
        self._ends = [end for _, end, _ in self._pieces]

    def extents(self, start: int, end: int) -> Iterator[Extent]:
        """See :meth:`backupfw.volume.base.Point.extents`."""
        at = bisect.bisect_right(self._ends, start)
        while start < end:
            first, last, kind = self._pieces[at] if at < len(self._pieces) else (end, end, self._rest)
            first, last, at = max(first, start), min(last, end), at + 1
            if first >= end:
                first = last = end
            if first > start:
                yield Extent(start, first - start, self._rest)
            if last > first:
                yield Extent(first, last - first, kind)
            start = last

    @property
    def data(self) -> list[Range]:
        """The ranges that are data, ascending and apart."""
        return [(first, end) for first, end, kind in self._pieces if kind is Kind.DATA]


def allocated(image: Any) -> Known:
    """Find out what there is in an open snapshot, with what it inherits from a parent: the rest is zeros.

    By whole objects where the object map is valid.
    """
    found, _ = _difference(image, 0, image.size(), None, whole=has_object_map(image))
    return Known(found, (), Kind.ZERO)


def changed(image: Any, base: Any, base_name: str, here: Known) -> Known:
    """Find out what changed between two open snapshots of one image: the rest is the same.

    :param base: the earlier one, named ``base_name``.
    :param here: what there is in the later one.
    """
    length, before = image.size(), base.size()
    step = (1 << image.stat()["order"]) * image.stripe_count()
    asked: list[Range] = [(0, min(length, before))]
    if has_object_map(image) and has_object_map(base) and image.stripe_count() == 1:
        there = [*here.data, *allocated(base).data]
        asked = merge(_aligned(there, step, asked[0][1]), _NEAR * step)
    data, zeros = [], []
    with ThreadPoolExecutor(_QUESTIONS) as pool:
        for exists, gone in pool.map(
            lambda one: _difference(image, one[0], one[1] - one[0], base_name, whole=False), asked
        ):
            data += exists
            zeros += gone
    # What no object holds comes from the parent, as far as the image reaches into it.  That reach becomes
    # shorter with the image, or ends with a flatten, and no object tells.
    reach = sorted((image.overlap(), base.overlap()))
    data.append((reach[0], min(reach[1], length)))
    data += [(start, min(end, reach[1])) for start, end in zeros if start < reach[1]]
    # Behind the old end nothing can be the same.
    data += [(max(start, before), end) for start, end in here.data if end > before]
    zeros.append((before, length))
    return Known(data, zeros, Kind.SAME)


def has_object_map(image: Any) -> bool:
    """Return whether the object map of an open image or snapshot says which objects there are."""
    _, rbd = bindings()
    return bool(image.features() & rbd.RBD_FEATURE_FAST_DIFF) and not image.flags() & (
        rbd.RBD_FLAG_OBJECT_MAP_INVALID | rbd.RBD_FLAG_FAST_DIFF_INVALID
    )


def merge(ranges: Iterable[Range], near: int = 0) -> list[Range]:
    """Sort ranges, and join those that overlap, touch, or are not further apart than ``near`` bytes."""
    found: list[Range] = []
    for start, end in sorted(ranges):
        if start >= end:
            continue
        if found and start <= found[-1][1] + near:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def without(ranges: Sequence[Range], others: Sequence[Range]) -> Iterator[Range]:
    """Yield what of some ranges is in none of others; both ascend and are apart."""
    at = 0
    for start, end in ranges:
        while at < len(others) and others[at][1] <= start:
            at += 1
        index = at
        while start < end:
            first, last = others[index] if index < len(others) else (end, end)
            if first > start:
                yield start, min(first, end)
            start, index = max(start, last), index + 1


def _aligned(ranges: Iterable[Range], step: int, end: int) -> Iterator[Range]:
    for first, last in ranges:
        yield first - first % step, min(last + -last % step, end)


def _difference(
    image: Any, start: int, length: int, since: str | None, *, whole: bool
) -> tuple[list[Range], list[Range]]:
    """Ask what changed: the ranges that are there now, and those that are gone; in any order."""
    exists: list[Range] = []
    gone: list[Range] = []

    def note(offset: int, count: int, there: bool) -> None:
        (exists if there else gone).append((offset, offset + count))

    if length:
        image.diff_iterate(start, length, since, note, include_parent=True, whole_object=whole)
    return exists, gone
