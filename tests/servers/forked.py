"""Programs that run without the time of their imports, in processes of their own (fork_server.py)."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO

SERVER = str(Path(__file__).with_name("fork_server.py"))
#: What a process of the service may import, and what it would look for or make at its start.
NAMES = (
    *(f"backupfw.{part}.*" for part in ("api", "cmd", "db", "keys", "manager", "volume", "worker")),
    *(f"backupfw_{driver}.*" for driver in ("posix", "s3", "swift", "gcs", "castellan")),
    "backupfw.cmd.reference:list_opts",
    "backupfw.cmd.main:App",
    "sqlalchemy.orm:configure_mappers",
)


class Forked:
    """A running program: a part of what :class:`subprocess.Popen` is.

    :ivar pid: its process.
    :ivar stdout: what it writes; None where that goes to a file.
    """

    def __init__(self, link: socket.socket, stdout: IO[str] | None) -> None:
        self._link = link
        self._lines = link.makefile()
        self._status: int | None = None
        self.stdout = stdout
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status when it has ended.

        :raises subprocess.TimeoutExpired: it has not within some seconds.
        """
        if self._status is None:
            if not select.select([self._link], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self._status = int(self._lines.readline())
            self._lines.close()
            self._link.close()
        return self._status

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            # It may end now.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)


class ForkServer:
    """A program that is imported once, for many runs.

    :param python: the interpreter of the environment that has it.
    :param entry: what its script calls, ``module:function``.
    :param names: what it imports while it runs, and functions that are called first.
    :param environment, directory: the variables and the place that count when it is imported.
    :raises ImportError: it cannot be imported; standard error says why.
    :ivar address: where it is asked to run.
    """

    def __init__(
        self,
        python: str | Path,
        entry: str,
        *names: str,
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="fork-")
        self.address = f"{self._folder.name}/socket"
        self._process = subprocess.Popen(
            [str(python), SERVER, self.address, entry, *names],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            cwd=directory,
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            self.close()
            raise ImportError(f"{entry} cannot be imported")

    def start(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        stderr: IO[str],
        stdout: IO[str] | None = None,
        session: bool = True,
    ) -> Forked:
        """Start it.

        :param words: its name and arguments.
        :param stdout: where it writes; None for a pipe.
        :param session: whether it gets a session of its own.
        """
        asked = json.dumps([words, os.getcwd(), dict(environment), session]).encode()
        reading, writing = os.pipe() if stdout is None else (None, os.dup(stdout.fileno()))
        link = socket.socket(socket.AF_UNIX)
        link.connect(self.address)
        with open(os.devnull) as nothing:
            files = [nothing.fileno(), writing, stderr.fileno()]
            socket.send_fds(link, [len(asked).to_bytes(8, "big")], files)
        link.sendall(asked)
        os.close(writing)
        return Forked(link, None if reading is None else open(reading))

    def run(
        self, words: Sequence[str], environment: Mapping[str, str], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run it; returns what it wrote, as ``subprocess.run`` does.

        :raises subprocess.TimeoutExpired: it has not ended within some seconds.
        """
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            status = self.start(words, environment, err, out, session=False).wait(timeout)
            out.seek(0)
            err.seek(0)
            return subprocess.CompletedProcess(words, status, out.read(), err.read())

    def close(self) -> None:
        """End it; what runs goes on."""
        for file in (self._process.stdin, self._process.stdout):
            assert file is not None
            file.close()
        self._process.wait(30)
        self._folder.cleanup()


@cache
def backupfw() -> ForkServer:
    """Return ``backupfw``, for all tests of this process."""
    server = ForkServer(sys.executable, "backupfw.cmd.main:main", *NAMES)
    atexit.register(server.close)
    return server


def start_backupfw(
    words: Sequence[str], environment: Mapping[str, str], stderr: IO[str], python: str | None = None
) -> Forked | subprocess.Popen[str]:
    """Start a command of ``backupfw`` in a session of its own; its standard output is a pipe.

    :param python: an interpreter that starts it as users do; None: it is forked.
    """
    if python is None:
        return backupfw().start(["backupfw", *words], environment, stderr)
    return subprocess.Popen(
        [python, "-m", "backupfw.cmd.main", *words],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        env=dict(environment),
    )
