"""The key store 'file' passes the conformance suite, with and without a master key."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from backupfw.keys.file import MARKER, FileKeyStore
from backupfw.testing.keys import KeyStoreTests


class TestFile(KeyStoreTests):
    key_store_class = FileKeyStore
    secrets = ()
    declared = {"restart_server": "there is no server"}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        place = tmp_path_factory.mktemp("keys")
        (place / "master").write_bytes(os.urandom(32))
        (place / "other").write_bytes(os.urandom(32))
        (place / "short").write_bytes(os.urandom(31))
        for name in ("master", "other", "short"):
            (place / name).chmod(0o600)
        (place / "not-mounted").mkdir(0o700)
        return place

    def options(self, server: Path) -> Mapping[str, object]:
        return {"directory": str(server / "keys")}

    def unusable(self, server: Path) -> Sequence[Mapping[str, object]]:
        whole = dict(self.options(server))
        return [
            {"directory": str(server / "not-mounted")},
            {"directory": str(server / "master")},
            whole | {"master_key_file": str(server / "missing")},
            whole | {"master_key_file": str(server / "short")},
            whole | {"master_key_file": "of-systemd"},
        ]

    def raw_keys(self, server: Path) -> Mapping[str, bytes]:
        return {path.name: path.read_bytes() for path in (server / "keys").iterdir() if path.name != MARKER}


class TestFileWithMasterKey(TestFile):
    def options(self, server: Path) -> Mapping[str, object]:
        return {"directory": str(server / "keys"), "master_key_file": str(server / "master")}
