"""The conformance suite on the provider ``local``."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from backupfw.testing.volume import VolumeProviderTests, adopted
from backupfw.volume.base import VolumeProvider, VolumeRef
from backupfw.volume.local import linux
from backupfw.volume.local.provider import LocalProvider
from tests.servers.programs import missing_programs


class TestLocalProvider(VolumeProviderTests):
    provider_class = LocalProvider
    secrets = ()
    grain = 4096
    declared: ClassVar[Mapping[str, str]] = {
        "foreign": "it keeps nothing for points",
        "restart_server": "there is no server",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Path]:
        with tempfile.TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "adopted").mkdir()
            yield directory

    def options(self, server: Path) -> Mapping[str, object]:
        return {"volumes_dir": str(server / "volumes"), "snapshot_settle": 0.05, "fence_wait": 0.5}

    def path(self, server: Path, volume: VolumeRef) -> Path:
        return server / "volumes" / (volume.location or "")

    def raw_write(self, server: Path, volume: VolumeRef, offset: int, data: bytes) -> None:
        with open(self.path(server, volume), "r+b") as file:
            file.seek(offset)
            file.write(data)

    def raw_read(self, server: Path, volume: VolumeRef, offset: int, length: int) -> bytes:
        with open(self.path(server, volume), "rb") as file:
            file.seek(offset)
            return file.read(length)

    def raw_names(self, server: Path) -> Collection[str]:
        return {str(path) for path in server.rglob("*") if path != server / "volumes"}

    def adoptable(self, server: Path, length: int) -> str:
        path = server / "adopted" / f"{uuid.uuid4()}.img"
        path.touch()
        os.truncate(path, length)
        return str(path)

    def remove_volume(self, server: Path, provider: LocalProvider, volume: VolumeRef) -> None:  # type: ignore[override]
        if volume.adopted:
            self.path(server, volume).unlink(missing_ok=True)
        provider.delete(volume)

    def discard(self, server: Path, volume: VolumeRef, offset: int, length: int) -> None:
        fd = os.open(self.path(server, volume), os.O_RDWR)
        linux.punch_hole(fd, offset, length)
        os.close(fd)

    def grow(self, server: Path, volume: VolumeRef, length: int) -> None:
        os.truncate(self.path(server, volume), length)

    shrink = grow

    def lose(self, server: Path, volume: VolumeRef) -> None:
        self.path(server, volume).unlink()

    def swap(self, server: Path, volume: VolumeRef) -> None:
        path = self.path(server, volume)
        other = path.with_suffix(".other")
        other.touch()
        os.truncate(other, volume.length)
        other.replace(path)


@pytest.mark.server
class TestImages(TestLocalProvider):
    """The same of qcow2 images that were adopted; what is made of them is raw."""

    step = 512
    grain = 64 << 10
    length = 3_000_320
    declared: ClassVar[Mapping[str, str]] = TestLocalProvider.declared

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _qemu(cls) -> None:
        if missing := missing_programs("qemu-nbd", "qemu-img", "qemu-io"):
            pytest.skip(f"{missing} are not installed")

    def path(self, server: Path, volume: VolumeRef) -> Path:
        return server / "volumes" / volume.location if not volume.adopted else Path(volume.location or "")

    def make_volume(self, server: Path, provider: VolumeProvider, length: int) -> VolumeRef:
        return adopted(provider, self.adoptable(server, length))

    def adoptable(self, server: Path, length: int) -> str:
        path = server / "adopted" / f"{uuid.uuid4()}.qcow2"
        qemu("img", "create", "-q", "-f", "qcow2", path, length)
        return str(path)

    def raw_write(self, server: Path, volume: VolumeRef, offset: int, data: bytes) -> None:
        if not volume.adopted:
            super().raw_write(server, volume, offset, data)
            return
        with tempfile.NamedTemporaryFile(dir=server) as content:
            content.write(data)
            content.flush()
            self._io(volume, f"write -q -s {content.name} {offset} {len(data)}")

    def raw_read(self, server: Path, volume: VolumeRef, offset: int, length: int) -> bytes:
        if not volume.adopted:
            return super().raw_read(server, volume, offset, length)
        out = server / f"{uuid.uuid4()}.raw"
        qemu("img", "convert", "-U", "-f", "qcow2", "-O", "raw", self.path(server, volume), out)
        content = out.read_bytes()
        out.unlink()
        return content[offset : offset + length]

    def discard(self, server: Path, volume: VolumeRef, offset: int, length: int) -> None:
        if not volume.adopted:
            super().discard(server, volume, offset, length)
            return
        self._io(volume, f"write -q -z -u {offset} {length}")

    def grow(self, server: Path, volume: VolumeRef, length: int) -> None:
        if not volume.adopted:
            super().grow(server, volume, length)
            return
        qemu("img", "resize", "-q", "-f", "qcow2", self.path(server, volume), length)

    def shrink(self, server: Path, volume: VolumeRef, length: int) -> None:
        if not volume.adopted:
            super().shrink(server, volume, length)
            return
        # QEMU keeps what is in the last cluster behind the end, and shows it when the image grows again.
        told = qemu("img", "info", "-U", "-f", "qcow2", "--output", "json", self.path(server, volume))
        end = min(-(-length // self.grain) * self.grain, json.loads(told)["virtual-size"])
        if end > length:
            self._io(volume, f"write -q -z {length} {end - length}")
        qemu("img", "resize", "-q", "--shrink", "-f", "qcow2", self.path(server, volume), length)

    def swap(self, server: Path, volume: VolumeRef) -> None:
        other = self.adoptable(server, volume.length)
        Path(other).replace(self.path(server, volume))

    def _io(self, volume: VolumeRef, command: str) -> None:
        # A machine would be kept out by QEMU's lock: this writer takes none.
        options = f"driver=qcow2,file.driver=file,file.locking=off,file.filename={volume.location}"
        qemu("io", "--image-opts", options, "-c", command)


def qemu(program: str, *words: object) -> str:
    done = subprocess.run([f"qemu-{program}", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout
