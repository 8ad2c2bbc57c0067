"""The conformance suite on the provider ``local``."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from backupfw.testing.volume import VolumeProviderTests
from backupfw.volume.base import VolumeRef
from backupfw.volume.local import linux
from backupfw.volume.local.provider import LocalProvider


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
