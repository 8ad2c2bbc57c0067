"""One writer per volume: an exclusive lock, and how an earlier holder is removed.

An image file is locked by ``flock`` on the descriptor that the writer uses, so a writer without the lock
cannot write.  A block device is opened with O_EXCL, which the kernel grants once at a time (and not while the
device is mounted).  So if the lock is free, there is no earlier writer.

If the lock is held, an earlier attempt hangs.  If it is in our own process, its target is closed, after its
last system call has ended.  If it is in another process of this host, it gets some seconds to stop by itself
(its lease has ended), then it is killed; a record beside the lock identifies it.  If the holder cannot be
identified or reached, it may still write, and the volume is not taken over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TextIO

from backupfw.errors import TargetError
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.opening import Busy, Opened
from backupfw.volume.local.process import ProcessName, boot_id

LOG = logging.getLogger(__name__)

#: Opens the storage; the two arguments: also for writing, and a device exclusively.
Opener = Callable[[bool, bool], Opened]

# Seconds between two tries to get a lock that is held.
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class _Holder:
    process: ProcessName
    attempt: int


@dataclass(frozen=True, slots=True)
class _Open:
    descriptor: Descriptor
    attempt: int


# The targets of this process, by storage.  One table for all providers of the process, like the locks.
_open: dict[str, _Open] = {}
_open_lock = threading.Lock()


class Fence:
    """Opens volumes for one writer.  Thread-safe.

    :param directory: where records of holders are kept; it is there only while there are some.
    :param wait: seconds that an earlier writer gets to stop by itself, and again after it was killed.
    :param kill: whether an earlier writer of another process may be killed.
    """

    def __init__(self, directory: str, wait: float, kill: bool) -> None:
        self._directory = directory
        self._wait = wait
        self._kill = kill

    def open(self, opener: Opener, attempt: int) -> Descriptor:
        """Open an image file or block device exclusively for reading and writing.

        :param opener: opens it; raises Busy if it shall open a device exclusively that is not free.
        :param attempt: grows from writer to writer; only earlier writers are fenced out.
        :raises TargetError: another writer may write to it.
        :raises Exception: from the opener: it cannot be opened at all.
        """
        give_up = time.monotonic() + self._wait
        killed = False
        while True:
            key = _look(opener)
            self._revoke(key, attempt)
            fd = _lock(opener)
            if fd is not None:
                # During the wait, another file may have got the path.
                if _key(os.fstat(fd)) == key and _look(opener) == key:
                    return self._register(fd, key, attempt)
                os.close(fd)
                continue
            holder = self._read_record(key)
            if holder is not None and holder.attempt >= attempt:
                raise TargetError("A later attempt writes to the volume.")
            if time.monotonic() < give_up:
                time.sleep(_POLL)
                continue
            if killed or not self._kill or holder is None or not holder.process.kill():
                who = f" by process {holder.process.pid}" if holder is not None else ""
                raise TargetError(f"The volume is in use or may still be written{who}.")
            LOG.warning(
                "ended process %d, which held a volume that a later attempt writes", holder.process.pid
            )
            killed = True
            give_up = time.monotonic() + self._wait

    def _revoke(self, key: str, attempt: int) -> None:
        with _open_lock:
            earlier = _open.get(key)
        if earlier is None:
            return
        if earlier.attempt >= attempt:
            raise TargetError("A later attempt writes to the volume.")
        if not earlier.descriptor.revoke(self._wait):
            raise TargetError("A write of an earlier attempt has not come back yet.")

    def _register(self, fd: int, key: str, attempt: int) -> Descriptor:
        record = self._record(key)

        def forget() -> None:
            # Before the lock is released: a record without a lock would name a wrong holder.
            with contextlib.suppress(OSError):
                os.unlink(record)
            # Left empty by another user (the root who checks a back end), it would keep out the service's.
            with contextlib.suppress(OSError):
                os.rmdir(self._directory)
            with _open_lock:
                del _open[key]

        try:
            self._write_record(record, _Holder(ProcessName.of_this(), attempt))
        except BaseException:
            os.close(fd)
            raise
        descriptor = Descriptor(fd, before_close=forget)
        with _open_lock:
            _open[key] = _Open(descriptor, attempt)
        return descriptor

    def _record(self, key: str) -> str:
        # Hosts that share the directory can have devices with equal numbers.
        return os.path.join(self._directory, f"{boot_id()}.{key}")

    def _write_record(self, record: str, holder: _Holder) -> None:
        # Renamed, so that nobody reads half of it; not synced, because it has no meaning after a reboot.  Who
        # holds the lock writes alone, and over what a killed one left.
        part = f"{record}.part"
        with self._new_file(part) as file:
            json.dump(asdict(holder), file)
        os.rename(part, record)

    def _new_file(self, path: str) -> TextIO:
        tries = 100
        while True:
            try:
                os.makedirs(self._directory, mode=0o700, exist_ok=True)
                return open(path, "w", encoding="ascii", opener=_private)
            except (FileExistsError, FileNotFoundError):
                # Another writer, which ends just now, removes the empty directory: makedirs() has found that
                # and then no more, or open() does not find it.
                tries -= 1
                if not tries:
                    raise

    def _read_record(self, key: str) -> _Holder | None:
        try:
            with open(self._record(key), encoding="ascii") as file:
                content = json.load(file)
            return _Holder(ProcessName(**content["process"]), int(content["attempt"]))
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None


def _key(status: os.stat_result) -> str:
    if stat.S_ISBLK(status.st_mode):
        return f"device-{os.major(status.st_rdev)}-{os.minor(status.st_rdev)}"
    return f"file-{status.st_dev:x}-{status.st_ino:x}"


def _look(opener: Opener) -> str:
    """Return the identity of the present storage."""
    opened = opener(False, False)
    try:
        return _key(os.fstat(opened.fd))
    finally:
        os.close(opened.fd)


def _lock(opener: Opener) -> int | None:
    """Return an exclusive descriptor, or None while another writer has one."""
    try:
        opened = opener(True, True)
    except Busy:
        return None
    if opened.is_device:
        return opened.fd
    try:
        fcntl.flock(opened.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened.fd)
        return None
    except BaseException:
        os.close(opened.fd)
        raise
    return opened.fd


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
