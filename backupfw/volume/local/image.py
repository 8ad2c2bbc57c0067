"""Reads and writes an image of another format than raw, through qemu-nbd."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence

from backupfw.errors import OperationNotSupported, SourceMoved
from backupfw.volume.base import Kind, Point, Tick
from backupfw.volume.local.cache import CacheManners
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.image_chain import Chain
from backupfw.volume.local.qemu import ImageServer, image_node, program
from backupfw.volume.nbd.blocks import NbdPoint, NbdTarget

_SECTOR = 512
# Seconds in which a program that is left of a killed worker must be gone.
_LOCKED = 5.0
_PIECE = 1 << 20
# Granularity of zero detection in a copy.
_GRAIN = 64 << 10


class ImagePoint(NbdPoint):
    """An image that is read.  Thread-safe.

    QEMU's lock keeps machines from writing to it meanwhile, the times of its files show other writers.

    :param chain: its files, with ``close_file`` owned by this object from now on.
    :param close_file: closes the image's own file.
    :param name: begins the identity.
    """

    def __init__(
        self, chain: Chain, close_file: Callable[[], None], name: str, *, storage_id: str | None = None
    ) -> None:
        self._chain = chain
        self._close_file = close_file
        self._stamps = chain.stamps()
        self._manners = [
            (layer.fd, CacheManners(layer.fd, os.fstat(layer.fd).st_size)) for layer in chain.layers
        ]
        self._server: ImageServer | None = ImageServer(chain)
        client = self._server.client
        times = "/".join(f"{one.inode}.{one.length}.{one.modified}.{one.changed}" for one in self._stamps)
        super().__init__(client, f"{name}/{client.length}/{times}", storage_id=storage_id)

    def check_still(self) -> None:
        """Compare the times of all files with those at the opening."""
        if self._server is not None and self._chain.stamps() != self._stamps:
            raise SourceMoved("The volume was written while it was read.")

    def keep_file(self) -> None:
        """Leave the image's own file open at the end: it belongs to the caller again."""
        self._close_file = lambda: None

    def close(self, keep: bool = False) -> None:  # noqa: ARG002
        """End the process, and close the files."""
        server, self._server = self._server, None
        if server is None:
            return
        try:
            server.close()
        finally:
            for fd, manners in self._manners:
                manners.release(fd, 0, os.fstat(fd).st_size)
            self._chain.close()
            self._close_file()


class ImageTarget(NbdTarget):
    """An image that is written.  Thread-safe.

    Every call after :meth:`close` raises OSError; every call after a later attempt took the volume raises
    TaskLost.

    :param descriptor: the image, locked; owned by this object.
    :param server: owned by this object, with ``chain``.
    """

    def __init__(
        self, descriptor: Descriptor, server: ImageServer, chain: Chain, *, storage_id: str | None = None
    ) -> None:
        super().__init__(server.client, storage_id=storage_id)
        self._descriptor = descriptor
        self._server = server
        self._chain = chain
        # It has the lock, too, and must not write any more when a later attempt gets that.
        descriptor.before_close(server.kill)

    def write(self, offset: int, buffers: Sequence[bytes | memoryview]) -> None:
        """Write all buffers, one after the other, from ``offset``."""
        with self._descriptor:
            super().write(offset, buffers)

    def zero(self, offset: int, length: int) -> None:
        """Make the range unallocated, where the format can; else write zeros."""
        with self._descriptor:
            super().zero(offset, length)

    def flush(self) -> None:
        """Return when everything written so far is durable."""
        with self._descriptor:
            super().flush()

    def close(self) -> None:
        """End the process, and give up the lock."""
        try:
            self._server.close()
        finally:
            self._chain.close()
            self._descriptor.close()


def image_length(
    fd: int, format_: str, location: str, backing_dirs: Sequence[str], *, share: bool = False
) -> int:
    """Return the length of the disk in an image, in bytes.

    :param share: another program may use it.
    :raises Unusable: see :class:`Chain` and :class:`ImageServer`, as :class:`Locked`.
    """
    chain = Chain(fd, format_, location, backing_dirs)
    try:
        server = ImageServer(chain, share=share)
        try:
            return server.client.length
        finally:
            server.close()
    finally:
        chain.close()


def copy_still_point(point: Point, fd: int, tick: Tick, length: int | None = None) -> None:
    """Write the first ``length`` bytes of a point to an empty file, which stays sparse.

    :param length: all of it if None.
    :raises SourceMoved: it changed meanwhile.
    """
    length = point.length if length is None else length
    os.ftruncate(fd, length)
    buffer = memoryview(bytearray(_PIECE))
    zeros = bytes(_GRAIN)
    for extent in point.extents(0, length):
        tick()
        if extent.kind is Kind.ZERO:
            continue
        for start in range(extent.offset, extent.end, _PIECE):
            tick()
            piece = buffer[: min(_PIECE, extent.end - start)]
            point.read_into(start, piece)
            for at in range(0, len(piece), _GRAIN):
                grain = piece[at : at + _GRAIN]
                if bytes(grain) != zeros[: len(grain)]:
                    done = 0
                    while done < len(grain):
                        done += os.pwrite(fd, grain[done:], start + at + done)
    point.check_still()


def resize(chain: Chain, length: int) -> None:
    """Make an image longer.

    :param chain: its files; the image itself is open for writing.
    :raises OperationNotSupported: the format cannot grow.
    """
    if (format_ := chain.layers[0].format) != "qcow2":
        raise OperationNotSupported(f"A {format_} image cannot be extended here; convert it to qcow2 or raw.")
    files = [layer.fd for layer in chain.layers]
    _run(files, "resize", f"json:{json.dumps(image_node(chain, files))}", length=length)


def new_image(descriptor: Descriptor, format_: str, length: int) -> ImageTarget:
    """Make an image of zeros in an empty file, and open it for writing.

    :param descriptor: the file, open for writing; owned by the target from now on.
    :raises ConfigError: one of QEMU's programs, or libnbd, is missing.
    """
    try:
        with descriptor as fd:
            _run([fd], "create", "-f", format_, f"/proc/self/fd/{fd}", length=length)
            chain = Chain(fd, format_, "", (), write=True)
            target = ImageTarget(descriptor, ImageServer(chain, write=True), chain)
    except BaseException:
        descriptor.close()
        raise
    target.reads_zero = True
    return target


def _run(files: Sequence[int], command: str, *words: str, length: int) -> None:
    # Whole sectors: no format has other lengths.
    words = (command, "-q", *words, str(-(-length // _SECTOR) * _SECTOR))
    give_up = time.monotonic() + _LOCKED
    while True:
        done = subprocess.run(  # noqa: S603  (our own arguments)
            [program("qemu-img"), *words], capture_output=True, text=True, check=False, pass_fds=files
        )
        # A killed worker's program may be at it still, for a moment.
        if not done.returncode or "lock" not in done.stderr or time.monotonic() > give_up:
            break
        time.sleep(0.05)
    if done.returncode:
        raise OSError(errno.EIO, f"qemu-img {command}: {done.stderr.strip()[-300:]}")
