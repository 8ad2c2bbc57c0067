"""The conformance suite: disks of a running machine, and exports of a server."""

from __future__ import annotations

import json
import socket as connecting
import subprocess
import tempfile
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest
from backupfw_nbd.exports import NbdProvider
from backupfw_nbd.fleece import point_of
from backupfw_nbd.machines import QemuProvider
from backupfw_nbd.places import DiskPlace, ExportPlace
from backupfw_nbd.qmp import Monitor, MonitorAway

from backupfw.testing.volume import Subject, VolumeProviderTests, adopted
from backupfw.volume.base import Capabilities, Needed, VolumeProvider, VolumeRef
from backupfw.volume.nbd.client import Client, Server
from tests.servers.qemu import Machine, machine, qemu_missing, run
from tests.waiting import wait_until

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

    def test_v10_a_volume_that_never_was(self, server: Machine, volume: Subject) -> None:
        """It looks like a machine that is off, in which something of us may be left."""
        before = server.names()
        nowhere = VolumeRef(str(uuid.uuid4()), self.length)
        volume.provider.keep_points(nowhere, Needed)
        with pytest.raises(MonitorAway) as caught:
            volume.provider.keep_points(replace(nowhere, location=f"{volume.ref.location}x"), Needed)
        assert caught.value.may_pass
        volume.provider.keep_points(
            replace(nowhere, location=f"qemu+unix:///nothing?monitor={server.monitor}"), Needed
        )
        assert server.names() == before

    def test_no_answer_to_a_client_that_is_gone_counts(self, server: Machine, volume: Subject) -> None:
        """The monitor goes on with its command, and answers whoever is connected then."""
        device = f"d-{self.node(volume.ref)}"
        slow = f'qemu-io -d {device} "sleep 300"'
        for _ in range(3):
            killed = Monitor(str(server.monitor), 20)
            command = {"execute": "human-monitor-command", "arguments": {"command-line": slow}}
            killed._socket.sendall(json.dumps(command).encode() + b"\n")
            # The command has begun, most of the time.
            time.sleep(0.1)
            killed.close()
            with Monitor(str(server.monitor), 20) as monitor:
                assert monitor.run("query-uuid") == {"UUID": server.id}

    test_v7_a_token_of_a_later_point_is_no_lie = test_v10_what_is_read_stays
    test_v19_threads_with_points_of_their_own = test_v10_what_is_read_stays
    test_v19_processes_with_one_volume = test_v10_what_is_read_stays
    test_model_random_histories = test_v10_what_is_read_stays


class NotNamed(NbdProvider):
    """Exports without named bitmaps, as those of most servers."""

    API_VERSION: ClassVar[int] = 2

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, changes=False)


class TestExports(VolumeProviderTests):
    """Exports of qemu-nbd: raw files that are read and written by the tests, too."""

    provider_class = NotNamed
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

    def answers() -> bool:
        with connecting.socket(connecting.AF_UNIX) as connection:
            return connection.connect_ex(str(socket)) == 0

    wait_until("the server", answers)
    return socket


class Named(NbdProvider):
    """Exports of points: they are read only."""

    API_VERSION: ClassVar[int] = 2

    @property
    def capabilities(self) -> Capabilities:
        return replace(super().capabilities, writes=False)


class TestNamedBitmaps(VolumeProviderTests):
    """Exports that somebody else manages, who names each state and what changed between two of them."""

    provider_class = Named
    secrets = ()
    length: ClassVar[int] = 3_000_320
    step: ClassVar[int] = 512
    grain: ClassVar[int] = 64 << 10
    declared: ClassVar[Mapping[str, str]] = {
        "create": "volumes are adopted",
        "extend": "the server's storage is extended there",
        "grow": "the server's storage is extended there",
        "shrink": "the server's storage is shortened there",
        "lose": "a server that does not answer may be back soon",
        "swap": "an export says nothing of its storage",
        "foreign": "it keeps nothing for points",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Exporter]:
        if missing := qemu_missing():
            pytest.skip(missing)
        with tempfile.TemporaryDirectory() as name, exporter(Path(name)) as running:
            yield running

    def options(self, server: Exporter) -> Mapping[str, object]:
        return {"servers": [str(server.directory)], "timeout": 20}

    def name(self, volume: VolumeRef) -> str:
        return ExportPlace.parse(volume.location or "").name

    def make_volume(self, server: Exporter, provider: VolumeProvider, length: int) -> VolumeRef:
        return adopted(provider, self.adoptable(server, length))

    def adoptable(self, server: Exporter, length: int) -> str:
        return server.location(server.add(length))

    def remove_volume(self, server: Exporter, provider: VolumeProvider, volume: VolumeRef) -> None:
        server.remove(self.name(volume))

    def raw_write(self, server: Exporter, volume: VolumeRef, offset: int, data: bytes) -> None:
        with server.changed(self.name(volume)) as client:
            client.write(offset, data)

    def raw_read(self, server: Exporter, volume: VolumeRef, offset: int, length: int) -> bytes:
        found = bytearray(length)
        with server.connected(self.name(volume)) as client:
            client.read_into(offset, memoryview(found))
        return bytes(found)

    def raw_names(self, server: Exporter) -> Collection[str]:
        return set(server.states)

    def discard(self, server: Exporter, volume: VolumeRef, offset: int, length: int) -> None:
        with server.changed(self.name(volume)) as client:
            client.zero(offset, length)

    def restart_server(self, server: Exporter) -> None:
        server.stop()
        server.start()

    def test_v10_what_is_compared_with_stays(self) -> None:
        pytest.skip("declared: whoever exports the volume manages its bitmaps, too")

    test_v7_the_token_of_a_removed_point_is_refused = test_v10_what_is_compared_with_stays

    def test_a_state_that_is_not_named_has_no_token(self, server: Exporter, volume: Subject) -> None:
        node = self.name(volume.ref)
        with volume.provider.open_point(volume.ref, "a") as point:
            token = point.token
            assert token is not None
        one, two, other = (str(uuid.uuid4()) for _ in range(3))
        for bitmaps, writable in (
            # A server whose export is written does not show one state.
            ([f"backupfw:{one}:{two}"], True),
            # Two names of one state.
            ([f"backupfw:{one}:{two}", f"backupfw:{one}:{other}"], False),
            (["backupfw:yesterday:today"], False),
            ([f"backupfw:{one.upper()}:{two}"], False),
            ([f"backup-{one}:{two}"], False),
            ([], False),
        ):
            server.show(node, bitmaps, writable=writable)
            with volume.provider.open_point(volume.ref, "a") as point:
                assert point.token is None
                assert point.compare(token) is not None

    def test_after_a_change_of_its_length_all_is_read(self, server: Exporter, volume: Subject) -> None:
        with volume.provider.open_point(volume.ref, "a") as point:
            token = point.token
        assert token is not None
        shorter = replace(volume.ref, length=512)
        with volume.provider.open_point(shorter, "b") as point:
            assert point.compare(token) is None
            assert point.compare(token.replace(str(self.length), str(self.length - 512))) is not None


class Exporter:
    """A server of qcow2 images, which names each state of each of them; a state ends with the next write."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.socket = directory / "s"
        self._monitor = directory / "monitor"
        #: Of each image, its states: each has a bitmap of its name, of what was written since.
        self.states: dict[str, list[str]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        words = [
            "--chardev",
            f"socket,id=c,path={self._monitor},server=on,wait=off",
            "--monitor",
            "chardev=c",
        ]
        words += ["--nbd-server", f"addr.type=unix,addr.path={self.socket},max-connections=0"]
        self._process = subprocess.Popen(["qemu-storage-daemon", *words])
        wait_until("the server", lambda: self._monitor.exists() and self.socket.exists())
        self._qmp = Monitor(str(self._monitor), 20)
        for node in self.states:
            self._attach(node)
            self._name(node)

    def stop(self) -> None:
        assert self._process is not None
        self._qmp.run("quit")
        self._process.wait()
        self._qmp.close()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def location(self, node: str) -> str:
        return f"nbd+unix:///{node}?socket={self.socket}"

    def add(self, length: int) -> str:
        node = f"d{uuid.uuid4().hex[:20]}"
        run("qemu-img", "create", "-q", "-f", "qcow2", self.directory / node, length)
        self._attach(node)
        self.states[node] = [str(uuid.uuid4())]
        self._bitmap(node, self.states[node][0], persistent=True)
        self._name(node)
        return node

    def remove(self, node: str) -> None:
        del self.states[node]
        for name in (node, f"w-{node}"):
            self._end(name)
        self._qmp.run("blockdev-del", **{"node-name": node})
        (self.directory / node).unlink()

    @contextmanager
    def connected(self, node: str) -> Iterator[Client]:
        """Lend a client that can write."""
        client = Client([Server(f"w-{node}", str(self.socket)).begin], timeout=20)
        try:
            yield client
        finally:
            client.close()

    @contextmanager
    def changed(self, node: str) -> Iterator[Client]:
        """The same, for a change: it ends a state, and begins another one."""
        self._end(node)
        with self.connected(node) as client:
            yield client
        self.states[node].append(str(uuid.uuid4()))
        self._bitmap(node, self.states[node][-1], persistent=True)
        self._name(node)

    def show(self, node: str, bitmaps: Sequence[str], *, writable: bool) -> None:
        """Export with these bitmaps, which have nothing in them."""
        self._end(node)
        for name in bitmaps:
            self._bitmap(node, name, disabled=True)
        self._add(node, node, bitmaps, writable=writable)

    def _name(self, node: str) -> None:
        """Export what is now, with what changed since all earlier states."""
        states = self.states[node]
        shown = [f"backupfw:{since}:{states[-1]}" for since in states]
        for since, name in zip(states, shown, strict=True):
            self._bitmap(node, name, disabled=True)
            self._qmp.run("block-dirty-bitmap-merge", node=node, target=name, bitmaps=[since])
        self._add(node, node, shown, writable=False)

    def _attach(self, node: str) -> None:
        file = {"driver": "file", "filename": str(self.directory / node)}
        self._qmp.run(
            "blockdev-add", **{"driver": "qcow2", "node-name": node, "file": file, "discard": "unmap"}
        )
        self._add(f"w-{node}", node, [], writable=True)

    def _bitmap(self, node: str, name: str, **how: bool) -> None:
        self._qmp.run("block-dirty-bitmap-add", node=node, name=name, granularity=64 << 10, **how)

    def _add(self, name: str, node: str, bitmaps: Sequence[str], *, writable: bool) -> None:
        export = {"type": "nbd", "id": name, "name": name, "node-name": node, "writable": writable}
        self._qmp.run("block-export-add", **export, bitmaps=list(bitmaps))

    def _end(self, name: str) -> None:
        """End an export, with the bitmaps that were made for it."""
        self._qmp.run("block-export-del", id=name, mode="hard")
        wait_until(
            f"the end of {name}",
            lambda: all(one["id"] != name for one in self._qmp.run("query-block-exports")),
            pause=0.005,
        )
        for node in self._qmp.run("query-named-block-nodes", flat=True):
            for bitmap in node.get("dirty-bitmaps", []) if node["node-name"] == name else ():
                if bitmap["name"].startswith("backup"):
                    self._qmp.run("block-dirty-bitmap-remove", node=name, name=bitmap["name"])


@contextmanager
def exporter(directory: Path) -> Iterator[Exporter]:
    running = Exporter(directory)
    try:
        running.start()
        yield running
    finally:
        running.kill()
