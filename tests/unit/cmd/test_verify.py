"""What verifications find is kept: per backup, for all that name a damaged object, and over many runs."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.chunkstore import errors
from backupfw.cmd import catalogue, database, meters, service, verify
from backupfw.conf import logging
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.engine import verify as engine
from backupfw.engine.format.sealing import AES_256_GCM
from backupfw.engine.ports import VerifyReport
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.backups import BackupTasks
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.keys import KeyManager
from backupfw.worker import damaged_objects as worker
from backupfw.worker.data_keys import DataKeys
from tests.files import files_below
from tests.unit.cmd.conftest import Run, adopted, backed_up, copy_state, load_conf

BLOCK = 64 << 10


@dataclass
class Chain:
    """A volume's full backup and an incremental upon it, and a backup of another volume."""

    run: Run
    state: Path
    volume: str
    full: str
    increment: str
    other: str

    def show(self, backup_id: str) -> dict[str, Any]:
        done = self.run("backup", "show", backup_id)
        assert done.status == 0, done.err
        return json.loads(done.out)

    def marked(self) -> set[str]:
        return {
            backup
            for backup in (self.full, self.increment, self.other)
            if self.show(backup)["damaged_objects"]
        }

    def packs_of(self, backup_id: str) -> list[Path]:
        return [path for path in files_below(self.state / "store", "p0*") if backup_id in str(path)]

    def spoil(self, backup_id: str, block: int) -> tuple[Path, bytes]:
        """Change a byte of a block in the backup's only pack; return the file and what it was."""
        (pack,) = self.packs_of(backup_id)
        whole = pack.read_bytes()
        data = bytearray(whole)
        data[block * BLOCK + BLOCK // 2] ^= 1
        pack.chmod(0o600)
        pack.write_bytes(data)
        return pack, whole

    def verified(self, *options: str) -> tuple[int, list[dict[str, Any]]]:
        done = self.run("backup", "verify", *options, "--json")
        return done.status, [json.loads(line) for line in done.out.splitlines()]

    def age(self, backup_id: str, days: int) -> None:
        with database.opened(load_conf(self.state)) as db, db.write() as session:
            moment = now(session) - timedelta(days=days)
            session.execute(
                update(models.Backup)
                .where(models.Backup.id == backup_id)
                .values(verified_at=moment, fully_verified_at=moment)
            )


@dataclass
class Made:
    """A state directory to copy, and what is in it."""

    state: Path
    volume: str
    backups: list[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    """Made once, because that takes seconds."""
    top = tmp_path_factory.mktemp("made")
    state, image, second = top / "state", top / "image.raw", top / "second.raw"
    image.write_bytes(random.Random(8).randbytes(1 << 20))
    second.write_bytes(random.Random(9).randbytes(1 << 20))

    with pytest.MonkeyPatch.context() as patch:
        # oslo.log would take the handlers of pytest away from the process.
        patch.setattr(logging, "setup", lambda _conf, quiet=False: None)
        volume, other = adopted(state, image), adopted(state, second)
        conf = load_conf(state)
        with service.EmbeddedService(conf), database.opened(conf) as db:
            backups = BackupManager(db, conf)

            ids = [backed_up(backups, volume)]
            with image.open("r+b") as file:
                file.seek(3 * BLOCK)
                file.write(random.Random(10).randbytes(BLOCK))
            ids += [backed_up(backups, volume, incremental=True), backed_up(backups, other)]
        yield Made(state, volume, ids)


@pytest.fixture
def chain(run: Run, state: Path, made: Made) -> Chain:
    copy_state(made.state, state)
    return Chain(run, state, made.volume, *made.backups)


@pytest.fixture
def db(chain: Chain) -> Iterator[Database]:
    with database.opened(load_conf(chain.state)) as opened:
        yield opened


def test_a_backup_keeps_when_and_how_it_was_verified_and_the_result(chain: Chain) -> None:
    names = ("verified_at", "verified_how", "verified_result", "fully_verified_at")
    assert [chain.show(chain.full)[name] for name in names] == [None] * 4
    assert chain.run("backup", "verify", chain.full).status == 0
    first = chain.show(chain.full)
    assert (first["verified_how"], first["verified_result"]) == ("full", "ok")
    assert first["verified_at"] == first["fully_verified_at"] is not None
    assert chain.run("backup", "verify", "--quick", chain.full).status == 0
    then = chain.show(chain.full)
    assert (then["verified_how"], then["verified_result"]) == ("quick", "ok")
    assert then["verified_at"] > then["fully_verified_at"] == first["fully_verified_at"]
    assert then["updated_at"] == first["updated_at"]
    assert chain.show(chain.increment)["verified_at"] is None


@pytest.mark.parametrize("together", [False, True])
def test_a_list_of_many_pages_is_whole_and_oldest_first(
    chain: Chain, db: Database, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    if together:
        with db.write() as session:
            session.execute(update(models.Backup).values(created_at=now(session)))
    ids = [one.id for one in catalogue.backups(db)]
    assert ids == (sorted(ids) if together else [chain.full, chain.increment, chain.other])
    for size in (1, 2, 3):
        monkeypatch.setattr(catalogue, "_PAGE", size)
        assert [one.id for one in catalogue.backups(db)] == ids
        assert [one.id for one in catalogue.backups(db, chain.volume)] == [
            one for one in ids if one != chain.other
        ]
    listed = chain.run("backup", "list", "--json").out.splitlines()
    assert [json.loads(line)["id"] for line in listed] == ids


def test_what_stands_in_an_objects_place_is_named(chain: Chain) -> None:
    pack = chain.packs_of(chain.full)[0]
    pack.rename(pack.with_suffix(".away"))
    pack.mkdir()
    done = chain.run("backup", "verify", chain.full)
    assert done.status == 1
    assert "a directory stands where the store keeps an object" in done.out + done.err


def test_a_damaged_object_marks_all_backups_that_name_it_until_they_are_found_whole(chain: Chain) -> None:
    pack, whole = chain.spoil(chain.full, 1)
    assert chain.run("backup", "verify", chain.full).status == 1
    assert chain.marked() == {chain.full, chain.increment}
    assert chain.show(chain.full)["verified_result"] == "damaged"
    # The other one was not verified itself.
    assert chain.show(chain.increment)["verified_result"] is None
    listed = chain.run("backup", "list", "--damaged").out.splitlines()
    assert [line.split()[0] for line in listed] == [chain.full, chain.increment]
    assert all("DAMAGED, 1 object" in line for line in listed)
    assert chain.run("backup", "list", "--volume", chain.volume).out.splitlines() == listed
    pack.write_bytes(whole)
    # Only a full verification proves anything.
    assert chain.run("backup", "verify", "--quick", chain.full).status == 0
    assert chain.marked() == {chain.full, chain.increment}
    assert chain.run("backup", "verify", chain.full).status == 0
    assert chain.marked() == {chain.increment}
    assert chain.run("backup", "verify", chain.increment).status == 0
    assert chain.marked() == set()
    with database.opened(load_conf(chain.state)) as db, db.read() as session:
        assert session.scalars(select(models.DamagedObject.key)).all() == []


def test_damage_that_one_backup_does_not_need_is_kept_for_the_other(chain: Chain) -> None:
    """The increment has a block of its own in the place of the damaged one, in a pack that it names."""
    chain.spoil(chain.full, 3)
    assert chain.run("backup", "verify", chain.full).status == 1
    assert chain.marked() == {chain.full, chain.increment}
    assert chain.run("backup", "verify", chain.increment).status == 0
    assert chain.marked() == {chain.full}
    with database.opened(load_conf(chain.state)) as db, db.read() as session:
        assert len(session.scalars(select(models.DamagedObject.key)).all()) == 1


def test_an_unreadable_manifest_of_the_volume_is_damaged_too(chain: Chain) -> None:
    chain.spoil(chain.full, 1)
    (manifest,) = [
        path for path in files_below(chain.state / "store", "manifest*") if chain.increment in str(path)
    ]
    manifest.chmod(0o600)
    manifest.write_bytes(b"nothing of the kind" * 100)
    assert chain.run("backup", "verify", chain.full).status == 1
    (found,) = chain.show(chain.increment)["damaged_objects"]
    assert found["key"].endswith("/manifest")
    assert chain.marked() == {chain.full, chain.increment}


def test_damage_of_before_there_were_marks_is_forgotten_when_it_is_healed(chain: Chain, db: Database) -> None:
    conf = load_conf(chain.state)
    (pack,) = chain.packs_of(chain.full)
    key = (
        str(pack.relative_to(chain.state / "store" / "volumebackups")).removesuffix(".o").replace(".d/", "/")
    )
    tasks = BackupTasks(db, conf)
    manifest_id = catalogue.manifest_of(db, chain.full).id
    assert tasks.damaged_objects.record("main", "volumebackups", key, "wrong", manifest_id)
    with db.write() as session:
        damaged_objects.forget_marks(session, manifest_id)
    assert chain.run("backup", "verify", "--quick", chain.full).status == 0
    assert tasks.damaged_objects.keys("main", "volumebackups") == {key}
    assert chain.run("backup", "verify", chain.increment).status == 0
    assert tasks.damaged_objects.keys("main", "volumebackups") == frozenset()


def test_what_is_being_deleted_is_not_damaged(chain: Chain, db: Database) -> None:
    chain.spoil(chain.full, 1)
    row = models.Manifest
    with db.write() as session:
        found = select(models.Backup.manifest_id).where(models.Backup.id == chain.full)
        manifest_id = session.scalar(found)
        session.execute(update(row).where(row.id == manifest_id).values(state="released"))
    tasks = BackupTasks(db, load_conf(chain.state))
    assert manifest_id is not None
    assert not tasks.damaged_objects.record("main", "volumebackups", "k", "gone", manifest_id)
    assert tasks.damaged_objects.keys("main", "volumebackups") == frozenset()
    done = chain.run("backup", "verify", chain.full)
    assert (done.status, done.out) == (1, "")
    status, found_all = chain.verified("--all")
    assert (status, [one["id"] for one in found_all]) == (1, [chain.increment, chain.other])
    assert chain.marked() == {chain.increment}


def test_many_those_verified_longest_ago_first(chain: Chain) -> None:
    chain.age(chain.full, 3)
    chain.age(chain.other, 5)
    status, found = chain.verified("--all")
    assert status == 0
    assert [one["id"] for one in found] == [chain.increment, chain.other, chain.full]
    assert {one["result"] for one in found} == {"ok"}
    assert all(one["blocks"] == 16 and one["damaged"] == [] for one in found)
    done = chain.run("backup", "verify", "--all", "--older-than", "1")
    assert (done.status, done.out) == (0, "0 backups: 0 ok, 0 damaged, 0 not verified\n")
    chain.age(chain.other, 5)
    assert [one["id"] for one in chain.verified("--older-than", "1")[1]] == [chain.other]


def test_a_sample_is_another_one_each_time(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    # Choose the last ones.
    monkeypatch.setattr("random.sample", lambda ids, number: ids[-number:])
    assert [one["id"] for one in chain.verified("--all", "--sample", "1")[1]] == [chain.other]
    assert {one["id"] for one in chain.verified("--volume", chain.volume, "--sample", "9")[1]} == {
        chain.full,
        chain.increment,
    }
    done = chain.run("backup", "verify", "--older-than", "1", "--sample", "2")
    assert done.err.startswith("0 backups to verify, chosen at random\n")
    for words in ((chain.full, "--sample", "1"), ("--all", "--sample", "0"), ("--all", "--sample", "x")):
        assert chain.run("backup", "verify", *words).status == 2


def test_many_of_a_volume_or_a_project(chain: Chain) -> None:
    assert {one["id"] for one in chain.verified("--volume", chain.volume)[1]} == {chain.full, chain.increment}
    project = chain.show(chain.full)["project_id"]
    assert len(chain.verified("--project", project)[1]) == 3
    for option in ("--volume", "--project"):
        done = chain.run("backup", "verify", option, "nothing")
        assert (done.status, done.err) == (1, "backupfw: There is no backup of nothing.\n")
    assert "name one backup" in chain.run("backup", "verify").err
    assert chain.run("backup", "verify", chain.full, "--older-than", "1").status == 2
    for days in ("-1", "x", "nan", "inf", "1e9", "2026-11-28", "2026-11-28T10:00"):
        assert chain.run("backup", "verify", f"--older-than={days}").status == 2


def test_damage_among_many_is_status_1_and_reported_with_its_objects(chain: Chain) -> None:
    chain.spoil(chain.full, 1)
    status, found = chain.verified("--all")
    assert status == 1
    results = {one["id"]: (one["result"], len(one["damaged"])) for one in found}
    assert results == {
        chain.full: ("damaged", 1),
        chain.increment: ("damaged", 1),
        chain.other: ("ok", 0),
    }


def test_verdicts_are_records_in_every_format(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    chain.spoil(chain.full, 1)
    real = engine.run

    def down(key: str, *args: Any, **options: Any) -> Any:
        if chain.increment in key:
            raise errors.Unavailable("no answer", store="main")
        return real(key, *args, **options)

    monkeypatch.setattr(engine, "run", down)
    done = chain.run("backup", "verify", "--all", "-f", "json")
    assert done.status == 1
    found = {one["id"]: one for one in json.loads(done.out)}
    assert tuple(found[chain.full]) == verify.Verify.columns
    assert {backup: (one["result"], one["damaged_objects"]) for backup, one in found.items()} == {
        chain.full: ("damaged", 1),
        chain.increment: ("not verified", None),
        chain.other: ("ok", 0),
    }
    assert found[chain.other]["blocks"] == 16
    assert "no answer" in found[chain.increment]["problem"]
    words = ("-f", "value", "-c", "result", "-c", "how")
    done = chain.run("backup", "verify", "--quick", chain.other, *words)
    assert (done.status, done.out) == (0, "ok quick\n")
    done = chain.run("backup", "verify", chain.full, *words)
    assert (done.status, done.out) == (1, "damaged full\n")
    # Columns of text are no sentences; '--json' is a text of its own.
    done = chain.run("backup", "verify", chain.full, "-f", "text", "-c", "result")
    assert (done.status, done.out) == (1, "result\ndamaged\n")
    for words in (("-f", "csv"), ("-c", "result"), ("--sort-column", "result")):
        assert chain.run("backup", "verify", chain.full, "--json", *words).status == 2


def test_each_damaged_object_is_named_before_the_verdict(chain: Chain) -> None:
    pack, _whole = chain.spoil(chain.full, 1)
    lines = chain.run("backup", "verify", "--all").out.splitlines()
    damaged = [number for number, line in enumerate(lines) if line.startswith("damaged: ")]
    assert len(damaged) == 2
    assert all(pack.stem in lines[number] for number in damaged)
    assert lines[damaged[0] + 1].startswith(f"backup {chain.full}: DAMAGED, 1 object (")
    assert lines[-1] == "3 backups: 1 ok, 2 damaged, 0 not verified"


@pytest.mark.parametrize("age", [None, "1"])
def test_a_run_that_ended_early_goes_on_where_it_was(
    chain: Chain, monkeypatch: pytest.MonkeyPatch, age: str | None
) -> None:
    real, seen = engine.run, []

    def killed(key: str, *args: Any, **options: Any) -> Any:
        seen.append(key)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(key, *args, **options)

    monkeypatch.setattr(engine, "run", killed)
    first = chain.run("backup", "verify", *(("--all",) if age is None else ("--older-than", age)))
    assert first.status != 0
    if age is None:
        # It says how.
        told = re.match(r"3 backups to verify; .* --older-than (\S+Z) does the rest", first.err)
        assert told is not None
        age = told[1]
    done = chain.run("backup", "verify", "--older-than", age)
    assert done.out.splitlines()[-1] == "2 backups: 2 ok, 0 damaged, 0 not verified"
    # The one that was done is not done again; the one that was not is the first.
    assert seen.count(seen[0]) == 1
    assert seen[1] == seen[2]
    assert len(set(seen)) == 3


def test_a_store_that_does_not_answer_says_nothing_about_damage(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = engine.run

    def down(key: str, *args: Any, **options: Any) -> Any:
        if chain.full in key:
            raise errors.Unavailable("no answer", store="main")
        return real(key, *args, **options)

    monkeypatch.setattr(engine, "run", down)
    status, found = chain.verified("--all")
    assert status == 1
    assert {one["id"]: one["result"] for one in found} == {
        chain.full: "not verified",
        chain.increment: "ok",
        chain.other: "ok",
    }
    assert chain.show(chain.full)["verified_at"] is None
    assert chain.marked() == set()


def test_the_metrics_show_what_verifications_found(chain: Chain, db: Database) -> None:
    def figures() -> tuple[float, float, float]:
        lines = dict(
            line.rsplit(" ", 1)
            for line in meters.Meters(db).text().decode().splitlines()
            if not line.startswith("#")
        )
        names = ("oldest_verification_age_seconds", "unverified_backups", "damaged_backups")
        age, never, damaged = (float(lines[f"backupfw_{name}"]) for name in names)
        return age, never, damaged

    age, never, damaged = figures()
    assert (never, damaged) == (3, 0)
    assert 0 < age < 86400
    chain.spoil(chain.full, 1)
    assert chain.run("backup", "verify", chain.full).status == 1
    assert figures()[1:] == (2, 2)
    assert chain.run("backup", "verify", "--all").status == 1
    chain.age(chain.other, 5)
    age, never, damaged = figures()
    assert (never, damaged) == (0, 2)
    assert 5 * 86400 <= age < 6 * 86400


def test_a_manifest_that_is_shared_is_read_once(chain: Chain, db: Database) -> None:
    """Two records of one manifest: what is found of it is recorded at both."""
    with db.write() as session:
        one = session.get(models.Backup, chain.full)
        assert one is not None
        two = session.get(models.Backup, chain.other)
        assert two is not None
        two.manifest_id = one.manifest_id
    status, found = chain.verified("--all")
    assert (status, len(found)) == (0, 2)
    assert chain.show(chain.full)["verified_at"] == chain.show(chain.other)["verified_at"]
    assert catalogue.was_verified(db, chain.other, catalogue.to_verify(db)[0], quick=False) is False


def test_memory_does_not_grow_with_what_is_damaged(chain: Chain, monkeypatch: pytest.MonkeyPatch) -> None:
    count, marked = 20_000, []

    def run(_key: str, _container: Any, _control: Any, damaged: Any, **_: Any) -> VerifyReport:
        for number in range(count):
            damaged(f"{number:0200}", "it is missing")
        return VerifyReport(objects=count, damaged=count)

    def mark(_tasks: Any, _container: Any, _id: str, keys: set[str], _control: Any) -> None:
        marked.append(len(keys))

    monkeypatch.setattr(engine, "run", run)
    monkeypatch.setattr(damaged_objects.DamagedObjects, "record", lambda *_: True)
    monkeypatch.setattr(worker, "mark_sharers", mark)
    monkeypatch.setattr(worker, "_PART", 1000)
    with database.opened(load_conf(chain.state)) as db, (chain.state / "out").open("w+") as out:
        data_keys = DataKeys(KeyManager(db), None, AES_256_GCM)
        stores: Any = FakeStores()
        verifier = verify.Verifier(load_conf(chain.state), db, stores, data_keys, quick=True)
        tracemalloc.start()
        try:
            for record in verifier.one(chain.full):
                assert record["result"] == "damaged"
                out.writelines(verify.as_json(record))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        out.seek(0)
        (told,) = [json.loads(line) for line in out]
    assert [one["key"] for one in told["damaged"]] == [f"{number:0200}" for number in range(count)]
    assert marked == [1000] * (count // 1000)
    assert peak < 3 << 20


class FakeStores:
    """Stores that nothing is read of."""

    def container(self, _store: str, _container: str) -> None:
        return None


def test_workers_verify_it_when_the_service_is_asked(chain: Chain, db: Database) -> None:
    run = chain.run
    asked = run("backup", "verify", "--by-service", chain.full)
    assert (asked.status, asked.out) == (
        0,
        f"backup {chain.full}: workers verify it in main; backupfw task list shows how far\n",
    )
    with db.read() as session:
        (task,) = session.scalars(select(models.Task)).all()
        assert (task.kind, task.source_id, task.store) == ("backup.verify", chain.full, "main")
    again = run("backup", "verify", "--by-service", chain.full)
    assert (again.status, "already being verified" in again.err) == (1, True)
    assert run("backup", "verify", "--by-service", "--all").status == 2
    assert run("backup", "verify", "--by-service", "--quick", chain.full).status == 2
    cancelled = run("backup", "cancel", "--verification", chain.full)
    assert (cancelled.status, cancelled.out) == (0, f"backup {chain.full} is available\n")
    assert run("backup", "cancel", "--verification", chain.full).status == 1
    asked = run("backup", "verify", "--by-service", chain.full, "--format", "json")
    assert json.loads(asked.out)[0]["result"] == verify.BEGUN
    assert json.loads(run("backup", "verify", "--by-service", "--json", chain.other).out)["stores"] == [
        "main"
    ]
