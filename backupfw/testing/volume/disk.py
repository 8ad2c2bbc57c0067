"""The bytes that a volume must have: the model against which points are checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

_PAGE = 4096
_ZEROS = bytes(_PAGE)


class Disk:
    """The bytes of a volume; pages of zeros take no memory, so it may be large.

    :param length: bytes.
    :param pages: the pages that are not all zeros, by number.
    """

    def __init__(self, length: int, pages: Mapping[int, bytes] | None = None) -> None:
        self.length = length
        self._pages = dict(pages or {})

    def copy(self) -> Disk:
        """Return the bytes as they are now."""
        return Disk(self.length, self._pages)

    def read(self, offset: int, length: int) -> bytes:
        """Return a range."""
        return b"".join(
            self._pages.get(number, _ZEROS)[first:last] for number, first, last in _split(offset, length)
        )

    def write(self, offset: int, data: bytes) -> None:
        """Replace a range."""
        assert offset + len(data) <= self.length
        at = 0
        for number, first, last in _split(offset, len(data)):
            page = bytearray(self._pages.get(number, _ZEROS))
            page[first:last] = data[at : at + last - first]
            at += last - first
            if any(page):
                self._pages[number] = bytes(page)
            else:
                self._pages.pop(number, None)

    def zero(self, offset: int, length: int) -> None:
        """Make a range zeros."""
        self.write(offset, bytes(length))

    def resize(self, length: int) -> None:
        """Cut the end, or add zeros there."""
        if length < self.length:
            self.zero(length, self.length - length)
        self.length = length

    def first_not_zero(self, offset: int, length: int) -> int | None:
        """Return where the first byte of a range is that is not zero; None: all are."""
        return self.first_unlike(Disk(self.length), offset, length)

    def first_unlike(self, other: Disk, offset: int, length: int) -> int | None:
        """Return where a range first differs from the same range of another disk; None: nowhere."""
        first, last = offset // _PAGE, (offset + length - 1) // _PAGE
        for number in sorted(self._pages.keys() | other._pages.keys()):
            if not first <= number <= last:
                continue
            start, end = max(offset, number * _PAGE), min(offset + length, (number + 1) * _PAGE)
            mine, theirs = self.read(start, end - start), other.read(start, end - start)
            for at, (one, two) in enumerate(zip(mine, theirs, strict=True)):
                if one != two:
                    return start + at
        return None


def _split(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, first, last) of the part that a range has of each of its pages."""
    end = offset + length
    while offset < end:
        number, first = divmod(offset, _PAGE)
        last = min(_PAGE, end - number * _PAGE)
        yield number, first, last
        offset = number * _PAGE + last
