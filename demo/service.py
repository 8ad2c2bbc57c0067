"""The served instance the demo works on: a process, its HTTP API and the ``backupfw`` command."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

PROJECT = "demo"
#: Longest time anything of the demo may take, seconds.
PATIENCE = 300.0

COMMAND = [sys.executable, "-m", "backupfw.cmd.main"]


class Failed(Exception):
    """Something did not hold."""


def command(state: Path, *words: str) -> str:
    """Run a ``backupfw`` command on a state directory; returns what it printed."""
    done = subprocess.run(
        [*COMMAND, *words, "--state-dir", str(state)], capture_output=True, text=True, timeout=PATIENCE
    )
    if done.returncode:
        raise Failed(f"backupfw {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip()


class Service:
    """``backupfw serve`` on a free port.

    :param state: its state directory.
    """

    def __init__(self, state: Path) -> None:
        self.state = state
        self._log = state.with_suffix(".log")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "serve", "--state-dir", str(state), "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        self.greeting = self._process.stdout.readline().strip()
        if "ready on " not in self.greeting:
            raise Failed(f"the service did not start:\n{self._log.read_text()}")
        self._base = self.greeting.split("ready on ")[1].split()[0] + f"v2/{PROJECT}"

    def io(self) -> tuple[int, int]:
        """Bytes the service has read and written so far: files and sockets, as the kernel counts them."""
        try:
            lines = Path(f"/proc/{self._process.pid}/io").read_text().splitlines()
        except OSError:
            return 0, 0
        counts = dict(line.split(": ") for line in lines)
        return int(counts["rchar"]), int(counts["wchar"])

    def stored(self) -> int:
        """Bytes of backups in the store now; the holder object is none."""
        files = (path for path in (self.state / "store").rglob("*") if ".holder" not in path.name)
        return sum(path.stat().st_size for path in files if path.is_file())

    def stop(self) -> int:
        """Ask it to stop; returns its exit status."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise Failed("the service did not stop within 30 seconds") from None

    def kill(self) -> None:
        """End it, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait(10)

    def log_tail(self) -> str:
        """The end of its log."""
        return "\n".join(self._log.read_text().splitlines()[-20:])

    def command(self, *words: str) -> str:
        """Run a ``backupfw`` command on this instance; returns what it printed."""
        return command(self.state, *words)

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send a request; returns the status and the decoded body."""
        request = urllib.request.Request(
            self._base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-Auth-Token": f"demo:{PROJECT}:admin"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    def expect(self, status: int, method: str, path: str, body: Any = None) -> Any:
        """Send a request that must answer ``status``; returns the body."""
        got, answer = self.call(method, path, body)
        if got != status:
            raise Failed(f"{method} {path} answered {got}: {answer}")
        return answer

    def wait(self, kind: str, resource: str, wanted: str | None) -> None:
        """Wait until a backup or volume has a status; None: until it is gone."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            code, body = self.call("GET", f"/{kind}s/{resource}")
            now = None if code == 404 else body[kind]["status"]
            if now == wanted:
                return
            if now is None or now.startswith("error"):
                reason = body[kind].get("fail_reason") if now else None
                raise Failed(f"{kind} {resource} ended as {now or 'gone'}, not {wanted or 'gone'}: {reason}")
            time.sleep(0.02)
        raise Failed(f"{kind} {resource} is {now} still, not {wanted or 'gone'}")
