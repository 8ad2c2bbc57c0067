"""The conformance suite: disks of a running machine, and exports of a server."""

from __future__ import annotations

import socket as connecting
import subprocess
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
from backupfw_nbd.exports import NbdProvider
from backupfw_nbd.fleece import point_of
from backupfw_nbd.machines import QemuProvider
from backupfw_nbd.places import DiskPlace, ExportPlace

from backupfw.testing.volume import Subject, VolumeProviderTests, adopted
from backupfw.volume.base import Needed, VolumeProvider, VolumeRef
from tests.servers.qemu import Machine, machine, qemu_missing, run

pytestmark = pytest.mark.server


class TestQemuProvider(VolumeProviderTests):
    """Disks of a machine, in qcow2."""

    provider_class = QemuProvider
    secrets = ()
    length: ClassVar[int] = 3_000_320
    step: ClassVar[int] = 512
    grain: ClassVar[int] = 64 << 10
    model_examples: ClassVar[int] = 6
    kills: ClassVar[int] = 3
    declared: ClassVar[Mapping[str, str]] = {
        "create": "volumes are adopted",
        "extend": "the machine's disk is extended by QEMU",
        "shrink": "QEMU shrinks no disk that is used",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Machine]:
        if missing := qemu_missing():
            pytest.skip(missing)
        with tempfile.TemporaryDirectory() as name, machine(Path(name)) as running:
            yield running

    def options(self, server: Machine) -> Mapping[str, object]:
        return {"scratch_dir": str(server.scratch), "timeout": 20}

    def node(self, volume: VolumeRef) -> str:
        return DiskPlace.parse(volume.location or "").node

    def make_volume(self, server: Machine, provider: VolumeProvider, length: int) -> VolumeRef:
        return adopted(provider, self.adoptable(server, length))

    def adoptable(self, server: Machine, length: int) -> str:
        return server.location(server.add_disk(length))

    def remove_volume(self, server: Machine, provider: VolumeProvider, volume: VolumeRef) -> None:
        if self.node(volume) in server.disks:
            server.remove_disk(self.node(volume))

    def raw_write(self, server: Machine, volume: VolumeRef, offset: int, data: bytes) -> None:
        server.write(self.node(volume), offset, data)

    def raw_read(self, server: Machine, volume: VolumeRef, offset: int, length: int) -> bytes:
        # What the machine has written may be in QEMU's memory still.
        server.io(self.node(volume), "flush")
        out = server.directory / f"{uuid.uuid4()}.raw"
        run("qemu-img", "convert", "-U", "-f", "qcow2", "-O", "raw", server.disks[self.node(volume)], out)
        content = out.read_bytes()
        out.unlink()
        return content[offset : offset + length]

    def raw_names(self, server: Machine) -> Collection[str]:
        return server.names()

    def discard(self, server: Machine, volume: VolumeRef, offset: int, length: int) -> None:
        server.io(self.node(volume), f"write -q -z -u {offset} {length}")

    def grow(self, server: Machine, volume: VolumeRef, length: int) -> None:
        # QEMU resizes no disk of which a point can be read.
        ids = {point_of(name.split()[1]) for name in server.names() if name.startswith("bitmap backupfw-")}
        needed = Needed(compared=frozenset(filter(None, ids)))
        self.open_provider(server).keep_points(volume, lambda: needed)
        server.qmp("block_resize", **{"node-name": self.node(volume), "size": length})

    def lose(self, server: Machine, volume: VolumeRef) -> None:
        server.remove_disk(self.node(volume))

    def swap(self, server: Machine, volume: VolumeRef) -> None:
        node = self.node(volume)
        path = server.disks[node]
        server.remove_disk(node)
        other = path.with_name(f"{uuid.uuid4()}.qcow2")
        run("qemu-img", "create", "-q", "-f", "qcow2", other, volume.length)
        server.disks[node] = other
        server._attach(node)

    def foreign(self, server: Machine, volume: VolumeRef) -> str:
        name = f"nightly-{uuid.uuid4()}"
        server.qmp("block-dirty-bitmap-add", node=self.node(volume), name=name)
        return f"bitmap {name}"

    def restart_server(self, server: Machine) -> None:
        server.stop()
        server.start()

    def test_v10_what_is_read_stays(self, server: Machine, volume: Subject) -> None:
        """QEMU shows one point of a disk at a time; the service makes one backup of a volume at a time."""
        pytest.skip("declared: one point of a disk at a time can be read")

    test_v7_a_token_of_a_later_point_is_no_lie = test_v10_what_is_read_stays
    test_v19_threads_with_points_of_their_own = test_v10_what_is_read_stays
    test_v19_processes_with_one_volume = test_v10_what_is_read_stays
    test_model_random_histories = test_v10_what_is_read_stays


class TestNbdProvider(VolumeProviderTests):
    """Exports of qemu-nbd: raw files that are read and written by the tests, too."""

    provider_class = NbdProvider
    secrets = ()
    length: ClassVar[int] = 3_000_320
    step: ClassVar[int] = 512
    grain: ClassVar[int] = 64 << 10
    declared: ClassVar[Mapping[str, str]] = {
        "create": "volumes are adopted",
        "extend": "the server's storage is extended there",
        "lose": "a server that does not answer may be back soon",
        "swap": "an export says nothing of its storage",
        "foreign": "it keeps nothing for points",
        "grow": "the server sees a new length when it starts again",
        "shrink": "the server sees a new length when it starts again",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
        if missing := qemu_missing():
            pytest.skip(missing)
        running: dict[str, subprocess.Popen[bytes]] = {}
        with tempfile.TemporaryDirectory() as name:
            running_in[id(running)] = Path(name)
            yield running
            for process in running.values():
                process.kill()
                process.wait()

    def options(self, server: object) -> Mapping[str, object]:
        return {"servers": [str(running_in[id(server)])], "timeout": 20}

    def file(self, volume: VolumeRef) -> Path:
        return Path(ExportPlace.parse(volume.location or "").socket or "").with_suffix(".raw")

    def make_volume(self, server: dict, provider: VolumeProvider, length: int) -> VolumeRef:  # type: ignore[type-arg]
        return adopted(provider, self.adoptable(server, length))

    def adoptable(self, server: dict, length: int) -> str:  # type: ignore[type-arg]
        path = running_in[id(server)] / f"{uuid.uuid4().hex}.raw"
        with path.open("wb") as file:
            file.truncate(length)
        return f"nbd+unix:///disk?socket={serve(server, path)}"

    def remove_volume(self, server: dict, provider: VolumeProvider, volume: VolumeRef) -> None:  # type: ignore[type-arg]
        if (process := server.pop(str(self.file(volume)), None)) is not None:
            process.kill()
            process.wait()
        for path in (self.file(volume), self.file(volume).with_suffix(".sock")):
            path.unlink(missing_ok=True)

    def raw_write(self, server: object, volume: VolumeRef, offset: int, data: bytes) -> None:
        with self.file(volume).open("r+b") as file:
            file.seek(offset)
            file.write(data)

    def raw_read(self, server: object, volume: VolumeRef, offset: int, length: int) -> bytes:
        with self.file(volume).open("rb") as file:
            file.seek(offset)
            return file.read(length)

    def raw_names(self, server: dict) -> Collection[str]:  # type: ignore[type-arg]
        return set(map(str, running_in[id(server)].glob("*.raw")))

    def discard(self, server: object, volume: VolumeRef, offset: int, length: int) -> None:
        run("fallocate", "-p", "-o", offset, "-l", length, self.file(volume))

    def test_v3_the_same_state_has_the_same_identity(self, volume: Subject) -> None:
        pytest.skip("declared: an export does not show whether it was written")

    def restart_server(self, server: dict) -> None:  # type: ignore[type-arg]
        for path, process in list(server.items()):
            process.kill()
            process.wait()
            serve(server, Path(path))


#: The directory of the sockets and files of a dictionary of servers.
running_in: dict[int, Path] = {}


def serve(server: dict[str, subprocess.Popen[bytes]], path: Path) -> Path:
    socket = path.with_suffix(".sock")
    socket.unlink(missing_ok=True)
    words = [
        "qemu-nbd",
        "-t",
        "-e",
        "8",
        "-f",
        "raw",
        "--discard=unmap",
        "-x",
        "disk",
        "-k",
        str(socket),
        str(path),
    ]
    server[str(path)] = subprocess.Popen(words)
    give_up = time.monotonic() + 60
    while True:
        with connecting.socket(connecting.AF_UNIX) as connection:
            try:
                connection.connect(str(socket))
                return socket
            except OSError:
                assert time.monotonic() < give_up
                time.sleep(0.01)
