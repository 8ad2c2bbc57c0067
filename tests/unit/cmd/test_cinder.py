"""Backups of Cinder's format and the commands: imported, scanned, verified, restored to files, counted."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.memory import MemoryStore
from backupfw.cmd import cinder_export, database, service
from backupfw.db import models
from backupfw.engine.cinder_format import restore, writing
from backupfw.engine.cinder_format.chain import Chain, Place
from backupfw.engine.format.manifest import ManifestReader
from backupfw.manager.usecases.backups import BackupManager
from backupfw.worker.stores import Stores
from tests.files import files_below
from tests.format.cinder_samples import HERE, sample
from tests.unit.cmd.conftest import CTX, Run, backed_up, load_conf
from tests.unit.cmd.test_recovery import lose_the_database
from tests.unit.engine.fakes import BLOCK, FakeControl, MemoryTarget, memory_container
from tests.unit.engine.test_content_digest import digest_of
from tests.unit.engine.test_data_path import run as engine_backup
from tests.waiting import wait_until

SAMPLE = sample("posix-zlib")
IDS = [one["backup_id"] for one in SAMPLE.backups]
OWNER = SAMPLE.backups[0]["record_decoded"]["project_id"]
VOLUME = SAMPLE.backups[0]["record_decoded"]["volume_id"]


@pytest.fixture
def old(state: Path, tmp_path: Path) -> Path:
    """A directory that Cinder wrote, as a store of a service that does not run."""
    path = tmp_path / "old"
    shutil.copytree(HERE / "posix-zlib", path)
    (path / "EXPECT.json").unlink()
    state.mkdir()
    (state / "backupfw.conf").write_text(
        "[DEFAULT]\nenabled_stores = main,old\n[backup]\npoll_seconds = 0.1\n"
        f"[store:old]\ndriver = posix\npath = {path}\nnames = plain\n"
    )
    return path


@pytest.fixture
def served(state: Path, old: Path) -> Iterator[None]:
    conf = load_conf(state)
    database.prepare(conf, make=True)
    with service.EmbeddedService(conf):
        yield


@pytest.fixture
def prepared(state: Path, old: Path) -> None:
    database.prepare(load_conf(state), make=True)


def scan(run: Run, *words: str, status: int = 0) -> list[dict[str, Any]]:
    done = run("cinder", "scan", "--store", "old", "--format", "json", *words)
    assert done.status == status, done.err
    return list(json.loads(done.out))


def proven(run: Run) -> dict[str, str]:
    """Restore all to nowhere; return the digests."""
    done = run("restore-test", "--all", "--format", "json")
    assert done.status == 0, done.out
    return {one["id"]: one["digest"] for one in json.loads(done.out)}


def restored(run: Run, tmp_path: Path, number: int) -> str:
    path = tmp_path / f"image-{number}.raw"
    done = run("backup", "restore", IDS[number], "--to", str(path))
    assert done.status == 0, done.err
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_scan_enters_a_whole_store_without_any_database(run: Run, tmp_path: Path, prepared: None) -> None:
    would = scan(run, "--dry-run")
    assert [one["result"] for one in would] == ["entered"] * 3
    assert json.loads(run("backup", "list", "--format", "json").out) == []
    found = scan(run)
    assert [one["backup_id"] for one in found] == IDS
    assert {one["project_id"] for one in found} == {OWNER}
    assert [one["parent_id"] for one in found] == [None, *IDS[:2]]
    assert [one["result"] for one in scan(run)] == ["known"] * 3
    for number, expected in enumerate(SAMPLE.backups):
        shown = json.loads(run("backup", "show", IDS[number], "--format", "json").out)
        told = expected["record_decoded"]
        assert shown["name"] == told["display_name"]
        assert (shown["container"], shown["service_metadata"]) == (
            told["container"],
            told["service_metadata"],
        )
        assert shown["holdings"]["deleting_frees"]["objects"] == (told["object_count"] if number == 2 else 0)
        assert restored(run, tmp_path, number) == expected["sha256_of_volume"]
    done = run("backup", "verify", "--all", "--json")
    assert done.status == 0, done.out
    assert [json.loads(line)["result"] for line in done.out.splitlines()] == ["ok"] * 3
    digests = proven(run)
    for number, backup in enumerate(IDS):
        assert digests[backup] == digest_of((tmp_path / f"image-{number}.raw").read_bytes())
    (usage,) = json.loads(run("usage", "--format", "json").out)
    assert usage["backups"] == 3
    stored = sum(len(data) for objects in SAMPLE.contents.values() for data in objects.values())
    assert usage["own_bytes"] == stored
    assert run("audit").status == 0
    assert run("sweep").status == 0


def test_whose_the_backups_are(run: Run, old: Path, prepared: None) -> None:
    assert {one["project_id"] for one in scan(run, "--dry-run", "--project-of", f"{VOLUME}=mine")} == {"mine"}
    # Whoever can write to the store can name any owner there.
    assert {one["project_id"] for one in scan(run, "--dry-run", "--project", "rest")} == {"rest"}
    for path in files_below(old, "*_metadata"):
        found = json.loads(path.read_bytes())
        path.write_text(json.dumps({**found, "volume_meta": None}))
    unknown = scan(run, status=1)
    assert {one["result"] for one in unknown} == {"failed"}
    assert "--project-of" in unknown[0]["problem"]
    assert {one["project_id"] for one in scan(run, "--project", "rest")} == {"rest"}


def test_what_cannot_be_entered_does_not_stop_the_others(run: Run, old: Path, prepared: None) -> None:
    (bad,) = files_below(old, f"*{IDS[1]}_metadata")
    bad.write_text("{")
    found = {one["backup_id"] or one["key"]: one for one in scan(run, status=1)}
    assert found[IDS[0]]["result"] == "entered"
    assert "needs its parent" in found[IDS[2]]["problem"]
    assert sum(one["problem"] == "Its metadata cannot be read." for one in found.values()) == 1
    done = run("cinder", "scan", "--store", "old")
    assert "3 backups: 1 known already, 2 NOT entered" in done.out


def test_damage_is_found_and_named(run: Run, old: Path, tmp_path: Path, prepared: None) -> None:
    scan(run)
    (bad,) = files_below(old, f"*{IDS[1]}-00002")
    data = bytearray(bad.read_bytes())
    data[0] ^= 1
    bad.write_bytes(data)
    done = run("backup", "verify", IDS[2], "--json")
    assert done.status == 1
    (damaged,) = json.loads(done.out)["damaged"]
    assert damaged["key"].endswith(f"{IDS[1]}-00002")
    assert run("backup", "restore", IDS[2], "--to", str(tmp_path / "x")).status == 1
    # The older one does not need it.
    assert restored(run, tmp_path, 0) == SAMPLE.backups[0]["sha256_of_volume"]
    bad.write_bytes(bytes([data[0] ^ 1]) + data[1:])
    assert run("backup", "verify", IDS[2]).status == 0
    shown = json.loads(run("backup", "show", IDS[2], "--format", "json").out)
    assert shown["damaged_objects"] in (0, [])


def test_a_chain_is_converted_and_then_needs_cinders_objects_no_more(
    run: Run, tmp_path: Path, old: Path, served: None
) -> None:
    scan(run)
    before = {path: path.read_bytes() for path in files_below(old, "volume_*")}
    digests = proven(run)
    would = run("cinder", "convert", IDS[1], "--dry-run")
    assert [line.split()[1] for line in would.out.splitlines()[:-1]] == IDS[:2]
    assert "2 backups would be converted" in would.out
    assert run("cinder", "convert", "--all", "--to", "old").status == 1
    done = run("cinder", "convert", "--all")
    assert (done.status, done.out) == (0, "3 backups converted, 0 not\n"), done.err
    # Each is what it was, as the first restore test recorded it.
    assert proven(run) == digests
    # There is nothing left to do.
    assert run("cinder", "convert", "--volume", VOLUME).out == "0 backups converted, 0 not\n"
    assert run("cinder", "convert", IDS[0]).status == 1
    assert {path: path.read_bytes() for path in files_below(old, "volume_*")} == before
    shown = json.loads(run("backup", "show", IDS[2], "--format", "json").out)
    assert (shown["store"], shown["name"]) == ("main", SAMPLE.backups[2]["record_decoded"]["display_name"])
    assert [(one["store"], one["status"]) for one in shown["copies"]] == [("old", "available")]
    done = run("backup", "copy", "--all", "--remove", "old")
    assert done.status == 0, done.err
    # Tasks of their own remove the objects.
    wait_until("their end", lambda: not files_below(old, "volume_*"))
    for number, expected in enumerate(SAMPLE.backups):
        assert restored(run, tmp_path, number) == expected["sha256_of_volume"]
    for number in (0, 2, 1):
        assert run("backup", "delete", IDS[number]).status == 0
    assert run("audit").status == 0


def test_what_was_converted_is_known_again_after_a_rebuild(run: Run, state: Path, old: Path) -> None:
    """The manifest names it; an export, which has the same id, stays nobody's."""
    conf = load_conf(state)
    database.prepare(conf, make=True)
    with service.EmbeddedService(conf):
        scan(run)
        assert run("cinder", "convert", "--all").status == 0
    installation = lose_the_database(run, state)
    words = ("catalogue", "rebuild", "--store", "main", "--take-over", installation)
    assert run(*words).status == 0
    assert [(one["backup_id"], one["result"]) for one in scan(run)] == [(one, "copy") for one in IDS]
    assert [one["result"] for one in scan(run)] == ["known"] * 3
    assert run("backup", "copy", IDS[0], "--remove", "old", "--no-wait").status == 0
    assert run("cinder", "export", IDS[0], "--to", "old", "--container", "exports").status == 0
    assert [one["result"] for one in scan(run, "--container", "exports")] == ["known"]
    shown = json.loads(run("backup", "show", IDS[1], "--format", "json").out)
    assert [(one["store"], one["status"]) for one in shown["copies"]] == [("old", "available")]
    exported = files_below(old / "exports")
    with service.EmbeddedService(load_conf(state)):
        for backup in (IDS[1], IDS[0], IDS[2]):
            assert run("backup", "delete", backup).status == 0
        wait_until(
            "the end of what is no export",
            lambda: (
                not [path for path in files_below(old, "volume_*_metadata") if "exports" not in path.parts]
            ),
        )
    assert files_below(old / "exports") == exported
    assert run("audit").status == 0


def test_records_of_cinders_are_imported(run: Run, tmp_path: Path, old: Path, served: None) -> None:
    records = [one["export"] for one in SAMPLE.backups]
    # As the API, and as the client of OpenStack print them; in any order.
    told = [{"backup-record": records[2]}, records[0]]
    told.append({"backup_service": records[1]["backup_service"], "backup_metadata": records[1]["backup_url"]})
    path = tmp_path / "records.json"
    path.write_text(json.dumps(told))
    done = run("backup", "import", str(path))
    assert done.status == 0, done.err
    assert done.out.split() == [IDS[2], IDS[0], IDS[1]]
    assert {one["project_id"] for one in json.loads(run("backup", "list", "--format", "json").out)} == {OWNER}
    again = run("backup", "import", str(path))
    assert again.status == 1
    assert "already exists" in again.err
    assert restored(run, tmp_path, 2) == SAMPLE.backups[2]["sha256_of_volume"]
    refused = run("backup", "delete", IDS[0])
    assert refused.status == 1
    assert "Incremental backups exist" in refused.err
    assert run("backup", "delete", IDS[2]).status == 0
    assert not files_below(old, f"*{IDS[2]}*")
    assert files_below(old, f"*{IDS[1]}_metadata")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "not JSON"), ("[1]", "no backup_service"), ('{"backup_service": "x"}', "Record 1")],
)
def test_what_is_no_record_is_refused(
    run: Run, tmp_path: Path, prepared: None, text: str, reason: str
) -> None:
    path = tmp_path / "records.json"
    path.write_text(text)
    done = run("backup", "import", str(path))
    assert done.status == 1
    assert reason in done.err
    assert run("backup", "import", str(tmp_path / "none")).status == 1


@pytest.mark.parametrize("lengths", [(7, 7), (6, 8), (8, 6)])
def test_blocks_of_ours_that_are_smaller_than_cinders_are_exported_as_whole_ones(
    lengths: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cinder_export, "CHUNK_BYTES", 2 * writing.BLOCK_BYTES)
    box, out = memory_container(), Container(MemoryStore("old"), "box")
    out.ensure()
    sizes = [length * writing.BLOCK_BYTES + BLOCK + 7 for length in lengths]
    older = random.Random(1).randbytes(sizes[0])
    newer = bytearray(older[: sizes[1]].ljust(sizes[1], b"\0"))
    # In the middle of a block, over the edge of two, and zeros.
    for at in (3 * BLOCK, writing.BLOCK_BYTES * 3 - BLOCK):
        newer[at : at + 2 * BLOCK] = random.Random(2).randbytes(2 * BLOCK)
    newer[len(newer) - 5 * BLOCK :] = bytes(5 * BLOCK)
    parent = None
    with contextlib.closing(writing.BlockHashes()) as hashes:
        for number, data in enumerate((older, newer)):
            key = engine_backup(box, number, data, None if parent is None else parent.key).manifest_key
            reader = ManifestReader(box, key)
            head = {"backup_id": IDS[number], "volume_id": VOLUME, "backup_name": None}
            head |= {"backup_description": None, "created_at": "2026-01-01 00:00:00+00:00"}
            needed = None if parent is None else IDS[0]
            with contextlib.closing(
                writing.LinkWriter(out, f"link{number}", head, "none", hashes, needed)
            ) as writer:
                cinder_export._write(reader, parent, pytest.fail, writer, FakeControl(), 2)
                writer.finish(len(data), {"version": 2, "volume-base-metadata": {"size": 1}})
            parent = reader
    for number, data in enumerate((older, newer)):
        told = json.loads(bytes(out.get(f"link{number}_sha256file")))["sha256s"]
        blocks = [data[at : at + writing.BLOCK_BYTES] for at in range(0, len(data), writing.BLOCK_BYTES)]
        assert told == [hashlib.sha256(one).hexdigest() for one in blocks]
        if len(data) < len(older):
            # Cinder's volumes never become smaller, and its format says lengths in GiB.
            continue
        places = [Place(out, f"link{one}") for one in range(number, -1, -1)]
        target = MemoryTarget(len(data), b"\xaa")
        with contextlib.closing(Chain.of(places, FakeControl())) as chain:
            # Each block is compared with the link's own list.
            restore.run(chain, target, FakeControl())
        assert target.data == data


class TestExport:
    """A backup of ours as Cinder's format has it, read by the reader that reads Cinder's."""

    @pytest.fixture
    def plain(self, state: Path, backup_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setattr(writing, "CHUNK_BYTES", 1 << 20)
        monkeypatch.setattr(cinder_export, "CHUNK_BYTES", 1 << 20)
        with open(state / "backupfw.conf", "a") as file:
            file.write(
                "[DEFAULT]\nenabled_stores = main,old\n"
                f"[store:old]\ndriver = posix\npath = {tmp_path / 'old'}\nnames = plain\n"
            )
        return tmp_path / "old"

    @pytest.mark.parametrize(
        "compression",
        [
            "zstd",
            *(pytest.param(name, marks=pytest.mark.check) for name in writing.COMPRESSION if name != "zstd"),
        ],
    )
    def test_what_is_exported_is_what_was_backed_up(
        self, run: Run, plain: Path, tmp_path: Path, backup_id: str, compression: str
    ) -> None:
        words = ("--to", "old", "--container", "volumebackups", "--compression", compression)
        done = run("cinder", "export", backup_id, *words)
        assert done.status == 0, done.err
        record = json.loads(done.out)["backup-record"]
        told = json.loads(base64.b64decode(record["backup_url"]))
        (folder,) = plain.iterdir()
        names_there = sorted(path.name for path in folder.iterdir() if path.is_file())
        prefix = told["service_metadata"]
        assert names_there == sorted(
            [
                *(f"{prefix}-{number:05d}" for number in (1, 2, 3)),
                f"{prefix}_metadata",
                f"{prefix}_sha256file",
            ]
        )
        assert (told["container"], told["object_count"], told["parent_id"]) == ("volumebackups", 3, None)
        assert told["data_timestamp"]
        assert told["driver_info"] == {}
        head = json.loads((folder / f"{prefix}_metadata").read_text())
        assert [next(iter(one.values()))["offset"] for one in head["objects"]] == [0, 1 << 20, 2 << 20]
        whole = json.loads((folder / f"{prefix}_sha256file").read_text())
        data = (tmp_path / "before.raw", tmp_path / "after.raw")
        assert run("backup", "restore", backup_id, "--to", str(data[0])).status == 0
        image = data[0].read_bytes()
        assert whole["sha256s"] == [
            hashlib.sha256(image[at : at + whole["chunk_size"]]).hexdigest()
            for at in range(0, len(image), whole["chunk_size"])
        ]
        # Under another id, because ours is here already.
        for path in folder.iterdir():
            if path.name.endswith("_metadata"):
                path.write_text(
                    path.read_text().replace(backup_id, IDS[0]).replace(f"_{IDS[0]}", f"_{backup_id}")
                )
        (one,) = scan(run)
        assert (one["backup_id"], one["result"], one["project_id"]) == (IDS[0], "entered", told["project_id"])
        assert run("backup", "restore", IDS[0], "--to", str(data[1])).status == 0
        assert data[1].read_bytes() == image
        again = run("cinder", "export", IDS[0], "--to", "old")
        assert (again.status, again.out) == (1, "")
        assert "has Cinder's format already" in again.err

    def test_an_export_that_fails_leaves_nothing(
        self, run: Run, plain: Path, state: Path, backup_id: str
    ) -> None:
        packs = files_below(state / "store", "p*.o")
        data = bytearray(packs[-1].read_bytes())
        data[200] ^= 1
        packs[-1].write_bytes(data)
        done = run("cinder", "export", backup_id, "--to", "old")
        assert (done.status, done.out) == (1, "")
        assert files_below(plain) == []

    def test_an_export_reads_the_first_place_that_is_whole(
        self, run: Run, plain: Path, state: Path, tmp_path: Path, backup_id: str
    ) -> None:
        """What is damaged in the first one is repaired from the copy, and the link is begun anew."""
        with open(state / "backupfw.conf", "a") as file:
            file.write(
                f"[DEFAULT]\nenabled_stores = main,old,second\n[store:second]\ndriver = posix\n"
                f"path = {tmp_path / 'second'}\n"
            )
        assert run("backup", "restore", backup_id, "--to", str(tmp_path / "image")).status == 0
        with service.EmbeddedService(load_conf(state)):
            done = run("backup", "copy", backup_id, "--to", "second")
            assert done.status == 0, done.err
        packs = sorted(files_below(state / "store", "p*.o"))
        data = bytearray(packs[-1].read_bytes())
        data[200] ^= 1
        packs[-1].write_bytes(data)
        assert run("cinder", "export", backup_id, "--to", "old", "--container", "box").status == 0
        data[200] ^= 1
        assert packs[-1].read_bytes() == data
        # Nothing is left of the first one.
        shutil.rmtree(state / "store")
        done = run("cinder", "export", backup_id, "--to", "old", "--container", "box")
        assert done.status == 0, done.err
        for path in (plain / "box").glob("*_metadata"):
            with contextlib.closing(Stores(load_conf(state))) as stores:
                place = Place(stores.container("old", "box"), path.name.removesuffix("_metadata"))
                target = MemoryTarget(3 << 20, b"\xaa")
                with contextlib.closing(Chain.of([place], FakeControl())) as chain:
                    restore.run(chain, target, FakeControl())
            assert target.data == (tmp_path / "image").read_bytes()

    def test_a_chain_is_exported_as_one(
        self, run: Run, state: Path, plain: Path, tmp_path: Path, backup_id: str
    ) -> None:
        conf = load_conf(state)
        with service.EmbeddedService(conf), database.opened(conf) as db:
            backups = BackupManager(db, conf)
            first = backups.get(CTX, backup_id)
            with db.read() as session:
                image = Path(str(session.get_one(models.Volume, first.volume_id).location))
            ids = [backup_id]
            for number in (1, 2):
                with open(image, "r+b") as file:
                    # Within two chunks, and zeros at the end.
                    file.seek((1 << 20) - (32 << 10))
                    file.write(random.Random(number).randbytes(64 << 10))
                    file.seek((3 << 20) - number * (32 << 10))
                    file.write(bytes(32 << 10))
                ids.append(backed_up(backups, first.volume_id, incremental=True))
        done = run("cinder", "export", ids[2], "--to", "old", "--container", "box", "--chain")
        assert done.status == 0, done.err
        told = [
            json.loads(base64.b64decode(one["backup-record"]["backup_url"])) for one in json.loads(done.out)
        ]
        assert [one["id"] for one in told] == ids
        assert [one["parent_id"] for one in told] == [None, *ids[:2]]
        assert [one["num_dependent_backups"] for one in told] == [1, 1, 0]
        # The full one has every chunk; the others have one object for each run of blocks within a chunk.
        assert [one["object_count"] for one in told] == [3, 3, 3]
        with contextlib.closing(Stores(load_conf(state))) as stores:
            box = stores.container("old", "box")
            places = [Place(box, one["service_metadata"]) for one in reversed(told)]
            for number in range(3):
                path = tmp_path / f"{number}.raw"
                assert run("backup", "restore", ids[2 - number], "--to", str(path)).status == 0
                target = MemoryTarget(3 << 20, b"\xaa")
                with contextlib.closing(Chain.of(places[number:], FakeControl())) as chain:
                    # Each block is compared with the link's own list.
                    restore.run(chain, target, FakeControl())
                assert target.data == path.read_bytes()
        heads = [
            json.loads((plain / "box" / f"{one['service_metadata']}_metadata").read_text()) for one in told
        ]
        lengths = [[next(iter(one.values()))["length"] for one in head["objects"]] for head in heads]
        assert lengths[1:] == [[32 << 10] * 3] * 2

    def test_a_chain_that_cannot_be_written_is_removed(
        self, run: Run, plain: Path, backup_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(writing.LinkWriter, "finish", lambda *_: 1 / 0)
        assert run("cinder", "export", backup_id, "--to", "old", "--container", "box", "--chain").status != 0
        assert files_below(plain, "volume_*") == []
