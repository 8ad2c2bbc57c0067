"""The guide's script for machines of libvirt: backups read what changed, whatever became of others."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.checkout import ROOT
from tests.integration.service import Service, running
from tests.integration.volume.test_machines import restored, shown
from tests.servers.libvirt import Libvirt, libvirt, libvirt_missing

pytestmark = pytest.mark.server

MIB = 1 << 20
LENGTH = 64 * MIB
GRAIN = 64 << 10
SCRIPT = re.compile(r"\n((?:    #!/bin/sh\n)(?:(?:    .*)?\n)+)")


@pytest.fixture(scope="module")
def host() -> Iterator[Libvirt]:
    if missing := libvirt_missing():
        pytest.skip(missing)
    # The names of sockets are short.
    with tempfile.TemporaryDirectory() as name, libvirt(Path(name)) as started:
        yield started


class Disk:
    """A machine's disk, with its bytes, and the guide's commands for it."""

    def __init__(self, host: Libvirt, service: Service, place: Path) -> None:
        self.host, self.service = host, service
        host.add_machine("web1", LENGTH)
        self.bytes = bytearray(LENGTH)
        guide = (ROOT / "docs" / "volumes-nbd.md").read_text()
        found = SCRIPT.search(guide)
        assert found is not None
        script = re.sub("^    ", "", found[1], flags=re.MULTILINE)
        for name in ("/run/exports", "/var/lib/backupfw-scratch"):
            assert name in script
            (place / Path(name).name).mkdir()
            script = script.replace(name, str(place / Path(name).name))
        # The address in the guide's command of adoption.
        self.socket = place / "exports" / "web1-vda.sock"
        location = "nbd+unix:///vda?socket=/run/exports/web1-vda.sock"
        assert location in guide
        self.location = location.replace("/run/exports", str(place / "exports"))
        self.script = place / "with-export"
        self.script.write_text(script)
        self.script.chmod(0o755)

    def command(self, *words: str) -> list[str]:
        """Return a command of the service that is run while the disk is exported."""
        service = [sys.executable, "-m", "backupfw.cmd.main", *words, *self.service.arguments]
        return [str(self.script), "web1", "vda", *service]

    def run(self, *words: str, check: bool = True) -> str:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, env={**os.environ, **self.host.environment}
        )
        assert (done.returncode == 0) is check, done.stdout + done.stderr
        return done.stdout

    def backup(self, *options: str) -> str:
        """Back it up; return the backup's id."""
        said = self.run("backup", "create", *(options or ("--incremental",)), "web1")
        found = re.search(r"^[0-9a-f-]{36}$", said, re.MULTILINE)
        assert found is not None, said
        return found[0]

    def change(self, seed: int, count: int = 5) -> None:
        noise = random.Random(seed)
        for number in noise.sample(range(LENGTH // GRAIN), count):
            data = noise.randbytes(GRAIN)
            self.host.write("web1", number * GRAIN, data)
            self.bytes[number * GRAIN : (number + 1) * GRAIN] = data

    def checkpoints(self) -> list[str]:
        return self.host.virsh("checkpoint-list", "web1", "--name").split()


def test_the_guide(host: Libvirt, tmp_path: Path) -> None:
    options = {
        "volumes": {"enabled": "local, exports"},
        "volumes:exports": {"driver": "nbd", "timeout": 20},
        "backup": {"verify_unchanged": 0},
    }
    with tempfile.TemporaryDirectory() as place, running(tmp_path / "state", options) as service:
        disk = Disk(host, service, Path(place))

        def check(backup: str, *, changed: int | None) -> None:
            told = shown(service, backup)
            if changed is None:
                assert told["comparison"].startswith("whole comparison: the token no longer holds")
            else:
                assert told["comparison"] == "changed blocks by token"
                assert told["read_bytes"] <= 1.1 * changed * GRAIN
            assert restored(service, backup, tmp_path / "restored.qcow2") == disk.bytes
            assert len(disk.checkpoints()) == 1
            assert not disk.socket.exists()

        disk.change(1, 100)
        disk.run("volume", "adopt", "--backend", "exports", "--name", "web1", disk.location)
        assert shown(service, disk.backup("--wait"))["read_bytes"] == 100 * GRAIN
        disk.change(2)
        check(disk.backup(), changed=5)

        # One that fails: nothing of what changed is lost.
        disk.change(3)
        disk.run("backup", "create", "--incremental", "no-such-volume", check=False)
        disk.change(4)
        check(disk.backup(), changed=10)

        # One whose script is killed.
        disk.change(5)
        words = [str(disk.script), "web1", "vda", "sleep", "1000"]
        killed = subprocess.Popen(
            words, env={**os.environ, **host.environment}, stdout=subprocess.DEVNULL, start_new_session=True
        )
        give_up = time.monotonic() + 60
        while not disk.socket.exists():
            assert time.monotonic() < give_up
            time.sleep(0.02)
        os.killpg(killed.pid, signal.SIGKILL)
        killed.wait()
        disk.change(6)
        check(disk.backup(), changed=10)

        # The machine is switched off, and on again.
        disk.change(7)
        host.virsh("destroy", "web1", "--graceful")
        host.virsh("start", "web1", "--paused")
        disk.change(8)
        check(disk.backup(), changed=10)

        # QEMU crashes.
        disk.change(9)
        host.io("web1", "flush")
        host.kill("web1")
        while "running" in (state := host.virsh("domstate", "web1")) or "paused" in state:
            assert time.monotonic() < give_up + 60
            time.sleep(0.05)
        host.virsh("start", "web1", "--paused")
        disk.change(10)
        check(disk.backup(), changed=None)
        disk.change(11)
        check(disk.backup(), changed=5)
