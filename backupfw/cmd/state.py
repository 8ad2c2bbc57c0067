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
def only_service(state_dir: str, shared: bool = False) -> Iterator[None]:
    """Hold the state directory: at its start a service takes over what the last one left running.

    The kernel gives the hold back with the process, however it ends.

    :param shared: let others that ask for the same be there too (workers that take nothing over).
    :raises ConfigError: it is held already.
    """
    path = prepare(state_dir)
    descriptor = os.open(path / "service.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(f"state directory {path}: another backupfw service runs on it") from error
        yield
    finally:
        os.close(descriptor)
