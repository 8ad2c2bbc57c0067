"""Writes a growing number at two places of a file, always the first place first, as fast as it can.

Arguments: path, first offset, second offset, how (``pwrite`` or ``mmap``).
"""

from __future__ import annotations

import itertools
import mmap
import os
import sys


def main() -> None:
    path, first, second, how = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    fd = os.open(path, os.O_RDWR)
    mapped = mmap.mmap(fd, 0)
    print("ready", flush=True)
    for number in itertools.count(1):
        data = number.to_bytes(8, "big")
        for offset in (first, second):
            if how == "mmap":
                mapped[offset : offset + 8] = data
            else:
                os.pwrite(fd, data, offset)


main()
