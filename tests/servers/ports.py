"""Ports for servers that a test starts: nobody else gets them between the choice and the start.

A port that the system has just picked may be picked again, for a test that runs beside this one or for the
near end of some connection, before the server listens there; or while it is being restarted.  So these are
none that the system picks by itself, and each is this process's until it ends.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

#: Below these are well-known services.
_FIRST = 10_000
_LAST = 65_535
#: Ports of which this process holds the lock.
_mine: set[int] = set()


def free_port() -> int:
    """Return a TCP port of the loopback interface, free now and this process's from now on.

    :raises RuntimeError: there is none.
    """
    ports = list(_ports())
    random.shuffle(ports)
    for port in ports:
        if port not in _mine and _is_free(port) and _lock(port):
            _mine.add(port)
            return port
    raise RuntimeError("no port is free")


def _ports() -> range:
    """Those that the system does not pick by itself; all, if that leaves too few."""
    words = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    first = int(words[0])
    return range(_FIRST, first) if first >= _FIRST + 1000 else range(_FIRST, _LAST)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _lock(port: int) -> bool:
    """Take the port among all processes: a byte of a file, which the system frees at this one's end."""
    try:
        fcntl.lockf(_lock_file(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError:
        return False
    return True


@cache
def _lock_file() -> int:
    path = os.path.join(tempfile.gettempdir(), f"backupfw-ports-{os.geteuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
