"""libvirt, with machines of QEMU (emulated, paused) whose disks are written by their monitors."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.process import ServerProcess
from tests.servers.programs import find_program, missing_programs
from tests.servers.qemu import qemu_missing, run

_MACHINE = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>64</memory>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <emulator>{emulator}</emulator>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2' discard='unmap'/>
      <source file='{image}'/>
      <target dev='vda' bus='virtio'/>
    </disk>
  </devices>
</domain>
"""


def libvirt_missing() -> str:
    """Return what is missing, or nothing."""
    if missing := qemu_missing():
        return missing
    missing = missing_programs("libvirtd", "virsh", "unshare")
    return f"{', '.join(missing)} are not installed (tests/servers/install.sh libvirt)" if missing else ""


class Libvirt:
    """A libvirt of an unprivileged user, with all its files in one directory.

    :ivar environment: with these variables, virsh finds it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "run" / "libvirt-sock"
        self.environment = {"LIBVIRT_DEFAULT_URI": f"qemu+unix:///session?socket={self.socket}"}
        for variable in ("HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
            place = directory / ("run" if variable == "XDG_RUNTIME_DIR" else variable.lower())
            place.mkdir()
            self.environment[variable] = str(place)
        config = directory / "libvirtd.conf"
        config.write_text(f'unix_sock_dir = "{self.socket.parent}"\nauth_unix_rw = "none"\n')
        command = [find_program("libvirtd") or "", "-f", str(config)]
        if os.geteuid() == 0:
            # As root, it would use the places of the system's own.
            command = ["unshare", "--user", "--map-user=1000", "--map-group=1000", *command]
        self._process = ServerProcess(command, directory, environment=self.environment)
        self._machines: list[str] = []

    def wait_ready(self) -> None:
        """Wait until it answers."""
        self._process.wait_ready(lambda: bool(self.virsh("version")))

    def virsh(self, *words: object) -> str:
        """Run ``virsh``; return what it writes."""
        done = subprocess.run(
            ["virsh", *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, **self.environment},
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def add_machine(self, name: str, length: int) -> Path:
        """Start a machine with a disk ``vda`` of zeros; return its image."""
        image = self.directory / f"{name}.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", image, length)
        definition = self.directory / f"{name}.xml"
        emulator = shutil.which("qemu-system-x86_64")
        definition.write_text(_MACHINE.format(name=name, image=image, emulator=emulator))
        self.virsh("define", definition)
        self._machines.append(name)
        self.virsh("start", name, "--paused")
        return image

    def io(self, machine: str, command: str) -> None:
        """Let a machine's disk do something."""
        words = f'qemu-io -d /machine/peripheral/virtio-disk0/virtio-backend "{command}"'
        said = self.virsh("qemu-monitor-command", machine, "--hmp", words)
        assert "error" not in said.lower(), said
        assert "failed" not in said.lower(), said

    def write(self, machine: str, offset: int, data: bytes) -> None:
        """Write as a machine does."""
        path = self.directory / "written"
        path.write_bytes(data)
        self.io(machine, f"write -q -s {path} {offset} {len(data)}")

    def kill(self, machine: str) -> None:
        """Kill a machine's QEMU."""
        process = int((self.directory / "run" / "libvirt" / "qemu" / "run" / f"{machine}.pid").read_text())
        os.kill(process, 9)

    def stop(self) -> None:
        """End it, with its machines."""
        for name in self._machines:
            subprocess.run(
                ["virsh", "destroy", name], capture_output=True, env={**os.environ, **self.environment}
            )
        self._process.stop()


@contextmanager
def libvirt(directory: Path) -> Iterator[Libvirt]:
    """Run libvirt."""
    running = Libvirt(directory)
    try:
        running.wait_ready()
        yield running
    finally:
        running.stop()
