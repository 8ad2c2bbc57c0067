"""The bare loops: the unavoidable work and nothing else, with the engine's block size and threads."""

from __future__ import annotations

import itertools
import os
import pickle
import threading
import time
from collections.abc import Callable

import zstandard
from blake3 import blake3

BLOCK = 64 << 10
SEGMENT = 256 << 20
READ = 1 << 20
PACK = 32 << 20


def parallel(work: Callable[[int], None], threads: int) -> float:
    """Run ``work(0 … threads - 1)`` in threads and return the seconds it took."""
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    pool = [threading.Thread(target=guarded, args=(number,)) for number in range(threads)]
    begin = time.perf_counter()
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    if errors:
        raise errors[0]
    return time.perf_counter() - begin


def _runs(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    found = []
    while start < end:
        try:
            data = os.lseek(fd, start, os.SEEK_DATA)
        except OSError:
            break
        if data >= end:
            break
        start = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        found.append((data - data % BLOCK, min(-(-start // BLOCK) * BLOCK, end)))
    return found


def backup(
    image: str,
    out: str,
    threads: int,
    level: int = 1,
    changed: frozenset[int] | None = None,
    put: Callable[[int, str, memoryview], None] | None = None,
) -> float:
    """Read what is no hole, hash it, compress what is not zero, write it.

    :param changed: blocks to compress and write; None: all.
    :param put: stores an object, given the thread, a key and the bytes; None: they go to a file.
    :returns: seconds.
    """
    length = os.path.getsize(image)
    zeros = bytearray(BLOCK)

    def work(number: int) -> None:
        fd = os.open(image, os.O_RDONLY)
        sink = os.open(f"{out}.{number}", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        packs = itertools.count()

        def write(data: memoryview) -> None:
            if put is None:
                os.write(sink, data)
            else:
                put(number, f"{number}-{next(packs)}", data)

        buffer = memoryview(bytearray(READ))
        pack = memoryview(bytearray(PACK + BLOCK))
        compress = zstandard.ZstdCompressor(level=level).compress
        filled = 0
        for start in range(number * SEGMENT, length, threads * SEGMENT):
            for first, last in _runs(fd, start, min(start + SEGMENT, length)):
                for offset in range(first, last, READ):
                    view = buffer[: min(READ, last - offset)]
                    os.preadv(fd, [view], offset)
                    for at in range(0, len(view), BLOCK):
                        block = view[at : at + BLOCK]
                        if zeros == block:
                            continue
                        blake3(block).digest()
                        if changed is not None and (offset + at) // BLOCK not in changed:
                            continue
                        data = compress(block)
                        size = len(data)
                        pack[filled : filled + size] = data
                        filled += size
                        if filled >= PACK:
                            write(pack[:filled])
                            filled = 0
        if filled:
            write(pack[:filled])
        os.close(fd)
        os.close(sink)

    return parallel(work, threads)


def prepare_restore(image: str, out: str, threads: int, level: int = 1) -> None:
    """Write, per thread, what :func:`restore` reads: compressed blocks and where they belong."""
    length = os.path.getsize(image)
    zeros = bytes(BLOCK)
    compress = zstandard.ZstdCompressor(level=level).compress
    with open(image, "rb") as file:
        for number in range(threads):
            index = []
            with open(f"{out}.{number}", "wb") as sink:
                for start in range(number * SEGMENT, length, threads * SEGMENT):
                    for first, last in _runs(file.fileno(), start, min(start + SEGMENT, length)):
                        for offset in range(first, last, BLOCK):
                            block = os.pread(file.fileno(), min(BLOCK, last - offset), offset)
                            if block == zeros[: len(block)]:
                                continue
                            data = compress(block)
                            raw = len(data) > len(block) * 15 // 16
                            data = block if raw else data
                            index.append((offset, sink.tell(), len(data), raw, blake3(block).digest()))
                            sink.write(data)
            with open(f"{out}.{number}.index", "wb") as index_file:
                pickle.dump(index, index_file)


def restore(
    out: str,
    target: str,
    length: int,
    threads: int,
    get: Callable[[int, int, int], bytes] | None = None,
) -> float:
    """Read, decompress, hash and compare, write; joined where blocks are adjacent.

    :param get: returns bytes, given the thread, offset and length; None: they come from a file.
    """
    with open(target, "wb") as file:
        file.truncate(length)
    indexes = []
    for number in range(threads):
        with open(f"{out}.{number}.index", "rb") as index_file:
            indexes.append(pickle.load(index_file))

    def work(number: int) -> None:
        source = os.open(f"{out}.{number}", os.O_RDONLY)
        sink = os.open(target, os.O_RDWR)
        decompress = zstandard.ZstdDecompressor().decompress
        index = indexes[number]
        place = 0
        while place < len(index):
            start = index[place][1]
            stop = place
            while stop < len(index) and index[stop][1] + index[stop][2] - start <= 8 << 20:
                stop += 1
            end = index[stop - 1][1] + index[stop - 1][2]
            if get is None:
                data = memoryview(os.pread(source, end - start, start))
            else:
                data = memoryview(get(number, start, end - start))
            joined: list[bytes | memoryview] = []
            begin = following = index[place][0]
            for offset, at, size, raw, digest in index[place:stop]:
                block = data[at - start : at - start + size]
                plain = block if raw else decompress(block)
                if blake3(plain).digest() != digest:
                    raise ValueError("wrong digest")
                if offset != following or len(joined) == 16:
                    os.pwritev(sink, joined, begin)
                    joined, begin = [], offset
                joined.append(plain)
                following = offset + len(plain)
            os.pwritev(sink, joined, begin)
            place = stop
        os.close(source)
        os.close(sink)

    return parallel(work, threads)


def hashing_rate() -> float:
    """Return bytes per second of BLAKE3 alone over blocks, one thread."""
    block = os.urandom(BLOCK)
    count = 4000
    begin = time.perf_counter()
    for _ in range(count):
        blake3(block).digest()
    return count * BLOCK / (time.perf_counter() - begin)


def zstd_rates(sample: bytes, level: int = 1) -> tuple[float, float]:
    """Return bytes per second of compressing and of decompressing the sample's blocks, one thread."""
    blocks = [sample[at : at + BLOCK] for at in range(0, len(sample), BLOCK)]
    compress = zstandard.ZstdCompressor(level=level).compress
    begin = time.perf_counter()
    packed = [compress(block) for block in blocks]
    middle = time.perf_counter()
    decompress = zstandard.ZstdDecompressor().decompress
    for data in packed:
        decompress(data)
    return len(sample) / (middle - begin), len(sample) / (time.perf_counter() - middle)
