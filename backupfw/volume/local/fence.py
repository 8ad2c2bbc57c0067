"""One writer per volume: an exclusive lock, and what is done about an earlier holder of it.

An image file is locked by ``flock`` on the descriptor that is written through: who does not hold the
lock has no way to write.  A block device is opened with O_EXCL, which the kernel grants once at a time
(and not while the device is mounted).  So a lock that is free shows that no earlier writer is left.

A lock that is held is an earlier attempt that hangs.  In our own process its target is closed under it
and its last system call is waited for.  In another process of this host it gets a while to stop by
itself (its lease has run out), then it is killed, by the name it left in a record beside the lock.
Whoever cannot be named or reached may still write: then there is no take-over.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from backupfw.errors import TargetError
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.opening import Busy, Opened
from backupfw.volume.local.process import ProcessName, boot_id

LOG = logging.getLogger(__name__)

#: Opens the storage: for writing too, and a device for us alone, as the two arguments say.
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


# What this process writes to, by storage.  One table for all providers of the process, as the locks are.
_open: dict[str, _Open] = {}
_open_lock = threading.Lock()


class Fence:
    """Opens volumes for one writer.  Thread-safe.

    :param directory: where records of holders are kept; made when it is needed.
    :param wait: seconds an earlier writer gets to stop by itself, and again after it was killed.
    :param kill: whether an earlier writer of another process may be killed.
    """

    def __init__(self, directory: str, wait: float, kill: bool) -> None:
        self._directory = directory
        self._wait = wait
        self._kill = kill

    def open(self, opener: Opener, attempt: int) -> Descriptor:
        """Open an image file or block device for reading and writing, for us alone.

        :param opener: opens it; raises Busy where it is asked for a device alone that is not free.
        :param attempt: grows from writer to writer; only earlier writers are fenced out.
        :raises TargetError: somebody else may write to it.
        :raises Exception: what the opener raises: it cannot be opened at all.
        """
        give_up = time.monotonic() + self._wait
        killed = False
        while True:
            key = _look(opener)
            self._revoke(key, attempt)
            fd = _lock(opener)
            if fd is not None:
                # While we waited, the path may have been given to another file.
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
            # Before the lock goes: a record without a lock would name somebody who is not the holder.
            with contextlib.suppress(OSError):
                os.unlink(record)
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
        # Hosts that share the directory have devices of equal numbers.
        return os.path.join(self._directory, f"{boot_id()}.{key}")

    def _write_record(self, record: str, holder: _Holder) -> None:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        part = f"{record}.{secrets.token_hex(8)}.part"
        # Renamed so that it is never read half; not synced, because it says nothing after a reboot.
        with open(part, "w", encoding="ascii", opener=_private) as file:
            json.dump(asdict(holder), file)
        os.rename(part, record)

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
    """Return what stands for the storage that is there now."""
    opened = opener(False, False)
    try:
        return _key(os.fstat(opened.fd))
    finally:
        os.close(opened.fd)


def _lock(opener: Opener) -> int | None:
    """Return an exclusive descriptor, or None while somebody else has one."""
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
