"""A real Cinder's own backup service: what it writes is restored here, and what is written here, there."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.content import MIB, change_image, digest, write_content
from tests.integration.service import Service
from tests.servers.cinder_backup import BUCKET, PROJECT, BackupCinder, cinder_backup, cinder_backup_missing
from tests.servers.directory import server_directory
from tests.servers.seaweedfs import SeaweedFS, seaweedfs, seaweedfs_missing

pytestmark = [pytest.mark.server, pytest.mark.check]

#: The volume's first bytes, which are not all holes.
LENGTH = 24 * MIB
#: The store of each zone's driver.
STORES = {"posix": "files", "s3": "objects"}


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    if reason := seaweedfs_missing() or cinder_backup_missing():
        pytest.skip(reason)
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture(scope="module")
def theirs(objects: SeaweedFS) -> Iterator[BackupCinder]:
    with server_directory() as directory, cinder_backup(directory, objects) as server:
        yield server


@pytest.fixture(scope="module")
def ours(
    theirs: BackupCinder, objects: SeaweedFS, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    options: dict[str, dict[str, Any]] = {
        "DEFAULT": {"enabled_stores": "main,files,objects"},
        "backup": {"poll_seconds": "0.2"},
        "store:files": {"driver": "posix", "path": theirs.backups, "names": "plain", "file_mode": "0660"},
        "store:objects": {
            "driver": "s3",
            "endpoint": objects.endpoint,
            "access_key_id": objects.access_key,
            "secret_access_key": objects.secret_key,
            "sorted_listing": "false",
        },
    }
    service = Service(tmp_path_factory.mktemp("service") / "state", options).start()
    yield service
    service.stop()


@pytest.fixture(scope="module")
def volume(theirs: BackupCinder) -> str:
    return theirs.tenant().create_volume(1, name="disk")


class Chain:
    """A full backup and increments of a volume, each of which brings zeros."""

    def __init__(self, theirs: BackupCinder, volume: str, zone: str, increments: int) -> None:
        path = theirs.file(volume)
        self.ids: list[str] = []
        self.sums: list[str] = []
        write_content(path, LENGTH)
        for number in range(increments + 1):
            if number:
                change_image(path, number, 8, LENGTH)
                with open(path, "r+b") as file:
                    file.seek(5 * MIB)
                    file.write(bytes(MIB))
            self.ids.append(theirs.back_up(volume, zone, incremental=number > 0, name=f"b{number}"))
            self.sums.append(digest(path))


def rows(service: Service, *words: str) -> list[dict[str, Any]]:
    return list(json.loads(service.command(*words, "--format", "json").stdout))


# Each pass over a volume of a GiB, which is the least, takes seconds: so each backup is read in one way only.
def test_what_cinder_wrote_into_files_is_restored_here(
    theirs: BackupCinder, ours: Service, volume: str, tmp_path: Path
) -> None:
    chain = Chain(theirs, volume, "posix", 2)
    # The newest by its record: what it needs is found. The others by a scan.
    record = tmp_path / "record.json"
    record.write_text(json.dumps({"backup-record": theirs.record(chain.ids[2])}))
    assert ours.command("backup", "import", str(record)).stdout.split() == [chain.ids[2]]
    found = rows(ours, "cinder", "scan", "--store", "files", "--project", PROJECT)
    assert {one["backup_id"]: one["result"] for one in found} == {
        chain.ids[0]: "entered",
        chain.ids[1]: "entered",
        chain.ids[2]: "known",
    }
    assert rows(ours, "backup", "verify", chain.ids[1])[0]["result"] == "ok"
    # To a volume that has something else everywhere.
    target = ours.client(PROJECT).create_volume()
    path = ours.client(PROJECT).volume_path(target)
    with open(path, "r+b") as file:
        file.write(b"\xaa" * LENGTH)
    ours.command("backup", "restore", chain.ids[2], "--volume", target)
    assert digest(path) == chain.sums[2]
    refused = ours.command("backup", "delete", chain.ids[0], check=False)
    assert "Incremental backups exist" in refused.stderr
    # What is deleted here is gone there, and the others are whole in Cinder, too.
    ours.command("backup", "delete", chain.ids[2])
    assert digest(theirs.restore(chain.ids[1])) == chain.sums[1]


def test_what_cinder_wrote_into_a_bucket_is_restored_here(
    theirs: BackupCinder, ours: Service, volume: str, tmp_path: Path
) -> None:
    chain = Chain(theirs, volume, "s3", 1)
    words = ("--store", "objects", "--container", BUCKET, "--project", PROJECT)
    assert [one["backup_id"] for one in rows(ours, "cinder", "scan", *words)] == chain.ids
    image = tmp_path / "image.raw"
    ours.command("backup", "restore", chain.ids[1], "--to", str(image))
    assert digest(image) == chain.sums[1]


@pytest.mark.parametrize(
    ("zone", "compression"), [("posix", "zlib"), pytest.param("s3", "zstd", marks=pytest.mark.soak)]
)
def test_what_is_written_here_cinder_restores_and_goes_on(
    theirs: BackupCinder, ours: Service, tmp_path: Path, zone: str, compression: str
) -> None:
    here = ours.client(PROJECT)
    mine = here.create_volume()
    write_content(here.volume_path(mine), LENGTH, 21)
    full = here.backup(mine)
    change_image(here.volume_path(mine), 22, 8, LENGTH)
    with open(here.volume_path(mine), "r+b") as file:
        file.seek(5 * MIB)
        file.write(bytes(MIB))
    newest = here.backup(mine, incremental=True)
    expected = digest(here.volume_path(mine))
    # The volume is in Cinder under another id; where both have the same volumes it is the same.
    volume = theirs.tenant().create_volume(1)
    shutil.copyfile(here.volume_path(mine), theirs.file(volume))
    words = ("--to", STORES[zone], "--container", f"from-{zone}", "--compression", compression, "--chain")
    for one in json.loads(ours.command("cinder", "export", newest, *words).stdout):
        record = one["backup-record"]
        told = json.loads(base64.b64decode(record["backup_url"]))
        told["volume_id"] = volume
        record["backup_url"] = base64.b64encode(json.dumps(told).encode()).decode()
        assert theirs.import_record(record) == told["id"]
    shown = theirs.tenant().call("GET", f"/backups/{full}")["backup"]
    assert (told["parent_id"], shown["has_dependent_backups"]) == (full, True)
    # The full one, and upon it what changed.
    assert digest(theirs.restore(newest)) == expected
    if zone != "posix":
        return
    change_image(theirs.file(volume), 23, 8, LENGTH)
    again = digest(theirs.file(volume))
    child = theirs.back_up(volume, zone, incremental=True)
    assert theirs.tenant().call("GET", f"/backups/{child}")["backup"]["is_incremental"]
    assert digest(theirs.restore(child)) == again
