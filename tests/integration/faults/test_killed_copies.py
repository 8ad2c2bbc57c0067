"""kill -9 and SIGTERM of workers in the middle of what has two stores, one of them a real server.

They copy, remove a copy, scrub and convert: another worker goes on, and nothing is lost or left.  Who gets
SIGTERM gives its task back and ends, and its parent starts another process by itself.
"""

from __future__ import annotations

import json
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import boto3
import pytest

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content
from tests.integration.faults.test_kill_at_crash_points import SEGMENTS, STREAMS, Killing, volume_of
from tests.integration.faults.world import Installation, installation, wait
from tests.integration.service import Client
from tests.servers.rabbitmq import RabbitMQ
from tests.servers.seaweedfs import SeaweedFS, seaweedfs, seaweedfs_missing

pytestmark = [pytest.mark.server, pytest.mark.check]

BOX = "backups-of-tests"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedFS]:
    if missing := seaweedfs_missing():
        pytest.skip(missing)
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as running:
        yield running


@pytest.fixture(scope="module")
def killing(
    fresh_database: Callable[[], str],
    broker: RabbitMQ,
    server: SeaweedFS,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Killing]:
    folder = tmp_path_factory.mktemp("installed")
    options = {
        "DEFAULT": {"enabled_stores": "main,offsite,theirs", "placement_rules": None},
        "store:main": {"container": BOX},
        "store:offsite": {
            "driver": "s3",
            "endpoint": server.endpoint,
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "sorted_listing": "false",
            "container": BOX,
            "scrub_days": 3650,
        },
        "store:theirs": {"driver": "posix", "path": folder / "theirs", "names": "plain"},
    }
    with installation(folder, fresh_database(), broker.url, options) as made:
        yield Killing(made)


def copies(client: Client, backup: str) -> dict[str, str]:
    found = client.expect(200, "GET", f"/backups/{backup}/copies")["copies"]
    return {one["store"]: one["status"] for one in found}


def copy(client: Client, backup: str, *, wait: bool = True) -> None:
    client.expect(202, "POST", f"/backups/{backup}/action", {"os-backupfw-copy": {"store": "offsite"}})
    if wait:
        wait_copy(client, backup)


def wait_copy(client: Client, backup: str) -> None:
    client.wait(f"the copy of {backup}", lambda: copies(client, backup).get("offsite") == "available")


def put_by(installed: Installation) -> Counter[str]:
    """How often each segment's map was put for copies, by all attempts."""
    return Counter(
        line.split(" ")[2] for line in installed.traps.reached() if line.startswith("copy.map-put ")
    )


def test_copy(killing: Killing, tmp_path: Path) -> None:
    installed, client = killing.installed, killing.installed.client()
    image, volume = volume_of(client, tmp_path, 1)
    backup = client.backup(volume)
    killing.arm("copy.placed")
    installed.traps.set("copy.map-put", signal.SIGTERM)
    installed.traps.set("copy.manifest-put")
    copy(client, backup, wait=False)
    killing.died("copy.placed")
    installed.wait_struck("copy.map-put")
    killing.died("copy.manifest-put")
    wait_copy(client, backup)
    # What one attempt put, the next one does not put again, but for what each stream was at.  The first one
    # put nothing, and the last one ended well.
    maps, ended = put_by(installed), installed.traps.attempts("copy") - 2
    assert maps.total() - len(maps) <= STREAMS * ended, maps
    # The first store loses it all: it is restored from the copy, which puts it there again.
    packs = files_below(installed.folder / "store", "p*.o")
    assert packs
    for path in packs:
        path.unlink()
    assert same_content(image, installed.path_of(client.restore(backup)), SEGMENTS * MIB)
    installed.audit()


def test_removal_of_a_copy(killing: Killing, tmp_path: Path) -> None:
    """The copy of the next backup shares what stays."""
    installed, client = killing.installed, killing.installed.client()
    image, volume = volume_of(client, tmp_path, 2)
    doomed = client.backup(volume)
    change_image(image, 1)
    kept = client.backup(volume, incremental=True)
    copy(client, doomed)
    copy(client, kept)
    killing.arm("delete.data-deleted")
    installed.traps.set("delete.some-deleted", signal.SIGTERM)
    client.expect(202, "POST", f"/backups/{doomed}/action", {"os-backupfw-remove_copy": {"store": "offsite"}})
    installed.wait_struck("delete.some-deleted")
    killing.died("delete.data-deleted")
    installed.audit()
    assert (copies(client, doomed), copies(client, kept)) == ({}, {"offsite": "available"})
    done = installed.command("backup", "repair", kept)
    assert done.returncode == 0, done.stdout


def let_look(installed: Installation) -> None:
    """Let a worker look for something to scrub: each does at its start, and then once a minute."""
    assert installed.workers["w1"].stop() == 0
    installed.start_worker("w1")


@pytest.mark.parametrize("asked_for", [False, True], ids=["by-itself", "asked-for"])
def test_scrub(killing: Killing, tmp_path: Path, server: SeaweedFS, asked_for: bool) -> None:
    """An object of the copy that is missing is put there again."""
    installed, client = killing.installed, killing.installed.client()
    _, volume = volume_of(client, tmp_path, 3)
    backup = client.backup(volume)
    copy(client, backup)
    bucket = boto3.session.Session().client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )
    listed = bucket.list_objects_v2(Bucket=BOX)["Contents"]
    lost = next(one["Key"] for one in listed if f"/{backup}/" in one["Key"] and one["Key"].endswith("/p0000"))
    bucket.delete_object(Bucket=BOX, Key=lost)
    killing.arm("scrub.segment")
    installed.traps.set("scrub.recorded", signal.SIGTERM)
    if asked_for:
        client.expect(202, "POST", f"/backups/{backup}/action", {"os-backupfw-verify": {}})
    else:
        installed.execute(
            "UPDATE manifests SET fully_verified_at = '2000-01-01'"
            " WHERE store = 'offsite' AND backup_id = :id",
            id=backup,
        )
        let_look(installed)
    killing.died("scrub.segment")
    if not asked_for:
        over = "SELECT id FROM tasks WHERE lease_until < timezone('utc', statement_timestamp())"
        wait("the end of the lease", lambda: installed.rows(over), installed.log_tail)
        let_look(installed)
    installed.wait_struck("scrub.recorded")
    proven = (
        "SELECT id FROM manifests"
        " WHERE store = 'offsite' AND backup_id = :id AND fully_verified_at > '2001-01-01'"
    )
    wait("the scrub", lambda: installed.rows(proven, id=backup), installed.log_tail)
    assert not installed.rows("SELECT * FROM damaged_objects")
    installed.audit()


def test_convert(killing: Killing, tmp_path: Path) -> None:
    """A chain of Cinder's format becomes backups of ours, on the real server."""
    installed, client = killing.installed, killing.installed.client()
    image, volume = volume_of(client, tmp_path, 4)
    before = tmp_path / "before.raw"
    shutil.copy(image, before)
    chain = [client.backup(volume)]
    change_image(image, 1)
    chain.append(client.backup(volume, incremental=True))
    done = installed.command("cinder", "export", chain[1], "--to", "theirs", "--container", BOX, "--chain")
    for backup in reversed(chain):
        client.delete_backup(backup)
    for one in json.loads(done.stdout):
        client.expect(201, "POST", "/backups/import_record", one)
    for backup in chain:
        client.wait_status("backup", backup, "available")
    killing.arm("backup.map-put")
    installed.traps.set("backup.recorded", signal.SIGTERM)
    installed.command("cinder", "convert", "--all", "--to", "offsite", "--no-wait")
    killing.died("backup.map-put")
    installed.wait_struck("backup.recorded")
    for backup, content in zip(chain, (before, image), strict=True):
        client.wait("the conversion", lambda backup=backup: copies(client, backup) == {"theirs": "available"})
        assert same_content(content, installed.path_of(client.restore(backup)), SEGMENTS * MIB)
    for backup in chain:
        client.delete_backup(backup)
    installed.audit()
