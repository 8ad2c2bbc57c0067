"""The conformance suite on the provider ``local`` where the file system shares blocks (reflink)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backupfw.testing.volume import Subject
from backupfw.volume.base import SnapshotRef
from tests.integration.volume.mounts import mounted, need
from tests.unit.volume.test_conformance import TestLocalProvider as LocalTests


class TestLocalProviderOnXfs(LocalTests):
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
        need("mkfs.xfs")
        with mounted(tmp_path_factory.mktemp("xfs"), "mkfs.xfs", "-q", "-m", "reflink=1") as directory:
            (directory / "adopted").mkdir()
            yield directory

    def test_the_snapshots_share_blocks(self, server: Path, volume: Subject) -> None:
        volume.write(0, b"x" * self.length)
        with open(self.path(server, volume.ref)) as file:
            os.fsync(file.fileno())
        before = os.statvfs(server).f_bavail
        snapshot = SnapshotRef("11111111-2222-3333-4444-555555555555", volume.ref, self.length)
        volume.provider.create_snapshot(snapshot, True)
        taken = (before - os.statvfs(server).f_bavail) * os.statvfs(server).f_frsize
        volume.provider.delete_snapshot(snapshot)
        assert taken < self.length // 4


del LocalTests
