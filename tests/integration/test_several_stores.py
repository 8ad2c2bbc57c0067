"""Several stores in one service: each backup keeps its own, and one that is down is nobody else's trouble."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import sqlite3
import uuid
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.service import Client, Service, running

LENGTH = 6 * MIB + 512 * 3
SIZES = {"backup": {"segment_size": 2 * MIB, "pack_size": MIB}}


def two_stores(directory: Path, default: str) -> dict[str, dict[str, Any]]:
    """The configuration of a service with two directories as stores."""
    return {
        "DEFAULT": {"enabled_stores": "one, two", "default_store": default},
        "store:one": {"driver": "posix", "path": directory / "one"},
        "store:two": {"driver": "posix", "path": directory / "two", "container": "others"},
        **SIZES,
    }


#: What a record says of a volume that nobody made anything special of.
PLAIN = {"volume_type": "__DEFAULT__", "bootable": False, "image_metadata": {}}


def files(store: Path, text: str = "") -> list[Path]:
    return [path for path in files_below(store) if text in str(path)]


def recorded(service: Service, table: str, column: str, row_id: str) -> str:
    """Read one value of the service's database: a command would start an interpreter for each."""
    with contextlib.closing(sqlite3.connect(service.state / "backupfw.sqlite")) as db:
        return str(db.execute(f"SELECT {column} FROM {table} WHERE id = ?", (row_id,)).fetchone()[0])


def store_of(service: Service, backup: str) -> str:
    return recorded(service, "backups", "store", backup)


def path_of(client: Client, volume: str) -> Path:
    # Images of the service's own are named relative to their directory.
    return client.service.state / "volumes" / recorded(client.service, "volumes", "location", volume)


def volume_of(client: Client, image: Path, seed: int = 1, **fields: Any) -> str:
    """Write an image and a volume that begins with the same bytes; returns the volume's id."""
    write_image(image, LENGTH, seed)
    volume = client.create_volume(**fields)
    pour(client, image, volume)
    return volume


def pour(client: Client, image: Path, volume: str) -> None:
    with open(path_of(client, volume), "r+b") as raw:
        raw.write(image.read_bytes())


def export(client: Client, backup: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Export a backup; returns what the API answered and what its record says."""
    exported = client.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    return exported, json.loads(base64.b64decode(exported["backup_url"]))


def test_a_backup_keeps_its_store_when_the_default_changes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.raw", tmp_path / "second.raw"
    with running(tmp_path / "state", two_stores(tmp_path, "one")) as service:
        client = service.client()
        old_volume = volume_of(client, first)
        full = client.backup(old_volume)
        new_volume = volume_of(client, second, seed=2)
    with running(tmp_path / "state", two_stores(tmp_path, "two")) as service:
        client = service.client()
        change_image(first, 5)
        pour(client, first, old_volume)
        incremental = client.backup(old_volume, incremental=True)
        other = client.backup(new_volume)
        assert [store_of(service, backup) for backup in (full, incremental, other)] == ["one", "one", "two"]
        assert client.expect(200, "GET", f"/backups/{other}")["backup"]["container"] == "others"
        assert export(client, full)[1]["driver_info"] == {"store": "one", "volume": PLAIN}
        assert export(client, other)[1]["driver_info"] == {"store": "two", "volume": PLAIN}
        # An export of the old store is imported from there.
        exported, record = export(client, incremental)
        record["id"] = str(uuid.uuid4())
        exported["backup_url"] = base64.b64encode(json.dumps(record).encode()).decode()
        client.expect(201, "POST", "/backups/import_record", {"backup-record": exported})
        client.wait_status("backup", record["id"], "available")
        assert store_of(service, record["id"]) == "one"
        client.delete_backup(full)
        client.delete_backup(incremental)
        assert service.command("backup", "verify", "--quick", record["id"]).returncode == 0
        assert service.command("backup", "verify", other).returncode == 0
        for backup, image in ((record["id"], first), (other, second)):
            assert same_content(image, path_of(client, client.restore(backup)), LENGTH)
        assert files(tmp_path / "one", old_volume)
        assert files(tmp_path / "two" / "others", new_volume)
        assert not files(tmp_path / "one", new_volume)
        assert not files(tmp_path / "two", old_volume)
        client.delete_backup(record["id"])
        client.delete_backup(other)
        assert files(tmp_path / "one", old_volume) == files(tmp_path / "two", new_volume) == []


def test_a_store_is_moved(tmp_path: Path) -> None:
    """Copied, swapped and emptied; then another installation restores from the second store alone."""
    image = tmp_path / "image.raw"
    with running(tmp_path / "state", two_stores(tmp_path, "one")) as service:
        client = service.client()
        volume = volume_of(client, image)
        full = client.backup(volume)
        change_image(image, 5)
        pour(client, image, volume)
        incremental = client.backup(volume, incremental=True)
        service.command("backup", "copy", incremental, "--to", "two")
        done = service.command("backup", "copy", "--all", "--from", "one", "--to", "two")
        assert done.stdout == "1 backup done, 0 not\n"
        for words in (
            (full, "--to", "one"),
            ("--all", "--to", "three"),
            (full, "--from", "one", "--to", "two"),
        ):
            assert service.command("backup", "copy", *words, check=False).returncode in (1, 2)
        shown = client.expect(200, "GET", f"/backups/{incremental}/copies")["copies"]
        assert [(one["store"], one["container"], one["status"]) for one in shown] == [
            ("two", "others", "available")
        ]
        assert len(files(tmp_path / "two", volume)) == len(files(tmp_path / "one", volume))
        # What is lost in one store is read from the other, and is there again.
        lost = sorted(path for path in files(tmp_path / "one", full) if path.name != "manifest")
        for path in lost:
            path.unlink()
        service.command("backup", "restore", incremental, "--to", str(tmp_path / "restored.raw"))
        assert same_content(image, tmp_path / "restored.raw", LENGTH)
        lost[0].unlink(missing_ok=True)
        found = service.command("backup", "repair", full).stdout.splitlines()
        assert found == ["store one: 1 object repaired", "store two: 0 objects repaired"]
        done = service.command("backup", "copy", "--all", "--from", "one", "--promote", "two")
        assert done.stdout == "2 backups done, 0 not\n"
        service.command("audit")
        service.command("backup", "copy", "--all", "--remove", "one")
        client.wait("the old store to be empty", lambda: not files(tmp_path / "one", volume))
        service.command("audit")
        assert store_of(service, incremental) == "two"
        exported, _record = export(client, incremental)
        client.delete_backup(full)
    shutil.rmtree(tmp_path / "one")
    options = {
        "DEFAULT": {"enabled_stores": "two"},
        "store:two": {"driver": "posix", "path": tmp_path / "two", "container": "others"},
        **SIZES,
    }
    with running(tmp_path / "other", options) as other:
        client = other.client()
        client.expect(201, "POST", "/backups/import_record", {"backup-record": exported})
        client.wait_status("backup", incremental, "available")
        assert same_content(image, path_of(client, client.restore(incremental)), LENGTH)


def test_rules_choose_the_store(tmp_path: Path) -> None:
    options = two_stores(tmp_path, "one")
    options["DEFAULT"]["placement_rules"] = "gold"
    options["placement:gold"] = {"store": "two", "volume_types": "gold", "projects": "demo"}
    with running(tmp_path / "state", options) as service:
        client = service.client()
        image = tmp_path / "image.raw"
        client.expect(200, "POST", "/types", {"volume_type": {"name": "gold"}})
        plain, gold = client.create_volume(), volume_of(client, image, volume_type="gold")
        assert store_of(service, client.backup(plain)) == "one"
        backup = client.backup(gold)
        assert store_of(service, backup) == "two"
        assert store_of(service, client.backup(gold, container="one:")) == "one"
        # The newest backup is in the other store now: the next one is stored anew, and is right.
        child = client.backup(gold, incremental=True)
        shown = client.expect(200, "GET", f"/backups/{child}")["backup"]
        assert (shown["is_incremental"], store_of(service, child)) == (True, "two")
        client.delete_backup(backup)
        restored = client.restore(child)
        assert same_content(image, path_of(client, restored), LENGTH)
        # It is what the old volume was, so the rule sends its backups to the same store.
        assert store_of(service, client.backup(restored)) == "two"


def test_an_import_finds_its_store_without_a_usable_hint(tmp_path: Path) -> None:
    """Exactly one store must have the manifest; the hint decides only where it names one that has it."""
    made = tmp_path / "made"
    with running(tmp_path / "state", two_stores(made, "one")) as service:
        client = service.client()
        image = tmp_path / "image.raw"
        backup = client.backup(volume_of(client, image))
        exported, record = export(client, backup)
    left, right = tmp_path / "left", tmp_path / "right"
    shutil.copytree(made / "one", left)
    options = {
        "DEFAULT": {"enabled_stores": "left, right", "default_store": "right"},
        "store:left": {"driver": "posix", "path": left},
        "store:right": {"driver": "posix", "path": right},
        **SIZES,
    }
    with running(tmp_path / "other", options) as other:
        client = other.client("elsewhere")

        def take(hint: Any, **changes: Any) -> tuple[str | None, str | None]:
            text = json.dumps({**record, "driver_info": {"store": hint}, **changes})
            exported["backup_url"] = base64.b64encode(text.encode()).decode()
            client.expect(201, "POST", "/backups/import_record", {"backup-record": exported})
            status = client.wait_status("backup", backup, "available", "error")
            return status, client.expect(200, "GET", f"/backups/{backup}")["backup"]["fail_reason"]

        def drop() -> None:
            client.delete_backup(backup)

        # Stores have other names here; the hint names none, or one that has nothing.
        for hint in ("one", "right", None):
            assert take(hint) == ("available", None)
            assert store_of(other, backup) == "left"
            drop()
        shutil.copytree(left, right)
        assert take("one") == (
            "error",
            "More than one enabled store has the data that the backup record names.",
        )
        drop()
        assert take("right") == ("available", None)
        assert store_of(other, backup) == "right"
        assert same_content(image, path_of(client, client.restore(backup)), LENGTH)
        drop()
        # A container that no store here could have is one that has nothing.
        nowhere = "No enabled store has the data that the backup record names."
        assert take("left", container=".hidden") == ("error", nowhere)
        drop()
        # Nothing was deleted with the records: the data is another installation's.
        assert len(files(left)) == len(files(right)) == len(files(made / "one"))
        shutil.rmtree(left)
        shutil.rmtree(right)
        assert take("left") == ("error", nowhere)


@pytest.fixture
def hole() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_store_that_hangs_leaves_the_others_working(hole: str, tmp_path: Path) -> None:
    """More backups to it than there are slots; they end with a clear reason, and nobody waits for them."""
    pytest.importorskip("backupfw_s3", reason="not installed: backupfw-s3")
    options = two_stores(tmp_path, "one")
    options["DEFAULT"]["enabled_stores"] = "one, two, dead"
    options["store:dead"] = {
        "driver": "s3",
        "endpoint": hole,
        "access_key_id": "nobody",
        "secret_access_key": "nothing",
        "read_timeout": 1,
        "retry_tries": 1,
    }
    options["backup"] = {**SIZES["backup"], "workers": 2, "service_wait": 8}
    with running(tmp_path / "state", options) as service:
        client = service.client()
        volumes = [volume_of(client, tmp_path / f"{number}.raw", number) for number in range(5)]
        stuck = [client.backup(volume, wait=False, container="dead:") for volume in volumes[:4]]
        good = client.backup(volumes[4])
        assert same_content(tmp_path / "4.raw", path_of(client, client.restore(good)), LENGTH)
        for backup, volume in zip(stuck, volumes, strict=False):
            client.wait_status("backup", backup, "error")
            shown = client.expect(200, "GET", f"/backups/{backup}")["backup"]
            assert shown["fail_reason"] == "The store does not answer."
            assert client.status("volume", volume) == "available"
        # What is asked now is told at once.
        late = client.backup(volumes[0], wait=False, container="dead:")
        client.wait_status("backup", late, "error")
        client.delete_backup(good)


def test_containers_are_not_made_where_the_service_may_not(tmp_path: Path) -> None:
    options = two_stores(tmp_path, "one")
    options["backup"] = {**SIZES["backup"], "create_containers": "false"}
    (tmp_path / "two" / "others").mkdir(parents=True)
    with running(tmp_path / "state", options) as service:
        client = service.client()
        volume = volume_of(client, tmp_path / "image.raw")
        refused = client.backup(volume, wait=False, container="mine")
        client.wait_status("backup", refused, "error")
        assert client.expect(200, "GET", f"/backups/{refused}")["backup"]["fail_reason"] == (
            "The container mine does not exist, and this service does not make containers."
        )
        assert not (tmp_path / "one" / "mine").exists()
        client.backup(volume, container="two:")


@pytest.mark.check
def test_a_policy_keeps_backups_longer_in_another_store(tmp_path: Path) -> None:
    """Each is copied; the older one leaves its own store and lives on as the copy; the oldest is deleted."""
    options = two_stores(tmp_path, "one")
    options["backup"] = {**SIZES["backup"], "poll_seconds": 0.1}
    with running(tmp_path / "state", options) as service:
        client = service.client()
        # Only this version has policies.
        client.base = client.base.replace("/v2/", "/v3/")
        image = tmp_path / "image.raw"
        volume = volume_of(client, image)
        wanted = {
            "schedule": {"cron": "0 0 1 1 *"},
            "selection": {"volume_ids": [volume]},
            "retention": {"last": 1},
            "copy_to": [{"store": "two", "retention": {"last": 2}}],
        }
        policy = client.expect(201, "POST", "/backup-policies", {"backup_policy": wanted})["backup_policy"]
        path = f"/backup-policies/{policy['id']}"

        def places() -> list[list[str]]:
            said = client.expect(200, "POST", f"{path}/action", {"preview": {}})["preview"]["volumes"][0]
            return [[one["store"] for one in fate["places"]] for fate in said["backups"]]

        def copied() -> bool:
            found = client.expect(200, "GET", "/backups/detail")["backups"]
            states = [client.expect(200, "GET", f"/backups/{one['id']}/copies")["copies"] for one in found]
            return all(copy["status"] == "available" for one in states for copy in one)

        second = tmp_path / "second.raw"
        for number, expected in enumerate(([["one", "two"]], [["one", "two"], ["two"]])):
            if number:
                change_image(image, number)
                pour(client, image, volume)
                shutil.copyfile(image, second)
            client.expect(202, "POST", f"{path}/action", {"run": {}})
            client.wait("the places", lambda expected=expected: copied() and places() == expected)
        change_image(image, 7)
        pour(client, image, volume)
        (oldest,) = [
            one["id"] for one in client.expect(200, "GET", "/backups?sort=created_at:asc&limit=1")["backups"]
        ]
        client.expect(202, "POST", f"{path}/action", {"run": {}})
        client.wait_status("backup", oldest, None)
        client.wait("the places", lambda: copied() and places() == [["one", "two"], ["two"]])
        _, moved = client.expect(200, "GET", "/backups?sort=created_at:desc")["backups"]
        assert store_of(service, moved["id"]) == "two"
        assert same_content(second, path_of(client, client.restore(moved["id"])), LENGTH)
        # What later backups share stays.
        for backup in (oldest, moved["id"]):
            there = partial(files, tmp_path / "one", backup)
            client.wait(
                "a clean-up", lambda there=there: not [one for one in there() if one.name == "manifest"]
            )
        assert service.command("backup", "verify", "--all").returncode == 0
        assert service.command("audit").returncode == 0
