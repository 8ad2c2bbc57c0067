"""Images with mixed content: text-like, random and zero, a third each."""

from __future__ import annotations

import os
import random

MIB = 1 << 20
#: Bytes of one kind in a row; no multiple of a segment, so every segment has all kinds.
_STRETCH = 3 * MIB
_WORDS = 4096


def text(rng: random.Random, length: int) -> bytes:
    """Return text-like bytes: words of a small vocabulary, common ones more often."""
    words = [rng.randbytes(rng.randint(2, 6)).hex().encode() for _ in range(_WORDS)]
    weights = [1 / (rank + 1) for rank in range(_WORDS)]
    data = b" ".join(rng.choices(words, weights, k=length // 6))
    return data[:length]


def make_mixed(path: str, length: int, seed: int = 7, virtual_length: int | None = None) -> None:
    """Write an image: stretches of text, random bytes and (a hole) zeros.

    :param virtual_length: length of the file, the rest of it a hole; None: ``length``.
    """
    rng = random.Random(seed)
    prose = text(rng, 8 * MIB)
    with open(path, "wb") as file:
        for number, offset in enumerate(range(0, length, _STRETCH)):
            size = min(_STRETCH, length - offset)
            if number % 3 == 0:
                start = rng.randrange(len(prose) - size)
                os.pwrite(file.fileno(), prose[start : start + size], offset)
            elif number % 3 == 1:
                os.pwrite(file.fileno(), rng.randbytes(size), offset)
        file.truncate(length if virtual_length is None else virtual_length)


def rewrite(path: str, unit: int, share: float, seed: int) -> int:
    """Overwrite uniformly random units of an image (random and text-like content in turn).

    :param unit: bytes of a unit: a page or a block.
    :param share: part of all units that is overwritten.
    :returns: bytes written.
    """
    rng = random.Random(seed)
    prose = text(rng, MIB)
    length = os.path.getsize(path)
    units = rng.sample(range(length // unit), int(length // unit * share))
    with open(path, "r+b") as file:
        for number, index in enumerate(units):
            start = rng.randrange(len(prose) - unit)
            data = rng.randbytes(unit) if number % 2 else prose[start : start + unit]
            os.pwrite(file.fileno(), data, index * unit)
    return len(units) * unit
