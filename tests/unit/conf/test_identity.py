"""``[keystone_authtoken]``: what is told before anything listens."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest

from backupfw.cmd import configure
from backupfw.conf.load import Loaded
from backupfw.errors import ConfigError

GOOD = "auth_type = password\nauth_url = http://127.0.0.1:1/v3\nusername = us\npassword = secret\n"


def load(folder: Path, section: str) -> Loaded:
    path = folder / "backupfw.conf"
    path.write_text(f"[api]\nauth_strategy = keystone\n[keystone_authtoken]\n{section}")
    return configure.load(
        argparse.Namespace(state_dir=str(folder / "state"), config_file=[str(path)], debug=False)
    )


def test_defaults_that_differ_from_the_librarys(tmp_path: Path) -> None:
    loaded = load(tmp_path, GOOD)
    section = loaded.conf.keystone_authtoken
    assert section.http_connect_timeout == 10
    assert section.service_type == "block-storage"
    assert section.www_authenticate_uri == "http://127.0.0.1:1/v3"
    assert section.token_cache_time == 300
    assert loaded.unused_sections == ()


def test_credentials_may_stand_in_another_section(tmp_path: Path) -> None:
    loaded = load(tmp_path, f"auth_section = ours\n[ours]\n{GOOD}")
    assert loaded.conf.ours.username == "us"
    assert loaded.conf.keystone_authtoken.www_authenticate_uri == "http://127.0.0.1:1/v3"
    assert loaded.unused_sections == ()


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ("", r"\[keystone_authtoken\], option auth_type: needs a value; allowed: one of .*password"),
        ("auth_type = magic\n", "option auth_type: 'magic' is not known; allowed: one of"),
        ("auth_type = password\n", "option auth_url: needs a value"),
        (GOOD + "usrname = x\n", "option usrname: no such option; did you mean username?"),
        (GOOD + "token_cache_time = long\n", "option token_cache_time"),
        (GOOD + "delay_auth_decision = true\n", "option delay_auth_decision: .*allowed: false"),
        (GOOD + "memcache_security_strategy = MAC\n", "option memcache_secret_key: needs a value"),
    ],
)
def test_what_is_wrong_is_reported(tmp_path: Path, section: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, section)


@pytest.mark.parametrize("library", ["cachetools", "keystoneauth1", "keystonemiddleware"])
def test_the_libraries_are_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    said = rf"auth_strategy: keystone needs the package {library} \(pip install 'backupfw\[keystone\]'\)"
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, GOOD)


def test_memcached_needs_its_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="memcached_servers: needs the package python-memcached"):
        load(tmp_path, GOOD + "memcached_servers = 127.0.0.1:11211\n")
