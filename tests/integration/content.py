"""Volume content that looks like real volumes: text-like, random and zero parts, reproducible."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from pathlib import Path
from typing import BinaryIO

MIB = 1 << 20


def write_image(path: Path, length: int, seed: int = 1) -> None:
    """Write a sparse image: about a third each of text-like data, random data and holes."""
    with open(path, "wb") as image:
        image.truncate(length)
    write_content(path, length, seed)


def write_content(path: Path, length: int, seed: int = 1) -> None:
    """Write the first bytes of an image that is all hole, as :func:`write_image` does."""
    rng = random.Random(seed)
    words = [bytes(rng.choices(range(97, 123), k=rng.randint(2, 10))) for _ in range(500)]
    with open(path, "r+b") as image:
        offset = 0
        while offset < length:
            size = min(rng.choice((4096, 65536, 300_000, MIB)), length - offset)
            kind = rng.randrange(3)
            if kind == 0:
                image.seek(offset)
                image.write(b" ".join(rng.choices(words, k=size // 4 + 2))[:size])
            elif kind == 1:
                image.seek(offset)
                image.write(rng.randbytes(size))
            offset += size


def change_image(path: Path, seed: int, changes: int = 20, length: int | None = None) -> None:
    """Rewrite some places of an image, or of its first bytes, in place, some of them with zeros."""
    rng = random.Random(seed)
    length = length or path.stat().st_size
    with open(path, "r+b") as image:
        for number in range(changes):
            size = rng.choice((512, 4096, 70_000))
            image.seek(rng.randrange(max(1, length - size)))
            image.write(bytes(size) if number % 3 == 0 else rng.randbytes(size))
        image.flush()
        os.fsync(image.fileno())


def same_content(one: Path, two: Path, length: int) -> bool:
    """Compare the first ``length`` bytes of two files or devices; what is a hole in both is not read."""
    with open(one, "rb") as first, open(two, "rb") as second:
        done = 0
        while (done := min(_next_data(first, done), _next_data(second, done))) < length:
            size = min(MIB, length - done)
            left, right = (os.pread(file.fileno(), size, done) for file in (first, second))
            if left != right or len(left) != size:
                return False
            done += size
    return True


def digest(path: Path) -> str:
    """Return a digest of a file's length and of every byte; quick where there is nothing but zeros."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        length, offset = path.stat().st_size, 0
        while (offset := _next_data(file, offset)) < length:
            offset -= offset % MIB
            data = os.pread(file.fileno(), MIB, offset)
            if data != bytes(len(data)):
                found.update(offset.to_bytes(8, "big") + data)
            offset += MIB
    found.update(length.to_bytes(8, "big"))
    return found.hexdigest()


def _next_data(file: BinaryIO, offset: int) -> int:
    """Return where the first byte at or behind an offset is that is in no hole, or the end of the file."""
    try:
        return os.lseek(file.fileno(), offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            # There is no more.
            return max(offset, os.lseek(file.fileno(), 0, os.SEEK_END))
        # A device knows of no holes.
        return offset
