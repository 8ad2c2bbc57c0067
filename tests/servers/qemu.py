"""A machine of QEMU (emulated, never started) with disks that are written by its monitor."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.servers.programs import missing_programs
from tests.waiting import wait_until

PROGRAMS = ("qemu-system-x86_64", "qemu-img", "qemu-nbd", "qemu-io")


def qemu_missing() -> str:
    """Return what is missing, or nothing."""
    missing = missing_programs(*PROGRAMS)
    return f"{', '.join(missing)} are not installed" if missing else ""


def run(*words: object) -> None:
    """Run one of QEMU's programs."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout


class Machine:
    """A running machine; ``monitor`` is for the provider, and another one for the tests."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.monitor = directory / "monitor.sock"
        self._own = directory / "own.sock"
        self.scratch = directory / "scratch"
        self.scratch.mkdir()
        self.id = str(uuid.uuid4())
        self.disks: dict[str, Path] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, with the disks that it had."""
        words = ["-machine", "pc", "-m", "64", "-accel", "tcg", "-nodefaults", "-display", "none", "-S"]
        words += ["-uuid", self.id, "-device", "virtio-scsi-pci,id=scsi0"]
        for path in (self.monitor, self._own):
            words += ["-qmp", f"unix:{path},server=on,wait=off"]
        self._process = subprocess.Popen(["qemu-system-x86_64", *words])
        wait_until("the machine to take commands", self._connected)
        for node in self.disks:
            self._attach(node)

    def _connected(self) -> bool:
        try:
            self._connect()
        except OSError:
            return False
        return True

    def _connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self._own))
        self._file = connection.makefile("rw")
        self._file.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: Any) -> Any:
        """Do a command of the monitor."""
        message = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._file.write(json.dumps(message) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, (command, answer)

    def stop(self, *, kill: bool = False) -> None:
        """Switch it off, or kill it."""
        assert self._process is not None
        if kill:
            self._process.kill()
        else:
            self.qmp("quit")
        self._process.wait()

    def add_disk(self, length: int, format_: str = "qcow2") -> str:
        """Make a disk of zeros, and return its node's name."""
        node = f"disk-{uuid.uuid4().hex[:12]}"
        self.disks[node] = self.directory / f"{node}.{format_}"
        run("qemu-img", "create", "-q", "-f", format_, self.disks[node], length)
        self._attach(node)
        return node

    def _attach(self, node: str) -> None:
        path = self.disks[node]
        file = {"driver": "file", "filename": str(path), "node-name": f"{node}-f"}
        format_ = path.suffix[1:]
        self.qmp("blockdev-add", **{"driver": format_, "node-name": node, "file": file, "discard": "unmap"})
        self.qmp("device_add", driver="scsi-hd", id=f"d-{node}", drive=node, bus="scsi0.0")

    def remove_disk(self, node: str) -> None:
        """Take it out of the machine, with everything that is kept of it."""
        for name, one in self.nodes().items():
            if not os.path.basename(one["file"]).endswith(f".on-{node}.qcow2"):
                continue
            if not name.endswith("-f"):
                continue
            long = os.path.basename(one["file"]).split(".on-")[0]
            if f"export {long}" in self.names():
                self.qmp("block-export-del", id=long, mode="hard")
            if f"job {long}" in self.names():
                self.qmp("block-job-cancel", device=long, force=True)
            while {f"export {long}", f"job {long}"} & self.names():
                time.sleep(0.02)
            self.qmp("blockdev-del", **{"node-name": name.removesuffix("-f")})
        self.qmp("device_del", id=f"d-{node}")
        wait_until(f"the end of {node}", lambda: f"d-{node}" not in json.dumps(self.qmp("query-block")))
        self.qmp("blockdev-del", **{"node-name": node})
        self.disks.pop(node).unlink(missing_ok=True)

    def io(self, node: str, command: str) -> None:
        """Let the machine's device do something."""
        said = self.qmp("human-monitor-command", **{"command-line": f'qemu-io -d d-{node} "{command}"'})
        assert "error" not in said.lower(), said
        assert "failed" not in said.lower(), said

    def write(self, node: str, offset: int, data: bytes) -> None:
        """Write as the machine does."""
        path = self.directory / f"{uuid.uuid4().hex}.data"
        path.write_bytes(data)
        self.io(node, f"write -q -s {path} {offset} {len(data)}")
        path.unlink()

    def location(self, node: str) -> str:
        """Return the location of the disk as a volume."""
        return f"qemu+unix:///{node}?monitor={self.monitor}"

    def nodes(self) -> dict[str, Any]:
        """Return all block nodes by name."""
        return {one["node-name"]: one for one in self.qmp("query-named-block-nodes", flat=True)}

    def names(self) -> set[str]:
        """Return the names of everything that a provider may make, and of the disks."""
        nodes = self.nodes()
        found = {
            f"bitmap {bitmap['name']}"
            for node in nodes.values()
            for bitmap in node.get("dirty-bitmaps", [])
            # A job has one without a name.
            if "name" in bitmap
        }
        found |= {f"job {one['device']}" for one in self.qmp("query-block-jobs")}
        found |= {f"export {one['id']}" for one in self.qmp("query-block-exports")}
        # An overlay's node has no room for the id in its name: its file's name has it.
        found |= {
            f"node {os.path.basename(one['file'])}"
            for name, one in nodes.items()
            if name.startswith("backupfw-") and name.endswith("-f")
        }
        found |= {f"file {one}" for one in os.listdir(self.scratch) if not one.endswith(".sock")}
        return found | {f"disk {node}" for node in self.disks}


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """Run a machine."""
    running = Machine(directory)
    try:
        running.start()
        yield running
    finally:
        if running._process is not None and running._process.poll() is None:
            running._process.kill()
            running._process.wait()
