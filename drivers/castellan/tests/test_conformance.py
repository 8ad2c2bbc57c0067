"""The conformance suite of key stores on Castellan's back end for Vault, against a stand-in for Vault."""

from __future__ import annotations

import binascii
import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from backupfw_castellan.key_store import CastellanKeyStore

from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError
from backupfw.keys.errors import KeyStoreUnavailable
from backupfw.testing.keys import KeyStoreTests

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
