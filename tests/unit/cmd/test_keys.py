"""``backupfw keys``, and what ``config check`` says of the key store."""

from __future__ import annotations

import json
from pathlib import Path

from backupfw.keys.file import FileKeyStore
from tests.unit.cmd.conftest import Run
from tests.unit.keys.support import opened


def of_keys(out: str) -> list[tuple[str, str]]:
    return [(one["result"], one["detail"]) for one in json.loads(out) if one["check"] == "key store"]


def test_config_check_uses_the_key_store(run: Run, state: Path) -> None:
    assert "key store: driver file\n" in run("config", "check").out
    done = run("config", "check", "--connect")
    assert "key store: ok\n" in done.out
    assert not state.exists(), "a check makes nothing"
    state.mkdir()
    keys: FileKeyStore = opened(state)
    key_id = keys.create("project")
    assert run("config", "check", "--connect").status == 0
    (state / "keys" / key_id).chmod(0o644)
    done = run("config", "check", "--connect")
    assert done.status == 1
    assert f"key store: NOT ok: project key {key_id}: others may use the file" in done.out
    done = run("config", "check", "--connect", "--format", "json")
    (plain, connected) = of_keys(done.out)
    assert plain == ("ok", "")
    assert connected[0] == "failed"


def test_config_check_without_a_key_store(run: Run, tmp_path: Path) -> None:
    conf = tmp_path / "own.conf"
    conf.write_text(
        f"[DEFAULT]\nenabled_stores = main\n[store:main]\ndriver = memory\n"
        f"[database]\nconnection = sqlite:///{tmp_path}/db.sqlite\n"
        f"[volumes:local]\nvolumes_dir = {tmp_path}/v\n"
    )
    done = run("config", "check", "--connect", "--config-file", str(conf), "--format", "json", at_state=False)
    assert of_keys(done.out) == []
