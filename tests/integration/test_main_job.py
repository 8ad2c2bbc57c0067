"""The main job over the API of a served instance: back up, change, delete, restore, import, in use."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.files import files_below
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.damaged_objects import flipped, refuses
from tests.integration.service import Client, Service, running
from tests.integration.volume.mounts import mounted

LENGTH = 24 * MIB + 512 * 7
OPTIONS = {"backup": {"segment_size": 4 * MIB, "pack_size": MIB}}


ENCRYPTED = {**OPTIONS, "store:main": {"encryption": "project"}}


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(OPTIONS, id="clear"),
        pytest.param(ENCRYPTED, id="encrypted", marks=pytest.mark.check),
    ],
)
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("main") / "state", request.param) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Client:
    return service.client(f"p{uuid.uuid4().hex[:8]}")


def store_files(service: Service) -> list[Path]:
    return files_below(service.state / "store")


def test_incremental_outlives_its_full(service: Service, client: Client, tmp_path: Path) -> None:
    image, dirty = tmp_path / "image.raw", tmp_path / "dirty.raw"
    write_image(image, LENGTH)
    write_image(dirty, LENGTH, seed=2)
    volume = client.adopt(image)
    full = client.backup(volume)
    change_image(image, 5)
    incremental = client.backup(volume, incremental=True)
    shown = client.expect(200, "GET", f"/backups/{incremental}")["backup"]
    assert shown["is_incremental"]
    assert client.expect(200, "GET", f"/backups/{full}")["backup"]["has_dependent_backups"]
    client.delete_backup(full)
    fresh = client.restore(incremental)
    assert same_content(image, client.volume_path(fresh), LENGTH)
    client.restore(incremental, client.adopt(dirty))
    assert same_content(image, dirty, LENGTH)
    assert client.service.command("backup", "verify", incremental).returncode == 0
    client.delete_backup(incremental)
    assert not [path for path in store_files(service) if volume in str(path)]


def test_names_and_metadata_travel(client: Client) -> None:
    volume = client.create_volume(name="source", description="what it is", metadata={"color": "blue"})
    backup = client.backup(volume, name="mine")
    unnamed = client.expect(202, "POST", f"/backups/{backup}/restore", {"restore": {}})["restore"]
    assert unnamed["volume_name"] == f"restore_backup_{backup}"
    client.wait_status("volume", unnamed["volume_id"], "available")
    restored = client.expect(200, "GET", f"/volumes/{unnamed['volume_id']}")["volume"]
    assert restored["name"] == "source"
    assert restored["description"] == "what it is"
    assert restored["metadata"] == {"color": "blue", "src_backup_id": backup}
    body = {"restore": {"name": "chosen"}}
    named = client.expect(202, "POST", f"/backups/{backup}/restore", body)["restore"]
    client.wait_status("volume", named["volume_id"], "available")
    assert client.expect(200, "GET", f"/volumes/{named['volume_id']}")["volume"]["name"] == "chosen"


def test_a_duplicate_and_its_original_are_deleted(service: Service, client: Client, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    volume = client.adopt(image)
    backup = client.backup(volume)
    exported = client.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    record = json.loads(base64.b64decode(exported["backup_url"]))
    record["id"] = str(uuid.uuid4())
    exported["backup_url"] = base64.b64encode(json.dumps(record).encode()).decode()
    imported = client.expect(201, "POST", "/backups/import_record", {"backup-record": exported})
    duplicate = imported["backup"]["id"]
    assert duplicate == record["id"]
    client.wait_status("backup", duplicate, "available")
    assert same_content(image, client.volume_path(client.restore(duplicate)), LENGTH)
    client.delete_backup(duplicate)
    assert same_content(image, client.volume_path(client.restore(backup)), LENGTH)
    client.delete_backup(backup)
    assert not [path for path in store_files(service) if volume in str(path)]
    # What was deleted stays deleted, whatever a record says.
    client.expect(201, "POST", "/backups/import_record", {"backup-record": exported})
    client.wait_status("backup", duplicate, "error")
    assert "deleted" in client.expect(200, "GET", f"/backups/{duplicate}")["backup"]["fail_reason"]
    client.delete_backup(duplicate)


def test_a_record_survives_its_database(client: Client, tmp_path: Path) -> None:
    """A second installation on the same store restores from the record alone."""
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    backup = client.backup(client.adopt(image))
    exported = client.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
    store = client.service.state / "store"
    before = len(store_files(client.service))
    options = {"store:main": {"path": store}, "keys": {"directory": client.service.state / "keys"}, **OPTIONS}
    with running(tmp_path / "other", options) as other:
        there = other.client("elsewhere")
        body = {"backup-record": exported}
        there.expect(201, "POST", f"/backups/{backup}/import_record", body)
        there.wait_status("backup", backup, "available")
        assert same_content(image, there.volume_path(there.restore(backup)), LENGTH)
        # Another installation's data is only read: deleting drops the record.
        there.delete_backup(backup)
    assert len(store_files(client.service)) == before


def test_snapshots_are_backed_up_and_forked_from(client: Client, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    volume = client.adopt(image)
    old = tmp_path / "old.raw"
    old.write_bytes(image.read_bytes())
    answer = client.expect(202, "POST", "/snapshots", {"snapshot": {"volume_id": volume}})
    snapshot = answer["snapshot"]["id"]
    client.wait_status("snapshot", snapshot, "available")
    change_image(image, 9)
    newest = client.backup(volume)
    backup = client.backup(volume, snapshot_id=snapshot)
    assert same_content(old, client.volume_path(client.restore(backup)), LENGTH)
    assert same_content(image, client.volume_path(client.restore(newest)), LENGTH)
    made = client.create_volume(snapshot_id=snapshot)
    assert same_content(old, client.volume_path(made), LENGTH)


class Writer:
    """Writes the same growing number to both ends of an image, all the time."""

    def __init__(self, image: Path) -> None:
        self._image = image
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        with open(self._image, "r+b", buffering=0) as file:
            while not self._stop.is_set():
                number += 1
                for place in (LENGTH - 512, 0):
                    file.seek(place)
                    file.write(number.to_bytes(8, "little"))


def assert_one_state(data: bytes) -> None:
    """The number at the end was written first, so it is the same or one ahead."""
    last, first = (int.from_bytes(data[at : at + 8], "little") for at in (LENGTH - 512, 0))
    assert last in (first, first + 1)


def attach(client: Client, volume: str) -> None:
    body = {"os-attach": {"instance_uuid": str(uuid.uuid4()), "mountpoint": "/dev/vdb"}}
    client.expect(202, "POST", f"/volumes/{volume}/action", body)


def test_a_volume_in_use_is_backed_up_in_one_state(client: Client, tmp_path: Path) -> None:
    """Without force it is refused; with force, and no reflinks, it is one state or an error that says so."""
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    volume = client.adopt(image)
    attach(client, volume)
    status, body = client.request("POST", "/backups", {"backup": {"volume_id": volume}})
    assert status == 400
    assert "force" in body["badRequest"]["message"]
    with Writer(image):
        backup = client.backup(volume, wait=False, force=True)
        status = client.wait_status("backup", backup, "available", "error")
    if status == "error":
        reason = client.expect(200, "GET", f"/backups/{backup}")["backup"]["fail_reason"]
        assert "kept changing" in reason
    else:
        assert_one_state(client.volume_path(client.restore(backup)).read_bytes())
    assert client.status("volume", volume) == "in-use"
    quiet = client.backup(volume, force=True)
    assert same_content(image, client.volume_path(client.restore(quiet)), LENGTH)


@pytest.mark.root
def test_a_volume_in_use_on_xfs_is_backed_up_atomically(tmp_path: Path) -> None:
    """With reflinks it always succeeds, however much is written meanwhile."""
    with mounted(tmp_path, "mkfs.xfs", "-q", "-m", "reflink=1") as point:
        image = point / "image.raw"
        write_image(image, LENGTH)
        options = {**OPTIONS, "volumes:local": {"volumes_dir": point / "volumes"}}
        with running(tmp_path / "state", options) as service:
            client = service.client()
            volume = client.adopt(image)
            attach(client, volume)
            with Writer(image):
                backup = client.backup(volume, force=True)
            assert_one_state(client.volume_path(client.restore(backup)).read_bytes())
            assert client.status("volume", volume) == "in-use"


def test_a_flipped_bit_is_named_and_never_restored(service: Service, client: Client, tmp_path: Path) -> None:
    image = tmp_path / "image.raw"
    write_image(image, 6 * MIB)
    backup = client.backup(client.adopt(image))
    for name in ("p0000", "map", "manifest"):
        path = min(path for path in store_files(service) if backup in str(path) and path.stem == name)
        whole = path.read_bytes()
        path.write_bytes(flipped(whole))
        # The driver marks each part of a key with what it is, by a suffix of two characters.
        parts = path.relative_to(service.state / "store" / "volumebackups").parts
        refuses(client, backup, "/".join(part[:-2] for part in parts))
        path.write_bytes(whole)
    assert service.command("backup", "verify", backup).returncode == 0
    assert same_content(image, client.volume_path(client.restore(backup)), 6 * MIB)
    client.delete_backup(backup)


def test_damage_is_found_and_stored_anew(service: Service, client: Client, tmp_path: Path) -> None:
    """One flipped bit: verify names the object, a restore refuses, the next incremental is whole."""
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    volume = client.adopt(image)
    backup = client.backup(volume)
    pack = min(path for path in store_files(service) if backup in str(path) and "/p0" in str(path))
    whole = pack.read_bytes()
    pack.write_bytes(whole[:500] + bytes([whole[500] ^ 4]) + whole[501:])
    found = service.command("backup", "verify", backup, check=False)
    assert found.returncode == 1
    assert "damaged: " in found.stdout
    answer = client.expect(202, "POST", f"/backups/{backup}/restore", {"restore": {}})["restore"]
    client.wait_status("volume", answer["volume_id"], "error")
    incremental = client.backup(volume, incremental=True)
    assert service.command("backup", "verify", incremental).returncode == 0
    assert same_content(image, client.volume_path(client.restore(incremental)), LENGTH)
    # A store that was mended: what is found whole is damaged no more, and is shared with again.
    pack.write_bytes(whole)
    assert service.command("backup", "verify", backup).returncode == 0
    before = len(store_files(service))
    third = client.backup(volume, incremental=True)
    assert len(store_files(service)) == before + 1, "more than a manifest was stored"
    assert client.status("backup", third) == "available"
