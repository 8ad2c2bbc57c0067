"""Encryption of a served instance: what the store sees, and what becomes of lost and destroyed keys."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Service, running

LENGTH = 6 * MIB + 512
MARK = b"the plaintext that nobody may see, not even its beginning"
NAME = "a name that nobody may see"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    options: dict[str, dict[str, Any]] = {
        "backup": {"segment_size": 1 << 20, "pack_size": 1 << 18},
        "store:main": {"encryption": "project"},
    }
    with running(tmp_path / "state", options) as service:
        yield service


def marked(path: Path) -> None:
    write_image(path, LENGTH)
    with path.open("r+b") as image:
        for at in range(0, LENGTH - len(MARK), 100_000):
            image.seek(at)
            image.write(MARK)


def stored(service: Service) -> dict[str, bytes]:
    root = service.state / "store"
    return {str(path.relative_to(root)): path.read_bytes() for path in files_below(root)}


def test_the_store_sees_neither_data_nor_names(service: Service, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    marked(image)
    client = service.client()
    volume = client.adopt(image)
    client.expect(200, "PUT", f"/volumes/{volume}", {"volume": {"name": NAME}})
    backup = client.backup(volume, name=NAME, description=NAME)
    objects = stored(service)
    [secret] = (path.read_bytes() for path in (service.state / "keys").iterdir() if path.name.isalnum())
    assert sum("/keys.d/" in key for key in objects) == 1
    for key, data in objects.items():
        for hidden in (MARK[:16], NAME.encode(), secret[-32:]):
            assert hidden not in data, key
    shown = json.loads(service.command("backup", "show", backup).stdout)
    assert shown["encryption"]["algorithm"] == "aes-256-gcm"
    [key] = json.loads(service.command("keys", "list", "--format", "json").stdout)
    assert key["key_id"] == shown["encryption"]["project_key"]
    # A command without a running service reads it, too.
    out = tmp_path / "out.raw"
    service.command("backup", "restore", backup, "--to", str(out))
    assert same_content(image, out, LENGTH)
    assert service.command("backup", "verify", backup).returncode == 0


def test_a_rotation_leaves_every_backup_readable(service: Service, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    marked(image)
    client = service.client()
    volume = client.adopt(image)
    first = client.backup(volume)
    before = stored(service)
    service.command("keys", "rotate", "--project", "demo")
    changed = {key for key, data in stored(service).items() if before[key] != data}
    assert len(changed) == 1
    assert all("/keys.d/" in key for key in changed)
    change_image(image, 1)
    second = client.backup(volume, incremental=True)
    of = {
        backup: json.loads(service.command("backup", "show", backup).stdout)["encryption"]
        for backup in (first, second)
    }
    assert of[first]["data_key"] != of[second]["data_key"]
    assert of[first]["project_key"] == of[second]["project_key"]
    client.delete_backup(first)
    assert same_content(image, client.volume_path(client.restore(second)), LENGTH)
    assert service.command("audit").returncode == 0


def test_lost_keys_lose_the_data_and_say_so(service: Service, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    marked(image)
    client = service.client()
    backup = client.backup(client.adopt(image))
    aside = tmp_path / "keys"
    aside.mkdir()
    for path in (service.state / "keys").iterdir():
        if path.is_file() and len(path.read_bytes()) > 0:
            os.rename(path, aside / path.name)
    out = tmp_path / "out.raw"
    failed = service.command("backup", "restore", backup, "--to", str(out), check=False)
    assert failed.returncode != 0
    assert "key" in failed.stderr
    assert not out.exists()
    for path in aside.iterdir():
        os.rename(path, service.state / "keys" / path.name)
    service.command("backup", "restore", backup, "--to", str(out))
    assert same_content(image, out, LENGTH)


def test_destroyed_keys_end_the_backups_of_a_project(service: Service, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    marked(image)
    client = service.client()
    volume = client.adopt(image)
    backup = client.backup(volume)
    refused: subprocess.CompletedProcess[str] = service.command(
        "keys", "destroy", "--project", "demo", check=False
    )
    assert refused.returncode != 0
    assert client.status("backup", backup) == "available"
    service.command("keys", "destroy", "--project", "demo", "--yes")
    client.wait_status("backup", backup, "error")
    shown = client.expect(200, "GET", f"/backups/{backup}")["backup"]
    assert "destroyed" in shown["fail_reason"]
    client.expect(400, "POST", f"/backups/{backup}/restore", {"restore": {}})
    # The volume goes on with a new key, and what is left can be deleted without the old one.
    again = client.backup(volume)
    assert same_content(image, client.volume_path(client.restore(again)), LENGTH)
    client.delete_backup(backup)
    client.delete_backup(again)
    assert not stored(service)
