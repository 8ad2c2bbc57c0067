"""An installation of several processes: an API and workers on PostgreSQL, RabbitMQ and one store.

Its clients and its audit are what the fault suite judges by; see :class:`Installation`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from sqlalchemy import NullPool, create_engine, text

from backupfw.conf.embedded import absolute
from tests.integration.content import MIB, same_content, write_image
from tests.integration.service import Client
from tests.integration.traps import Traps
from tests.servers import forked
from tests.servers.ports import free_port
from tests.waiting import PATIENCE, wait_until

#: A lease, seconds: short, and long enough for a busy machine to renew it.
LEASE = 4.0

#: Runs a test on both database servers; PostgreSQL is what the others get.
ON_BOTH = pytest.mark.parametrize("database_server", ["postgresql", "mariadb"], indirect=True)

Options = Mapping[str, Mapping[str, Any]]
NOTHING: Mapping[str, Any] = MappingProxyType({})


#: Variables that count when an interpreter starts: whoever gets one is not forked.
AT_THE_START = {"LD_PRELOAD", "PYTHONPATH"}

#: A project whose backups are encrypted.
SECRET = "secret"


class Process:
    """One ``backupfw api`` or ``backupfw worker``, in a session of its own."""

    def __init__(self, words: list[str], log: Path, environment: Mapping[str, str]) -> None:
        whole = {**os.environ, **environment}
        python = sys.executable if AT_THE_START & environment.keys() else None
        with open(log, "a") as stderr:
            self._process = forked.start_backupfw(words, whole, stderr, python)
        self._log = log

    def wait_ready(self) -> None:
        """Return when the process has said that it is ready."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert "ready" in line, f"{line!r}\n{self._log.read_text()[-3000:]}"

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process and everything it started."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """kill -9."""
        if self.alive:
            self.signal(signal.SIGKILL)
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def stop(self) -> int:
        """Stop in an orderly way and return the exit status."""
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait(60)
        self.kill()
        return status


class Installation:
    """API, workers, and what they leave.

    :param folder: configuration, logs, store and volumes.
    :param database: the URL of an empty database.
    :param broker: the transport URL; None for none.
    :param options: further options, ``{section: {option: value}}``; None takes one away.
    """

    def __init__(self, folder: Path, database: str, broker: str | None, options: Options = NOTHING) -> None:
        self.folder = folder
        self.traps = Traps(folder / "crash-points")
        self.database = database
        # Tests restart the server: no connection is kept.
        self._engine = create_engine(database, poolclass=NullPool)
        self.port = free_port()
        self.api: Process | None = None
        self.workers: dict[str, Process] = {}
        self._config(folder / "common.conf", self._common(broker), options)
        self.command("db", "sync")

    def _common(self, broker: str | None) -> Options:
        state = absolute(str(self.folder))
        # A directory of its own: what lies in it is the service's, and no image of anybody's.
        default = {"state_dir": f"{state}/state", "service_down_time": 10, "enabled_stores": "main"}
        default["placement_rules"] = SECRET
        if broker is not None:
            default["transport_url"] = broker
            default["control_exchange"] = f"x{self.port}"
        return {
            "DEFAULT": default,
            "database": {"connection": self.database, "max_retries": -1, "retry_interval": 1},
            "api": {"noauth_roles": "admin"},
            "quota": {"backups": -1, "volumes": -1},
            "store:main": {"driver": "posix", "path": f"{state}/store"},
            "keys": {"driver": "file", "directory": f"{state}/keys"},
            f"placement:{SECRET}": {"store": "main", "projects": SECRET, "encryption": "project"},
            "volumes": {
                "volumes_dir": f"{state}/volumes",
                "shared": True,
                "snapshot_settle": 0.1,
                "fence_wait": 2,
            },
            "backup": {
                "segment_size": 1 << 20,
                "pack_size": 1 << 18,
                "lease_seconds": LEASE,
                "poll_seconds": 1,
                "service_wait": 600,
            },
        }

    @staticmethod
    def _config(path: Path, *parts: Options) -> None:
        merged: dict[str, dict[str, Any]] = {}
        for part in parts:
            for section, values in part.items():
                merged.setdefault(section, {}).update(values)
        lines = []
        for section, values in merged.items():
            lines += [
                f"[{section}]",
                *(f"{name} = {value}" for name, value in values.items() if value is not None),
            ]
        path.write_text("\n".join(lines) + "\n")

    # -- processes

    def start_api(self) -> None:
        """Start the API and return when it answers."""
        words = ["api", "--config-file", str(self.folder / "common.conf"), "--port", str(self.port)]
        self.api = self._start(words, "api")
        self.api.wait_ready()

    def start_worker(
        self,
        name: str,
        environment: Mapping[str, str] = NOTHING,
        options: Options = NOTHING,
        wait: bool = True,
    ) -> Process:
        """Start a worker under a host name of its own."""
        own = self.folder / f"{name}.conf"
        self._config(own, {"DEFAULT": {"host": name}}, options)
        words = ["worker", "--config-file", str(self.folder / "common.conf"), "--config-file", str(own)]
        self.workers[name] = self._start(words, name, environment)
        if wait:
            self.workers[name].wait_ready()
        return self.workers[name]

    def _start(self, words: list[str], name: str, environment: Mapping[str, str] = NOTHING) -> Process:
        more = {**self.traps.environment, **environment}
        return Process(words, self.folder / f"{name}.log", more)

    def command(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a ``backupfw`` command on this installation."""
        words = ("backupfw", *words, "--config-file", str(self.folder / "common.conf"))
        done = forked.backupfw().run(words, os.environ, PATIENCE)
        assert not check or done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def log_tail(self, lines: int = 15) -> str:
        """The ends of all logs, for messages of failed tests."""
        parts = []
        for path in sorted(self.folder.glob("*.log")):
            parts += [f"--- {path.name}", *path.read_text().splitlines()[-lines:]]
        return "\n".join(parts)

    def close(self) -> None:
        """End everything."""
        for process in (self.api, *self.workers.values()):
            if process is not None:
                process.kill()

    # -- what is asked of it

    def client(self, project: str = "demo") -> Client:
        """A client of one project with every role."""
        return Client(f"http://127.0.0.1:{self.port}/v2/{project}", f"tester:{project}:admin", self)

    def only(self, name: str | None) -> None:
        """Let one worker alone take tasks; None: let all."""
        client = self.client()
        for host in self.workers:
            verb = "enable" if name in (None, host) else "disable"
            client.expect(200, "PUT", f"/os-services/{verb}", {"host": host, "binary": "cinder-backup"})

    def wait_struck(self, point: str) -> Process:
        """Return the worker that got the signal, once it has."""
        wait(f"crash point {point} to be reached", lambda: self.traps.sprung(point), self.log_tail)
        session = next(line.split(" ")[1] for line in self.traps.reached() if line.startswith(f"{point} "))
        (struck,) = [worker for worker in self.workers.values() if worker.pid == int(session)]
        return struck

    def rows(self, query: str, **values: Any) -> list[Any]:
        """Ask the database."""
        with self._engine.connect() as connection:
            return list(connection.execute(text(query), values))

    def path_of(self, volume_id: str) -> Path:
        """Where a volume's bytes are."""
        ((location,),) = self.rows("SELECT location FROM volumes WHERE id = :id", id=volume_id)
        # Images of the service's own are named relative to their directory.
        return self.folder / "volumes" / location

    def execute(self, statement: str, **values: Any) -> None:
        """Change the database behind the service's back."""
        with self._engine.begin() as connection:
            connection.execute(text(statement), values)

    def wait_idle(self) -> None:
        """Return when no task is left."""
        wait("the tasks to end", lambda: not self.rows("SELECT id FROM tasks"), self.log_tail)

    def audit(self) -> None:
        """Everything is at rest, and database and store say the same."""
        self.wait_idle()
        done = self.command("audit", check=False)
        assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{self.log_tail()}"


class Subject:
    """A volume with known content, and a client of its project."""

    def __init__(self, installed: Installation, folder: Path, seed: int = 1, length: int = 8 * MIB) -> None:
        self.installed = installed
        self.image = folder / f"image{seed}.raw"
        self.length = length
        write_image(self.image, length, seed)
        self.client: Client = installed.client()
        self.volume = self.client.adopt(self.image)

    def assert_restores(self, backup: str) -> None:
        """A backup of what the volume holds now is restored bit by bit."""
        target = self.client.restore(backup)
        assert same_content(self.image, self.installed.path_of(target), self.length)
        self.client.expect(202, "DELETE", f"/volumes/{target}")


def wait(what: str, done: Callable[[], Any], tail: Callable[[], str] = lambda: "") -> Any:
    """Poll until ``done()`` is true; returns its value."""
    return wait_until(what, done, tail, pause=0.05)


@contextmanager
def installation(
    folder: Path, database: str, broker: str | None, options: Options = NOTHING
) -> Iterator[Installation]:
    """A fresh installation, its API running."""
    made = Installation(folder, database, broker, options)
    try:
        made.start_api()
        yield made
    finally:
        made.close()
