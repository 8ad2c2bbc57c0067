"""The conformance suite of key stores on Castellan's back ends: on OpenBao, and on a stand-in for Vault."""

from __future__ import annotations

import argparse
import binascii
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from backupfw_castellan.key_store import CastellanKeyStore
from keystoneauth1.identity import Password
from oslo_context import context

from backupfw.chunkstore.options import option_values
from backupfw.cmd import configure, database
from backupfw.cmd import main as command
from backupfw.conf import logging
from backupfw.errors import ConfigError
from backupfw.keys.errors import KeyStoreUnavailable
from backupfw.manager.usecases.keys import KeyManager
from backupfw.testing.keys import KeyStoreTests
from tests.servers.barbican import Barbican, barbican, barbican_missing
from tests.servers.keystone import keystone, keystone_missing
from tests.servers.openbao import ROLE, SECRET, TOKEN, openbao, openbao_missing

_PLACE = Path(__file__).with_name("vault_stand_in.py")
_SPEC = importlib.util.spec_from_file_location("castellan_vault_stand_in", _PLACE)
assert _SPEC is not None
assert _SPEC.loader is not None
stand_in = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = stand_in
_SPEC.loader.exec_module(stand_in)


class TestVault(KeyStoreTests):
    key_store_class = CastellanKeyStore
    secrets = (stand_in.TOKEN, stand_in.ROLE, stand_in.SECRET)
    kills = 3
    version = 1

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Any]:
        vault = stand_in.Vault()
        yield vault
        vault.stop()

    def options(self, server: Any) -> Mapping[str, object]:
        mount = f"v{self.version}"
        common = {"backend": "vault", "url": server.url, "kv_mount": mount, "kv_version": self.version}
        return common | {"token": stand_in.TOKEN}

    def unusable(self, server: Any) -> Sequence[Mapping[str, object]]:
        whole = dict(self.options(server))
        return [
            whole | {"url": "http://127.0.0.1:9"},
            whole | {"token": "s.wrong"},
            whole | {"kv_mount": "missing"},
        ]

    def raw_keys(self, server: Any) -> Mapping[str, bytes]:
        return {key: binascii.unhexlify(found["value"]) for key, found in server.secrets.items()}

    def restart_server(self, server: Any) -> None:
        server.stop()
        server.start()


class TestVaultVersion2WithAppRole(TestVault):
    kills = 1
    version = 2

    def options(self, server: Any) -> Mapping[str, object]:
        whole = dict(super().options(server))
        del whole["token"]
        return whole | {"approle_role_id": stand_in.ROLE, "approle_secret_id": stand_in.SECRET}

    def unusable(self, server: Any) -> Sequence[Mapping[str, object]]:
        whole = dict(self.options(server))
        return [whole | {"approle_secret_id": "wrong"}, whole | {"kv_mount": "missing"}]

    def test_a_deleted_key_is_still_in_version_2_of_the_store(self, server: Any, keys: Any) -> None:
        """As the README says: only an administrator of Vault can end that."""
        key_id = keys.create("project")
        keys.destroy(key_id)
        assert key_id in server.deleted


@pytest.mark.server
class TestOpenBao(TestVault):
    """A real server; its token may do what the README says, and nothing else."""

    secrets = (TOKEN, ROLE, SECRET)

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
        if missing := openbao_missing():
            pytest.skip(missing)
        with openbao(tmp_path_factory.mktemp("openbao")) as server:
            yield server

    def options(self, server: Any) -> Mapping[str, object]:
        return {**super().options(server), "token": TOKEN}

    def raw_keys(self, server: Any) -> Mapping[str, bytes]:
        listed = server.request("LIST", f"v{self.version}/backupfw")
        names = [] if listed is None else listed["data"]["keys"]
        found = {name: server.request("GET", f"v{self.version}/backupfw/{name}") for name in names}
        return {name: binascii.unhexlify(one["data"]["value"]) for name, one in found.items()}


@pytest.mark.server
class TestOpenBaoVersion2WithAppRole(TestOpenBao):
    version = 2

    def options(self, server: Any) -> Mapping[str, object]:
        whole = dict(super().options(server))
        del whole["token"]
        return whole | {"approle_role_id": ROLE, "approle_secret_id": SECRET}

    def unusable(self, server: Any) -> Sequence[Mapping[str, object]]:
        whole = dict(self.options(server))
        return [whole | {"approle_secret_id": "wrong"}, whole | {"kv_mount": "missing"}]

    def raw_keys(self, server: Any) -> Mapping[str, bytes]:
        listed = server.request("LIST", "v2/metadata/backupfw")
        names = [] if listed is None else listed["data"]["keys"]
        # What was deleted is listed, too.
        found = {name: server.request("GET", f"v2/data/backupfw/{name}") for name in names}
        values = {name: one["data"]["data"]["value"] for name, one in found.items() if one is not None}
        return {name: binascii.unhexlify(value) for name, value in values.items()}

    def test_a_deleted_key_is_still_in_version_2_of_the_store(self, server: Any, keys: Any) -> None:
        """As the README says: only an administrator of OpenBao can end that."""
        key_id = keys.create("project")
        keys.destroy(key_id)
        assert key_id in server.request("LIST", "v2/metadata/backupfw")["data"]["keys"]
        server.request("POST", f"v2/undelete/backupfw/{key_id}", {"versions": [1]})
        assert key_id in self.raw_keys(server)


@pytest.mark.server
class TestBarbican(KeyStoreTests):
    """A real server with a real Keystone; the service's user has the role ``member`` and no other one."""

    key_store_class = CastellanKeyStore
    secrets = ("very-secret-password-of-keeper",)
    kills = 1

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Barbican]:
        if missing := keystone_missing() or barbican_missing():
            pytest.skip(missing)
        with (
            keystone(tmp_path_factory.mktemp("keystone")) as users,
            barbican(tmp_path_factory.mktemp("barbican"), users) as server,
        ):
            yield server

    def options(self, server: Barbican) -> Mapping[str, object]:
        user = server.user
        return {
            "backend": "barbican",
            "url": server.url,
            "auth_url": server.keystone.url,
            "username": user.name,
            "password": user.password,
            "project_name": user.project,
        }

    def unusable(self, server: Barbican) -> Sequence[Mapping[str, object]]:
        whole = dict(self.options(server))
        return [
            whole | {"url": "http://127.0.0.1:9"},
            whole | {"auth_url": "http://127.0.0.1:9/v3"},
            whole | {"password": "wrong"},
            whole | {"project_name": "missing"},
        ]

    def raw_keys(self, server: Barbican) -> Mapping[str, bytes]:
        return server.secrets()

    def restart_server(self, server: Barbican) -> None:
        server.stop()
        server.start()

    def test_one_token_serves_until_it_ends(self, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        tokens: list[Any] = []
        get = Password.get_auth_ref
        monkeypatch.setattr(
            Password, "get_auth_ref", lambda *args, **kwargs: tokens.append(args) or get(*args, **kwargs)
        )
        key_id = keys.create("project")
        assert keys.unwrap(key_id, keys.wrap(key_id, b"secret", b"here"), b"here") == b"secret"
        assert len(tokens) <= 1

    def test_a_destroyed_key_stays_in_the_database_of_barbican(self, server: Barbican, keys: Any) -> None:
        """As the README says: an administrator of Barbican ends that."""
        key_id = keys.create("project")
        keys.destroy(key_id)
        assert key_id not in server.secrets()
        assert key_id in server.kept()
        server.clean()
        assert key_id not in server.kept()


def test_the_project_is_stored_with_the_key() -> None:
    vault = stand_in.Vault()
    try:
        values = {"backend": "vault", "url": vault.url, "kv_mount": "v1", "token": stand_in.TOKEN}
        key_id = CastellanKeyStore(option_values(CastellanKeyStore.options(), **values)).create("project-7")
        stored = json.loads(binascii.unhexlify(vault.secrets[key_id]["value"]))
        assert stored["project_id"] == "project-7"
        stored["project_id"] = "project-8"
        vault.secrets[key_id]["value"] = json.dumps(stored).encode().hex()
        with pytest.raises(Exception, match="its record is damaged"):
            CastellanKeyStore(option_values(CastellanKeyStore.options(), **values)).wrap(key_id, b"s", b"")
    finally:
        vault.stop()


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({}, "option auth_url: needs a value for the back end barbican"),
        ({"backend": "vault"}, "option url: needs a value for the back end vault"),
        ({"backend": "vault", "url": "http://v"}, "option token: needs a value"),
        ({"backend": "vault", "url": "http://v", "token": "se\ncret"}, "option token: has a blank"),
        ({"backend": "vault", "url": "http://v", "token": "secret "}, "option token: has a blank"),
    ],
)
def test_wrong_options_name_no_secret(values: Mapping[str, object], problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        CastellanKeyStore(option_values(CastellanKeyStore.options(), **values))
    assert problem in str(caught.value)
    assert "cret" not in str(caught.value).replace("secret_id", "")


def test_barbican_that_does_not_answer() -> None:
    values = {
        "auth_url": "http://127.0.0.1:9/v3",
        "username": "u",
        "password": "pass-word",
        "project_name": "p",
    }
    keys = CastellanKeyStore(option_values(CastellanKeyStore.options(), **values))
    with pytest.raises(KeyStoreUnavailable) as caught:
        keys.create("project")
    assert "pass-word" not in repr(caught.value)
    # The log lines of this thread name no caller of Castellan.
    assert context.get_current() is None


def test_a_replaced_key_is_destroyed_by_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging, "setup", lambda _conf, quiet=False: None)
    vault = stand_in.Vault()
    try:
        conf = tmp_path / "castellan.conf"
        conf.write_text(
            f"[keys]\ndriver = castellan\nbackend = vault\nurl = {vault.url}\nkv_mount = v1\n"
            f"token = {stand_in.TOKEN}\n"
        )
        place = ["--state-dir", str(tmp_path / "state"), "--config-file", str(conf)]
        assert command.main(["db", "sync", *place]) == 0
        values = {"backend": "vault", "url": vault.url, "kv_mount": "v1", "token": stand_in.TOKEN}
        old = CastellanKeyStore(option_values(CastellanKeyStore.options(), **values)).create("demo")
        args = argparse.Namespace(state_dir=str(tmp_path / "state"), config_file=[str(conf)], debug=False)
        with database.opened(configure.load(args).conf) as db:
            KeyManager(db).add_project_key("demo", old)
        assert command.main(["keys", "destroy", "--key", old, "--yes", *place]) == 1
        assert command.main(["keys", "rotate", "--project", "demo", *place]) == 0
        assert len(vault.secrets) == 2
        vault.stop()
        assert command.main(["keys", "destroy", "--key", old, "--yes", *place]) == 1
        vault.start()
        assert command.main(["keys", "destroy", "--key", old, "--yes", *place]) == 0
        assert old not in vault.secrets
        assert len(vault.secrets) == 1
    finally:
        vault.stop()
    assert stand_in.TOKEN not in "".join(capsys.readouterr())
