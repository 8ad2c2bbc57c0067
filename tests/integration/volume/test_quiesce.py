"""The whole service: a point has what the freezing wrote and not what the thawing did, also after a kill."""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.service import Client, Service, running
from tests.integration.traps import Traps
from tests.integration.volume.mounts import mounted, need

pytestmark = [pytest.mark.root, pytest.mark.check]

LENGTH = 2 << 20


@pytest.fixture(scope="module")
def xfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A file system that takes snapshots of files at one moment."""
    need("mkfs.xfs")
    with mounted(tmp_path_factory.mktemp("xfs"), "mkfs.xfs", "-q", "-m", "reflink=1") as point:
        yield point


def script(path: Path, word: str, log: Path) -> Path:
    """A command that writes a word to the volume, as a program does before it rests, and after."""
    path.write_text(
        f"#!/bin/sh\nset -e\nprintf {word} | dd of=$1 conv=notrunc,fsync 2>&1\necho {word} >> {log}\n"
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("quiesce.frozen", signal.SIGKILL),
        ("quiesce.taken", signal.SIGKILL),
        ("quiesce.frozen", signal.SIGTERM),
    ],
)
def test_a_kill_while_a_volume_is_frozen(
    xfs: Path, tmp_path: Path, traps: Traps, point: str, number: signal.Signals
) -> None:
    log, name = tmp_path / "log", f"{point}-{number.name}"
    image = xfs / f"{name}.raw"
    image.write_bytes(bytes(LENGTH))
    options: dict[str, dict[str, Any]] = {
        "DEFAULT": {"quiesce_commands": "scripts"},
        "quiesce:scripts": {
            "freeze": f"{script(tmp_path / 'freeze', 'FROZEN', log)} {{location}}",
            "thaw": f"{script(tmp_path / 'thaw', 'THAWED', log)} {{location}}",
        },
        "volumes:local": {"volumes_dir": str(xfs / f"{name}.volumes")},
        "backup": {"lease_seconds": 2, "poll_seconds": 0.1},
    }
    with running(tmp_path / "state", options, environment=traps.environment) as service:
        client = service.client()
        words = ("volume", "adopt", "--project", "demo", "--in-use", str(image))
        volume = service.command(*words).stdout.strip()
        words = ("policy", "create", "--project", "demo", "--cron", "@yearly", "--volume", volume)
        policy = service.command(*words, "--quiesce", "scripts").stdout.strip()
        traps.set(point, number)
        service.command("policy", "run", policy)
        client.wait("the signal", lambda: traps.sprung(point))
        service.kill() if number is signal.SIGKILL else service.stop()
        let_runs_go(tmp_path / "state")
        service.start()
        run = _ended(service, client, policy)
        assert (run["status"], run["quiesced"], run["reason"]) == ("ok", True, None)
        told = log.read_text().split()
        # Where the run took long, that of the killed attempt was thawed once more.
        last = told[::-1].index("FROZEN")
        assert last > 0
        assert set(told[-last:]) == {"THAWED"}
        assert image.read_bytes()[:6] == b"THAWED"
        target = tmp_path / "restored.raw"
        service.command("backup", "restore", run["backup_id"], "--to", str(target))
        assert target.read_bytes() == b"FROZEN" + bytes(LENGTH - 6)


def let_runs_go(state: Path) -> None:
    """Let others go on, as after two minutes, with a run that was killed before it noted its backup."""
    with closing(sqlite3.connect(state / "backupfw.sqlite", timeout=30)) as database, database:
        database.execute("UPDATE policy_runs SET taken_until = created_at WHERE taken_until IS NOT NULL")


def _ended(service: Service, client: Client, policy: str) -> dict[str, Any]:
    """Wait for the end of a policy's only run, and return it."""

    def ended() -> dict[str, Any] | None:
        (run,) = json.loads(service.command("policy", "runs", policy, "-f", "json").stdout)
        return None if run["status"] in ("waiting", "running") else dict(run)

    found: dict[str, Any] = client.wait("the run to end", ended)
    return found
