"""``backupfw keys``, and what ``config check`` says of the key store."""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import Unavailable
from backupfw.cmd import configure, database
from backupfw.db import models
from backupfw.db.installation import installation_id
from backupfw.db.session import Database, now
from backupfw.engine.format import keys
from backupfw.engine.format.key_object import WrappedKey, secret_of
from backupfw.engine.format.sealing import DataKey
from backupfw.keys.errors import ProjectKeyMissing
from backupfw.keys.file import FileKeyStore
from backupfw.manager import rows
from backupfw.manager.usecases.keys import KeyManager
from backupfw.worker.data_keys import put_as_recorded
from backupfw.worker.stores import Stores
from tests.files import files_below
from tests.unit.cmd.conftest import Run
from tests.unit.keys.support import opened

VOLUME = "0f6e2a34-6b1c-4f0e-9d59-6b2f6a3c1d10"


@contextmanager
def stores_of(state: Path) -> Iterator[Stores]:
    args = argparse.Namespace(state_dir=str(state), config_file=[], debug=False)
    with closing(Stores(configure.load(args).conf)) as stores:
        yield stores


@contextmanager
def database_of(state: Path) -> Iterator[Database]:
    args = argparse.Namespace(state_dir=str(state), config_file=[], debug=False)
    with database.opened(configure.load(args).conf) as db:
        yield db


def of_keys(out: str) -> list[tuple[str, str]]:
    return [(one["result"], one["detail"]) for one in json.loads(out) if one["check"] == "key store"]


@pytest.mark.usefixtures("few_objects")
def test_config_check_uses_the_key_store(run: Run, state: Path) -> None:
    assert "key store: driver file\n" in run("config", "check").out
    done = run("config", "check", "--connect")
    assert "key store: ok\n" in done.out
    assert not state.exists(), "a check makes nothing"
    state.mkdir()
    key_store: FileKeyStore = opened(state)
    key_id = key_store.create("project")
    assert run("config", "check", "--connect").status == 0
    (state / "keys" / key_id).chmod(0o644)
    done = run("config", "check", "--connect")
    assert done.status == 1
    assert f"key store: NOT ok: project key {key_id}: others may use the file" in done.out
    done = run("config", "check", "--connect", "--format", "json")
    (plain, connected) = of_keys(done.out)
    assert plain == ("ok", "")
    assert connected[0] == "failed"


@pytest.mark.usefixtures("few_objects")
def test_config_check_without_a_key_store(run: Run, tmp_path: Path) -> None:
    conf = tmp_path / "own.conf"
    conf.write_text(
        f"[DEFAULT]\nenabled_stores = main\n[store:main]\ndriver = memory\n"
        f"[database]\nconnection = sqlite:///{tmp_path}/db.sqlite\n"
        f"[volumes:local]\nvolumes_dir = {tmp_path}/v\n"
    )
    done = run("config", "check", "--connect", "--config-file", str(conf), "--format", "json", at_state=False)
    assert of_keys(done.out) == []


@pytest.fixture
def project_key(run: Run, state: Path) -> tuple[str, FileKeyStore]:
    """A key of the project 'demo', with a data key and a backup that needs it."""
    assert run("db", "sync").status == 0
    key_store = opened(state)
    key_id = key_store.create("demo")
    with database_of(state) as db:
        manager = KeyManager(db)
        assert manager.add_project_key("demo", key_id) == key_id
        secret = rows.DataKey(
            "d" * 32, "m" * 32, "demo", "v", "i", "main", "box", "aes-256-gcm", key_id, b"w"
        )
        manager.add_data_key(secret)
        with db.write() as session:
            place = {"store": "main", "container": "box", "project_id": "demo", "volume_id": "v"}
            session.add(
                models.Manifest(
                    id="m",
                    installation_id="i",
                    backup_id="b",
                    state="live",
                    block_size=1,
                    segment_size=1,
                    hash_mode="blake3",
                    key_id="d" * 32,
                    created_at=now(session),
                    **place,
                )
            )
            session.flush()
            session.add(
                models.Backup(
                    id="b", status="available", size=1, manifest_id="m", created_at=now(session), **place
                )
            )
    return key_id, key_store


def test_keys_are_listed(run: Run, project_key: tuple[str, FileKeyStore]) -> None:
    (found,) = json.loads(run("keys", "list", "--format", "json").out)
    assert (found["project_id"], found["key_id"], found["state"]) == ("demo", project_key[0], "current")
    assert (found["data_keys"], found["backups"], found["destroyed_at"]) == (1, 1, None)
    assert json.loads(run("keys", "list", "--project", "other", "--format", "json").out) == []
    assert project_key[0] in run("keys", "list").out


def test_a_destruction_asks_for_the_projects_id(
    run: Run, state: Path, project_key: tuple[str, FileKeyStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    key_id, key_store = project_key
    wrapped = key_store.wrap(key_id, b"s", b"")
    for answer in ("", "\n", "yes\n", "Demo\n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        done = run("keys", "destroy", "--project", "demo")
        assert done.status == 1
        assert "project demo: 1 key; nobody can read its 1 encrypted backup any more, ever" in done.err
        assert "nothing was destroyed" in done.err
    assert key_store.unwrap(key_id, wrapped, b"") == b"s"
    monkeypatch.setattr("sys.stdin", io.StringIO("demo\n"))
    done = run("keys", "destroy", "--project", "demo")
    assert done.status == 0
    assert done.out.startswith("1 key destroyed, 1 backup set to error;")
    with pytest.raises(ProjectKeyMissing):
        key_store.unwrap(key_id, wrapped, b"")
    with database_of(state) as db, db.read() as session:
        backup = session.get_one(models.Backup, "b")
        assert (backup.status, backup.fail_reason) == ("error", "The key of the backup's data was destroyed.")
    (found,) = json.loads(run("keys", "list", "--format", "json").out)
    assert (found["state"], found["destroyed_at"] is not None) == ("destroyed", True)


def test_a_destruction_goes_on_when_the_key_store_is_back(
    run: Run, state: Path, project_key: tuple[str, FileKeyStore]
) -> None:
    key_id, _ = project_key
    (state / "keys").rename(state / "away")
    done = run("keys", "destroy", "--project", "demo", "--yes")
    assert done.status == 1
    assert "No such file" in done.err
    assert json.loads(run("keys", "list", "--format", "json").out)[0]["state"] == "destroying"
    (state / "away").rename(state / "keys")
    done = run("keys", "destroy", "--project", "demo", "--yes")
    assert (done.status, done.out.partition(",")[0]) == (0, "1 key destroyed")
    assert json.loads(run("keys", "list", "--format", "json").out)[0]["state"] == "destroyed"
    assert not (state / "keys" / key_id).exists()


@pytest.fixture
def stored(run: Run, state: Path) -> list[DataKey]:
    """Three data keys, in the store and in the database, under the first key of the project."""
    assert run("db", "sync").status == 0
    key_store = opened(state)
    project_key = key_store.create("demo")
    made = [DataKey.new("aes-256-gcm") for _ in range(3)]
    (state / "store" / "box").mkdir(parents=True)
    with database_of(state) as db, stores_of(state) as stores:
        manager = KeyManager(db)
        manager.add_project_key("demo", project_key)
        with db.read() as session:
            installation = installation_id(session)
        for key in made:
            place = keys.data_key_key(keys.volume_prefix(installation, "demo", VOLUME), key.id)
            bare = WrappedKey(place, key.mac_id, key.algorithm, project_key, b"")
            wrapped = key_store.wrap(project_key, secret_of(key), bare.context)
            whole = replace(bare, wrapped=wrapped)
            stores.container("main", "box").put(place, Body.from_bytes(whole.encode()))
            where = ("demo", VOLUME, installation, "main", "box")
            manager.add_data_key(
                rows.DataKey(key.id, key.mac_id, *where, key.algorithm, project_key, wrapped)
            )
    return made


def readable(state: Path, made: list[DataKey]) -> set[str]:
    """Read every data key from the store and from the database; return the project keys that wrap them."""
    key_store, found = opened(state), set()
    with database_of(state) as db, stores_of(state) as stores:
        container = stores.container("main", "box")
        with db.read() as session:
            prefix = keys.volume_prefix(installation_id(session), "demo", VOLUME)
        for key in made:
            place = keys.data_key_key(prefix, key.id)
            whole = WrappedKey.parse(place, container.get(place))
            row = KeyManager(db).data_key(key.id)
            assert row is not None
            for by, wrapped in ((whole.project_key_id, whole.wrapped), (row.project_key_id, row.wrapped)):
                assert key_store.unwrap(by, wrapped, whole.context) == secret_of(key)
                found.add(by)
    return found


def test_a_rotation_wraps_all_data_keys_again(run: Run, state: Path, stored: list[DataKey]) -> None:
    (old,) = readable(state, stored)
    done = run("keys", "rotate", "--project", "demo")
    assert done.status == 0, done.err
    (new,) = readable(state, stored)
    assert new != old
    assert done.out == f"project demo: its key is {new} now\n3 data keys wrapped again\n"
    found = json.loads(run("keys", "list", "--format", "json").out)
    assert [(key["key_id"], key["state"], key["data_keys"]) for key in found] == [
        (old, "retired", 0),
        (new, "current", 3),
    ]
    assert run("keys", "rewrap").out == "0 data keys wrapped again\n"


def test_a_rotation_of_a_project_without_a_key(run: Run, state: Path, stored: list[DataKey]) -> None:
    done = run("keys", "rotate", "--project", "other")
    assert (done.status, done.err) == (1, "backupfw: Project other has no key.\n")
    assert len(os.listdir(state / "keys")) == 2


def test_a_rotation_goes_on_where_it_was_interrupted(
    run: Run, state: Path, stored: list[DataKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that fails, or a kill between the store and the database."""
    (old,) = readable(state, stored)
    rewrapped, count = KeyManager.rewrapped, 0

    def fail(self: KeyManager, *arguments: Any) -> bool:
        nonlocal count
        count += 1
        if count == 2:
            raise Unavailable("the store is away")
        return rewrapped(self, *arguments)

    with monkeypatch.context() as failing:
        failing.setattr(KeyManager, "rewrapped", fail)
        done = run("keys", "rotate", "--project", "demo")
    assert done.status == 1
    assert "2 data keys wrapped again" in done.out
    assert "the store is away" in done.err
    assert "run 'backupfw keys rewrap' later" in done.err
    both = readable(state, stored)
    assert len(both) == 2
    assert old in both
    done = run("keys", "rewrap", "--project", "demo")
    assert (done.status, done.out) == (0, "1 data key wrapped again\n")
    assert readable(state, stored) == both - {old}


def test_what_another_installation_has_stored_is_not_changed(
    run: Run, state: Path, stored: list[DataKey]
) -> None:
    key_store = opened(state)
    with database_of(state) as db:
        manager = KeyManager(db)
        (project_key,) = [key.key_id for key in manager.list("demo")]
        key = DataKey.new("aes-256-gcm")
        place = keys.data_key_key(keys.volume_prefix("other", "demo", VOLUME), key.id)
        context = WrappedKey(place, key.mac_id, key.algorithm, project_key, b"").context
        wrapped = key_store.wrap(project_key, secret_of(key), context)
        where = ("demo", VOLUME, "other", "main", "box")
        manager.add_data_key(rows.DataKey(key.id, key.mac_id, *where, key.algorithm, project_key, wrapped))
        assert run("keys", "rotate", "--project", "demo").out.endswith("4 data keys wrapped again\n")
        row = manager.data_key(key.id)
        assert row is not None
        assert key_store.unwrap(row.project_key_id, row.wrapped, context) == secret_of(key)
    assert not (state / "store" / "box" / "other").exists()


def only_key(run: Run, state: str) -> str:
    """Return the id of the project's key in that state."""
    found = json.loads(run("keys", "list", "--format", "json").out)
    (key,) = [one["key_id"] for one in found if one["state"] == state]
    return str(key)


def test_a_replaced_key_is_destroyed_alone(
    run: Run, state: Path, stored: list[DataKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = readable(state, stored)
    assert run("keys", "rotate", "--project", "demo").status == 0
    for answer in ("", "demo\n", f"{old} \n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        done = run("keys", "destroy", "--key", old)
        assert done.status == 1
        assert f"older copies of the database, or of stored data keys, that need key {old}" in done.err
        assert "nothing was destroyed" in done.err
    assert only_key(run, "retired") == old
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{old}\n"))
    done = run("keys", "destroy", "--key", old)
    assert (done.status, done.out.partition(";")[0]) == (0, "1 key destroyed")
    assert not (state / "keys" / old).exists()
    assert readable(state, stored) == {only_key(run, "current")}
    assert only_key(run, "destroyed") == old
    # It may come back with a copy of the directory.
    (state / "keys" / old).write_bytes(b"")
    (state / "keys" / old).chmod(0o600)
    assert run("keys", "destroy", "--key", old, "--yes").status == 0
    assert not (state / "keys" / old).exists()


def test_a_destruction_of_one_key_goes_on_when_the_key_store_is_back(
    run: Run, state: Path, stored: list[DataKey]
) -> None:
    (old,) = readable(state, stored)
    run("keys", "rotate", "--project", "demo")
    (state / "keys").rename(state / "away")
    assert run("keys", "destroy", "--key", old, "--yes").status == 1
    assert only_key(run, "destroying") == old
    (state / "away").rename(state / "keys")
    assert run("keys", "destroy", "--key", old, "--yes").status == 0
    assert only_key(run, "destroyed") == old
    assert not (state / "keys" / old).exists()


def assert_refused(run: Run, state: Path, key_id: str, *reasons: str) -> None:
    """A key cannot be destroyed, for these reasons; it works on."""
    before = run("keys", "list", "--format", "json").out
    done = run("keys", "destroy", "--key", key_id, "--yes")
    assert done.status == 1
    for reason in reasons:
        assert reason in done.err
    assert run("keys", "list", "--format", "json").out == before
    key_store = opened(state)
    assert key_store.unwrap(key_id, key_store.wrap(key_id, b"s", b""), b"") == b"s"


def test_a_current_or_unknown_key_is_not_destroyed(run: Run, state: Path, stored: list[DataKey]) -> None:
    (current,) = readable(state, stored)
    assert_refused(
        run, state, current, f"Project key {current} is the current one: 'backupfw keys rotate --pro"
    )
    done = run("keys", "destroy", "--key", "other", "--yes")
    assert (done.status, done.err) == (1, "backupfw: There is no project key other.\n")
    assert run("keys", "destroy", "--key", current, "--project", "demo", "--yes").status == 2
    assert run("keys", "destroy", "--yes").status == 2


def test_a_key_that_the_database_needs_is_not_destroyed(
    run: Run, state: Path, stored: list[DataKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation was interrupted; and one goes on while the stores are read."""
    (old,) = readable(state, stored)
    with database_of(state) as db:
        KeyManager(db).add_project_key("demo", opened(state).rotate("demo"), replaces=old)
    needed = [f"data key {key.id}" for key in stored]
    assert_refused(run, state, old, f"Project key {old} cannot be destroyed, it still wraps", *needed)
    with monkeypatch.context() as later:
        later.setattr(KeyManager, "wrapped_by", lambda *_: [])
        later.setattr("backupfw.cmd.keys._wrapped_in_stores", lambda *_: [])
        assert_refused(run, state, old, *needed)
    assert run("keys", "rewrap").status == 0
    assert run("keys", "destroy", "--key", old, "--yes").status == 0


def test_a_key_that_only_the_store_knows_to_be_needed_is_not_destroyed(
    run: Run, state: Path, stored: list[DataKey]
) -> None:
    (old,) = readable(state, stored)
    unknown = stored.pop()
    with database_of(state) as db, db.write() as session:
        session.delete(session.get_one(models.DataKey, unknown.id))
        prefix = keys.volume_prefix(installation_id(session), "demo", VOLUME)
    place = keys.data_key_key(prefix, unknown.id)
    run("keys", "rotate", "--project", "demo")
    assert_refused(run, state, old, f"still wraps data key {place} in container box of store main.")
    (path,) = files_below(state / "store" / "box", f"{unknown.id}*")
    data = path.read_bytes()
    # Of one that cannot be read nobody knows which key it needs.
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert_refused(run, state, old, place)
    (state / "store" / "box").rename(state / "store" / "away")
    assert_refused(run, state, old, "box")
    (state / "store" / "away").rename(state / "store" / "box")
    path.unlink()
    assert run("keys", "destroy", "--key", old, "--yes").status == 0
    assert readable(state, stored) == {only_key(run, "current")}


def test_a_key_is_not_destroyed_while_a_store_of_the_project_is_not_enabled(
    run: Run, state: Path, stored: list[DataKey]
) -> None:
    (old,) = readable(state, stored)
    run("keys", "rotate", "--project", "demo")
    with database_of(state) as db, db.write() as session:
        session.get_one(models.DataKey, stored[0].id).store = "tape"
    assert_refused(run, state, old, "stores that have data keys of the project are not enabled: ['tape']")


def test_an_older_database_is_led_on_by_the_store(run: Run, state: Path, stored: list[DataKey]) -> None:
    """The database names a key that was destroyed since."""
    (old,) = readable(state, stored)
    with database_of(state) as db:
        rows_before = [KeyManager(db).data_key(key.id) for key in stored]
    run("keys", "rotate", "--project", "demo")
    assert run("keys", "destroy", "--key", old, "--yes").status == 0
    with database_of(state) as db, db.write() as session:
        for row in rows_before:
            assert row is not None
            found = session.get_one(models.DataKey, row.id)
            found.project_key_id, found.wrapped = row.project_key_id, row.wrapped
        session.delete(session.get_one(models.ProjectKey, only_key(run, "current")))
        session.flush()
        session.get_one(models.ProjectKey, old).state = "current"
    done = run("keys", "rotate", "--project", "demo")
    assert (done.status, done.out.splitlines()[1:]) == (0, ["3 data keys wrapped again"])
    assert readable(state, stored) == {only_key(run, "current")}


def test_a_data_key_that_is_put_late_does_not_stay_in_its_older_wrapping(
    run: Run, state: Path, stored: list[DataKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    (old,) = readable(state, stored)
    put, struck = Container.put, False

    def late(self: Container, *arguments: Any) -> None:
        nonlocal struck
        if not struck:
            struck = True
            assert run("keys", "rotate", "--project", "demo").status == 0
        put(self, *arguments)

    with database_of(state) as db, stores_of(state) as stores:
        monkeypatch.setattr(Container, "put", late)
        put_as_recorded(KeyManager(db), stores.container("main", "box"), stored[0].id)
    assert readable(state, stored) == {only_key(run, "current")}
    assert run("keys", "destroy", "--key", old, "--yes").status == 0
