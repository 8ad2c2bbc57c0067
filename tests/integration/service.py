"""A served instance as a process, and a small client for it: what the integration tests drive."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers import forked
from tests.servers.forked import Forked
from tests.servers.ports import free_port
from tests.waiting import PATIENCE, wait_until

TRANSIENT = {"creating", "deleting", "restoring"}


class Service:
    """``backupfw serve`` on a state directory of its own.

    :param state: the state directory; kept between restarts.
    :param options: extra configuration as ``{section: {option: value}}``.
    :param python: the interpreter of the environment it is installed in.
    :param environment: environment variables that only its process gets.
    """

    def __init__(
        self,
        state: Path,
        options: dict[str, dict[str, Any]] | None = None,
        python: str | Path = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.state = state
        self.environment = dict(environment or {})
        self.python = str(python)
        self.port = free_port()
        self.config: Path | None = None
        self._process: Forked | subprocess.Popen[str] | None = None
        if options:
            self.config = state.parent / f"{state.name}.conf"
            lines = []
            for section, values in options.items():
                lines.append(f"[{section}]")
                lines += [f"{name} = {value}" for name, value in values.items()]
            self.config.write_text("\n".join(lines) + "\n")

    @property
    def arguments(self) -> list[str]:
        """The options every command on this instance takes."""
        arguments = ["--state-dir", str(self.state)]
        if self.config is not None:
            arguments += ["--config-file", str(self.config)]
        return arguments

    def start(self) -> Service:
        """Start the process and return when it is ready to answer."""
        words = ["serve", *self.arguments, "--port", str(self.port)]
        environment = {**os.environ, **self.environment}
        with open(self.state.parent / f"{self.state.name}.log", "a") as log:
            python = None if self.python == sys.executable else self.python
            self._process = forked.start_backupfw(words, environment, log, python)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "ready" in line, f"the service did not get ready: {line!r}\n{self.log_tail()}"
        return self

    def console_token(self) -> str:
        """Read the token for the console, which is printed once."""
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "(token " in line, line
        return line.rpartition("(token ")[2].rstrip(")\n")

    @property
    def pid(self) -> int:
        """The running process."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the service has written."""
        path = self.state.parent / f"{self.state.name}.log"
        return path.read_text() if path.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """The end of that, for messages of failed tests."""
        return "\n".join(self.log().splitlines()[-lines:])

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(PATIENCE)
        self._close()

    def stop(self) -> int:
        """Stop in an orderly way; returns the exit status."""
        if self._process is None:
            return 0
        self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            status = self._process.wait(PATIENCE)
        self._close()
        return status

    def _close(self) -> None:
        assert self._process is not None
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a ``backupfw`` command on this instance."""
        words = (*words, *self.arguments)
        if self.python == sys.executable:
            done = forked.backupfw().run(["backupfw", *words], os.environ, PATIENCE)
        else:
            done = subprocess.run(
                [self.python, "-m", "backupfw.cmd.main", *words],
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def client(self, project: str = "demo") -> Client:
        """A client of one project with every role."""
        return Client(f"http://127.0.0.1:{self.port}/v2/{project}", f"tester:{project}:admin", self)


class Client:
    """A minimal client of the v2 API."""

    def __init__(self, base: str, token: str, service: Service) -> None:
        self.base = base
        self.token = token
        self.service = service

    def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send one request; returns status and decoded body (None when empty)."""
        request = urllib.request.Request(
            self.base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-Auth-Token": self.token, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    def expect(self, status: int, method: str, path: str, body: Any = None) -> Any:
        """Send a request that must answer ``status``; returns the body."""
        got, answer = self.request(method, path, body)
        assert got == status, f"{method} {path}: {got} {answer}\n{self.service.log_tail()}"
        return answer

    def wait(self, what: str, done: Callable[[], Any]) -> Any:
        """Poll until ``done()`` is true; returns its value."""
        return wait_until(what, done, self.service.log_tail, pause=0.05)

    def status(self, kind: str, resource_id: str) -> str | None:
        """The status of a backup, volume or snapshot; None when it is gone."""
        code, body = self.request("GET", f"/{kind}s/{resource_id}")
        return None if code == 404 else body[kind]["status"]

    def wait_status(self, kind: str, resource_id: str, *wanted: str | None) -> str | None:
        """Poll until the status is one of ``wanted`` (None: gone)."""
        status: str | None = None

        def reached() -> bool:
            nonlocal status
            status = self.status(kind, resource_id)
            return status in wanted

        what = f"{kind} {resource_id} to be {wanted}"
        wait_until(what, reached, lambda: f"it is {status}\n{self.service.log_tail()}", pause=0.05)
        return status

    def create_volume(self, size: int = 1, **fields: Any) -> str:
        """Make a volume and wait until it is available; returns its id."""
        answer = self.expect(202, "POST", "/volumes", {"volume": {"size": size, **fields}})
        self.wait_status("volume", answer["volume"]["id"], "available")
        return str(answer["volume"]["id"])

    def adopt(self, path: Path) -> str:
        """Make an existing image a volume of this project; returns its id."""
        project = self.base.rsplit("/", 1)[1]
        return self.service.command("volume", "adopt", str(path), "--project", project).stdout.strip()

    def volume_path(self, volume_id: str) -> Path:
        """Where the volume's bytes are."""
        return Path(self.service.command("volume", "path", volume_id).stdout.strip())

    def backup(self, volume_id: str, wait: bool = True, **fields: Any) -> str:
        """Start a backup, wait until it is available; returns its id."""
        answer = self.expect(202, "POST", "/backups", {"backup": {"volume_id": volume_id, **fields}})
        if wait:
            self.wait_status("backup", answer["backup"]["id"], "available")
        return str(answer["backup"]["id"])

    def restore(self, backup_id: str, volume_id: str | None = None, wait: bool = True) -> str:
        """Restore to a new or existing volume; returns the volume's id."""
        answer = self.expect(
            202, "POST", f"/backups/{backup_id}/restore", {"restore": {"volume_id": volume_id}}
        )
        target = str(answer["restore"]["volume_id"])
        if wait:
            self.wait_status("backup", backup_id, "available")
            self.wait_status("volume", target, "available")
        return target

    def delete_backup(self, backup_id: str) -> None:
        """Delete a backup and wait until it is gone."""
        self.expect(202, "DELETE", f"/backups/{backup_id}")
        self.wait_status("backup", backup_id, None)


@contextmanager
def running(
    state: Path,
    options: dict[str, dict[str, Any]] | None = None,
    python: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Service]:
    """A started service that is stopped at the end."""
    service = Service(state, options, python, environment).start()
    try:
        yield service
    finally:
        service.stop()
