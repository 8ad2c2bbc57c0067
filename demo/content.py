"""What the demo's volumes hold: text-like, random and zero pieces, the same at every run."""

from __future__ import annotations

import os
import random
from pathlib import Path

MIB = 1 << 20
BLOCK = 64 << 10


def _text(rng: random.Random, length: int) -> bytes:
    """Return text-like bytes: words of a small vocabulary, which compress about as prose does."""
    words = [
        bytes(rng.choices(b"aabcdeeefghiiklmnoooprrssttuuvwy", k=rng.randint(2, 10))) for _ in range(3000)
    ]
    parts: list[bytes] = []
    have = 0
    while have < length:
        piece = b" ".join(rng.choices(words, k=20_000))
        parts.append(piece)
        have += len(piece) + 1
    return b"\n".join(parts)[:length]


def write_image(path: Path, mib: int, seed: int = 1) -> None:
    """Write a raw image: of every 8 MiB three text-like, three random, one zero and one a hole."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        for start in range(0, mib, 8):
            file.seek(start * MIB)
            file.write(_text(rng, 3 * MIB))
            file.write(rng.randbytes(3 * MIB))
            file.write(bytes(MIB))
        file.truncate(mib * MIB)


def change(path: Path, mib: int, seed: int = 2) -> int:
    """Change a volume in place as somebody who uses it would; returns the bytes that differ now at most.

    Some 64 KiB pieces get new bytes, and two stretches that held data become zeros: one written over with
    zeros, one punched out.
    """
    rng = random.Random(seed)
    changed = 0
    with path.open("r+b") as file:
        for _ in range(32):
            file.seek(rng.randrange(mib * MIB // BLOCK) * BLOCK)
            changed += file.write(rng.randbytes(BLOCK))
        file.seek(8 * MIB)
        changed += file.write(bytes(2 * MIB))
        file.flush()
        # The text after the next 8 MiB: gone from the file, not only overwritten.
        _punch(file.fileno(), 16 * MIB, MIB)
        changed += MIB
        os.fsync(file.fileno())
    return changed


def _punch(descriptor: int, offset: int, length: int) -> None:
    """Make a range a hole, where the file system can; write zeros elsewhere."""
    import ctypes

    keep_size_and_punch_hole = 0x01 | 0x02
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.fallocate(
        ctypes.c_int(descriptor),
        ctypes.c_int(keep_size_and_punch_hole),
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    )
    if done != 0:
        os.pwrite(descriptor, bytes(length), offset)


def write_dirt(path: Path, mib: int, seed: int = 3) -> None:
    """Write random bytes everywhere: no zero of the backup may shine through them."""
    rng = random.Random(seed)
    with path.open("wb") as file:
        for _ in range(mib):
            file.write(rng.randbytes(MIB))


def first_difference(one: Path, other: Path) -> int | None:
    """Compare two volumes byte for byte; returns the first offset that differs, None when none does."""
    if one.stat().st_size != other.stat().st_size:
        return min(one.stat().st_size, other.stat().st_size)
    offset = 0
    with one.open("rb") as left, other.open("rb") as right:
        while True:
            a, b = left.read(4 * MIB), right.read(4 * MIB)
            if a != b:
                return offset + next(at for at, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
            if not a:
                return None
            offset += len(a)
