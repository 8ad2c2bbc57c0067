"""The state directory: made private, held by at most one running service."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backupfw.errors import ConfigError


def prepare(state_dir: str) -> Path:
    """Make the directory, readable by its owner only, unless it is there.

    :raises ConfigError: it cannot be made or written.
    """
    path = Path(state_dir)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"state directory {path}: {error.strerror}") from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise ConfigError(f"state directory {path}: not writable")
    return path


@contextmanager
def locked(path: Path, wait: bool) -> Iterator[bool]:
    """Hold an exclusive lock on a file, made if need be; the kernel gives it back with the process.

    :param wait: whether to wait for another holder.
    :returns: whether the lock is held (always, with ``wait``).
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


@contextmanager
def only_service(state_dir: str) -> Iterator[None]:
    """Be the one service on this state directory: at its start it takes over what the last one left.

    :raises ConfigError: another one runs.
    """
    path = prepare(state_dir)
    with locked(path / "service.lock", wait=False) as held:
        if not held:
            raise ConfigError(f"state directory {path}: another backupfw service runs on it")
        yield
