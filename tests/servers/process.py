"""Starts, watches and ends a server process so that nothing outlives the tests."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: How long a server may take to answer, or to end in order: a busy machine is slow, and what is killed as it
#: seems to hang may lose what it was told.
START_SECONDS = 90.0


def unprivileged_user() -> str | None:
    """The user a server that refuses root runs as; None when we are not root."""
    return "nobody" if os.geteuid() == 0 else None


def hand_over(path: Path, user: str | None) -> None:
    """Give a directory tree to ``user`` and let everybody pass through its parents we made."""
    path.chmod(0o755)
    if user is None:
        return
    entry = pwd.getpwnam(user)
    for place, _directories, files in os.walk(path):
        os.chown(place, entry.pw_uid, entry.pw_gid)
        for name in files:
            os.chown(os.path.join(place, name), entry.pw_uid, entry.pw_gid)


class ServerProcess:
    """One server; dies with the test process, whatever kills that.

    :param command: the server's command line; it must stay in the foreground.
    :param directory: its working directory and place of its log.
    :param user: whom to run it as; None for ourselves.
    """

    def __init__(
        self,
        command: Sequence[str],
        directory: Path,
        user: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.log = directory / "server.log"
        setpriv = shutil.which("setpriv")
        guarded = [setpriv, "--pdeathsig", "KILL", *command] if setpriv else list(command)
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                guarded,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user,
                group=pwd.getpwnam(user).pw_gid if user else None,
                extra_groups=[] if user else None,
                env={**os.environ, **(environment or {})},
            )

    def wait_ready(self, answers: Callable[[], bool]) -> None:
        """Poll ``answers`` (which may raise) until it is true.

        :raises RuntimeError: the server died or does not answer; with the end of its log.
        """
        end = time.monotonic() + START_SECONDS
        last: Exception | None = None
        while time.monotonic() < end:
            if self._process.poll() is not None:
                raise RuntimeError(f"the server died with {self._process.returncode}: {self._tail()}")
            try:
                if answers():
                    return
            except Exception as error:
                last = error
            time.sleep(0.05)
        raise RuntimeError(f"the server does not answer ({last}): {self._tail()}")

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the server and everything it started, e.g. SIGSTOP: then it hangs."""
        os.killpg(self._process.pid, number)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and everything it started."""
        if self._process.poll() is None:
            self._process.send_signal(how)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(START_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(START_SECONDS)
