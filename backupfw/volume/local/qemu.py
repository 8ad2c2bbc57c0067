"""Runs qemu-nbd for one image: the only way in which the bytes of an image are read or written.

The process belongs to whoever opened the image, and cannot outlive it:

* Our connections are made before it starts, and it ends when the last of them ends.  So it ends with the
  worker, however that ends.  The socket has no name any more when it starts: nobody else can connect.
  Until the connections are negotiated it would stay; so long a shell waits on a pipe that ends with the
  worker, to kill it.
* It gets each file of the image as a descriptor.  That of a written image holds the volume's lock (``flock``
  belongs to the open file, which both processes share), so the lock is free only when this process is gone.
* It opens the files with QEMU's own locks, so an image that a running machine uses is refused.
* Once it runs, its open files are looked at: no other file than those of the chain is among them, whatever
  the image's header said by then.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from backupfw.errors import ConfigError
from backupfw.volume.local.image_chain import DRIVERS, Chain
from backupfw.volume.local.opening import Unusable
from backupfw.volume.nbd.client import ALLOCATION, Client, ServerLost, over

#: Connections to one process.
CONNECTIONS = 4
# Seconds without an answer: a slow disk is no reason, a stopped process is one.
_TIMEOUT = 120.0
# Seconds in which it ends when nobody is connected any more; it may have to write what it has cached.
_END = 60.0
# Descriptors of the process: the socket, by systemd's protocol; the pipe; the files of the image.
_SOCKET, _PIPE, _FILES = 3, 9, 10
# Only a process that knows its own id can say who the socket is for.
# The waiting shell must not hold the socket: its end says that the process could not start.
_SCRIPT = f'( (read x <&{_PIPE} || kill -9 $$) {_SOCKET}<&- & ); LISTEN_PID=$$ exec "$@" {_PIPE}<&-'


class Locked(Exception):
    """Another program, such as a running machine, uses the image."""


def program(name: str) -> str:
    """Return the path of one of QEMU's programs.

    :raises ConfigError: it is not installed.
    """
    path = shutil.which(name)
    if path is None:
        raise ConfigError(f"{name} is needed for images that are not raw: install the package qemu-utils")
    return path


class ImageServer:
    """A running qemu-nbd, and the client of it.

    :param chain: the image's files; not owned.
    :param write: it is written, too.
    :param share: do not lock it: only its length will be asked.
    :raises Locked: another program uses it.
    :raises Unusable: QEMU cannot open it; the text continues a sentence.
    :raises ConfigError: a program or package is missing.
    """

    def __init__(self, chain: Chain, *, write: bool = False, share: bool = False) -> None:
        listening, connected = _sockets()
        self._pid: int | None = None
        errors = os.memfd_create("qemu-nbd", os.MFD_CLOEXEC)
        ends, alive = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = _spawn(chain, listening, ends, errors, write, share)
            listening.close()
            try:
                self.client = Client(
                    [over(end) for end in connected], contexts=[ALLOCATION], timeout=_TIMEOUT
                )
            except ServerLost as error:
                self.kill()
                raise _refused(os.pread(errors, 4096, 0), chain.layers[0].format) from error
            if not _is_confined(self._pid, chain, errors):
                raise Unusable("names other files than it did when it was looked at")
            for end in connected:
                # Those that the client did not take.
                end.close()
        except BaseException:
            self.kill()
            raise
        finally:
            listening.close()
            # From here on it ends by itself, or has ended.
            os.write(alive, b"\n")
            for fd in (errors, ends, alive):
                os.close(fd)
            for end in connected:
                end.close()

    def close(self) -> None:
        """Disconnect, and wait until the process is gone; idempotent."""
        self.client.close()
        if not self._ended(_END):
            self.kill()

    def kill(self) -> None:
        """End the process at once; idempotent."""
        if self._pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._ended(_END)

    def _ended(self, seconds: float) -> bool:
        give_up = time.monotonic() + seconds
        while self._pid is not None:
            try:
                found, _ = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:
                found = self._pid
            if found:
                self._pid = None
            elif time.monotonic() > give_up:
                return False
            else:
                time.sleep(0.005)
        return True


def _sockets() -> tuple[socket.socket, list[socket.socket]]:
    """Return a listening socket without a name, and our connections to it, which wait there."""
    listening = socket.socket(socket.AF_UNIX)
    connected: list[socket.socket] = []
    directory = tempfile.mkdtemp(prefix="backupfw-")
    path = os.path.join(directory, "s")
    try:
        listening.bind(path)
        listening.listen(CONNECTIONS)
        for _ in range(CONNECTIONS):
            end = socket.socket(socket.AF_UNIX)
            connected.append(end)
            end.connect(path)
    except BaseException:
        for end in (listening, *connected):
            end.close()
        raise
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return listening, connected


def _spawn(chain: Chain, listening: socket.socket, ends: int, errors: int, write: bool, share: bool) -> int:
    node = image_node(chain, range(_FILES, _FILES + len(chain.layers)))
    if share:
        node["force-share"] = True
    arguments = [program("qemu-nbd"), f"--shared={CONNECTIONS}", "--discard=unmap"]
    arguments += [] if write else ["--read-only"]
    shell = ["/bin/sh", "-c", _SCRIPT, "sh", *arguments, f"json:{json.dumps(node)}"]
    with contextlib.ExitStack() as stack:
        # Out of the way of the numbers that they get in the new process.
        high = _FILES + len(chain.layers)
        theirs = {2: errors, _SOCKET: listening.fileno(), _PIPE: ends}
        theirs |= {_FILES + number: layer.fd for number, layer in enumerate(chain.layers)}
        copies = {place: fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, high) for place, fd in theirs.items()}
        for copy in copies.values():
            stack.callback(os.close, copy)
        actions: list[tuple[Any, ...]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in _inheritable()),
            *((os.POSIX_SPAWN_DUP2, copy, place) for place, copy in copies.items()),
        ]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LISTEN_FDS": "1", "LC_ALL": "C"}
        # A signal for our whole group (Ctrl-C) must not end it before what was written is flushed.
        return os.posix_spawn(shell[0], shell, environment, file_actions=actions, setpgroup=0)


def image_node(chain: Chain, places: Sequence[int]) -> dict[str, Any]:
    """Describe an image for QEMU: all of its files, by descriptors, and no other one.

    :param places: the descriptors that the program has for the chain's files.
    """
    node: dict[str, Any] | None = None
    for layer, place in reversed(list(zip(chain.layers, places, strict=True))):
        file = {"driver": "file", "filename": f"/proc/self/fd/{place}"}
        below, node = node, {"driver": DRIVERS.get(layer.format, layer.format), "file": file}
        if layer.format != "raw":
            # Said for every format: else QEMU opens what the header names, over the network, too.
            node["backing"] = below
        if layer.format == "vhd":
            # Else the length is guessed from the name of the program that made the image.
            node["force_size_calc"] = "current_size"
    assert node is not None
    return node


def _inheritable() -> list[int]:
    """Return descriptors that a new process would get from whoever started this one."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if int(name) >= _SOCKET and os.get_inheritable(int(name)):
                found.append(int(name))
    return found


def _refused(errors: bytes, format_: str) -> Exception:
    text = errors.decode(errors="replace")
    if "lock" in text:
        return Locked()
    return Unusable(f"cannot be opened as a {format_} image: QEMU says {_last_line(text)!r}")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    # The path that QEMU knows is that of a descriptor.
    return lines[-1].rsplit("': ", 1)[-1].rsplit("}: ", 1)[-1] if lines else "nothing"


def _is_confined(pid: int, chain: Chain, errors: int) -> bool:
    """Return whether a process has no other file open than those that it got."""
    allowed = {_place(os.fstat(fd)) for fd in (errors, *(layer.fd for layer in chain.layers))}
    null = os.stat(os.devnull).st_rdev
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            status = os.stat(os.path.join(folder, name))
        except FileNotFoundError:
            continue
        kind = stat.S_IFMT(status.st_mode)
        if kind in (stat.S_IFREG, stat.S_IFBLK, stat.S_IFDIR, stat.S_IFIFO) and _place(status) not in allowed:
            return False
        if kind == stat.S_IFCHR and status.st_rdev != null:
            return False
    return True


def _place(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
