"""The API does not serve everybody by accident."""

from __future__ import annotations

from pathlib import Path

import pytest

from backupfw.conf import api, load
from backupfw.errors import ConfigError
from tests.unit.conf.plugins import PLUG_INS


def check(tmp_path: Path, listen: str, allow: bool = False) -> None:
    overrides = [("api", "listen", listen), ("api", "allow_noauth_beyond_loopback", allow)]
    api.check_listen(load.load(PLUG_INS, state_dir=str(tmp_path), overrides=overrides).conf)


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_noauth_may_listen_on_loopback(tmp_path: Path, listen: str) -> None:
    check(tmp_path, listen)


@pytest.mark.parametrize("listen", ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1"])
def test_noauth_beyond_loopback_needs_its_option(tmp_path: Path, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"section \[api\], option listen.*allow_noauth_beyond_loopback"):
        check(tmp_path, listen)
    check(tmp_path, listen, allow=True)


def test_a_name_without_an_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        check(tmp_path, "a b", allow=True)
