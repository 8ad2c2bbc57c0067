"""Which volume back end a new volume comes to: by its type, its source, the backup's volume, the default."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import select

from backupfw.db import models
from backupfw.errors import InvalidInput, InvalidVolume
from backupfw.manager.queue import waiting
from backupfw.manager.queue.claims import Limits
from backupfw.manager.rules import volume_types
from backupfw.manager.usecases.backups import BackupManager
from tests.unit.manager.catalogue import ADMIN, ALICE, Catalogue, make_conf, make_database


@pytest.fixture
def world() -> Iterator[Catalogue]:
    conf = make_conf()
    conf.set_override("enabled", ["local", "fast", "far"], "volumes")
    made = Catalogue(make_database(), conf)
    for name, backend in (("gold", " fast "), ("lost", "gone"), ("plain", None)):
        specs = {} if backend is None else {"volume_backend_name": backend}
        made.types.create(ADMIN, name=name, extra_specs={"other": "x", **specs})
    yield made
    made.db.close()


def made(world: Catalogue, **wanted: Any) -> str:
    """Make a volume; returns its back end."""
    return world.volumes.create(ALICE, size=2, **wanted).backend


def test_the_type_decides_else_the_default(world: Catalogue) -> None:
    assert made(world) == "local"
    assert made(world, volume_type="plain") == "local"
    assert made(world, volume_type="gold") == "fast"
    world.conf.set_override("default", "far", "volumes")
    assert made(world, volume_type="plain") == "far"
    assert made(world, volume_type="gold") == "fast"


def test_a_type_whose_back_end_is_not_enabled_makes_no_volume(
    world: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    """Only the log has the back end's name: it is in an extra spec, which users do not see."""
    with pytest.raises(InvalidInput) as refused:
        made(world, volume_type="lost")
    assert str(refused.value) == "Volume type lost cannot be used here: its back end is not enabled."
    assert "its back end gone is not enabled" in caplog.text
    assert world.kinds() == []


def test_with_one_back_end_a_types_unknown_name_is_ignored(
    world: Catalogue, caplog: pytest.LogCaptureFixture
) -> None:
    """Types that were copied from another service name back ends that are not here."""
    world.conf.set_override("enabled", ["fast"], "volumes")
    volume_types._warn_of_ignored.cache_clear()
    source = world.volume()
    world.set(models.Volume, source, backend="fast")
    backup = world.backup(volume_id=source, store="main")
    assert made(world, volume_type="lost") == "fast"
    assert made(world, volume_type="gold") == "fast"
    assert made(world, volume_type="lost", source_volid=source) == "fast"
    assert made(world, volume_type="lost", backup_id=backup) == "fast"
    world.volumes.retype(ALICE, source, "lost")
    assert world.volumes.get(ALICE, source).volume_type == "lost"
    assert [one.getMessage() for one in caplog.records if "ignored" in one.getMessage()] == [
        "Volume type lost: its volume_backend_name gone is ignored: the only volume back end is fast"
    ]


def test_the_projects_default_type_decides_too(world: Catalogue) -> None:
    world.types.set_project_default(ADMIN, ALICE.project_id, "gold")
    assert made(world) == "fast"


def test_a_copy_is_made_where_its_source_is(world: Catalogue) -> None:
    source = world.volume()
    world.set(models.Volume, source, backend="far")
    snapshot = world.snapshot(source)
    assert made(world, source_volid=source) == "far"
    assert made(world, snapshot_id=snapshot) == "far"
    assert made(world, source_volid=source, volume_type="plain") == "far"
    for where in ({"source_volid": source}, {"snapshot_id": snapshot}):
        with pytest.raises(InvalidInput, match="gold has another back end than the"):
            made(world, volume_type="gold", **where)


@pytest.mark.parametrize(
    ("source", "recorded", "chosen", "expected"),
    [
        ("far", None, None, "far"),
        ("gone", None, None, "local"),
        (None, None, None, "local"),
        # The type that the volume had may be made elsewhere now: the data goes back to where it was.
        ("far", "gold", None, "far"),
        ("gone", "gold", None, "fast"),
        (None, "gold", None, "fast"),
        ("gone", "lost", None, "local"),
        # What the request asks for is done, or refused.
        ("far", "plain", "gold", "fast"),
        ("far", "gold", "plain", "far"),
        ("far", None, "lost", None),
    ],
)
def test_a_restore_to_a_new_volume_goes_where_the_backups_volume_is(
    world: Catalogue, source: str | None, recorded: str | None, chosen: str | None, expected: str | None
) -> None:
    volume = str(uuid.uuid4()) if source is None else world.volume()
    if source is not None:
        world.set(models.Volume, volume, backend=source, deleted=True)
    backup = world.backup(volume_id=volume, store="main", volume_record={"volume_type": recorded})
    if expected is None:
        with pytest.raises(InvalidInput, match="its back end is not enabled"):
            made(world, backup_id=backup, volume_type=chosen)
    else:
        assert made(world, backup_id=backup, volume_type=chosen) == expected


@pytest.mark.parametrize(
    ("source", "default", "expected"),
    [
        (None, "gold", "fast"),
        ("gone", "gold", "fast"),
        ("far", "gold", "far"),
        (None, "plain", "local"),
        (None, "lost", "local"),
    ],
)
def test_a_restored_volume_without_a_type_goes_to_the_back_end_of_the_default_type(
    world: Catalogue, source: str | None, default: str, expected: str
) -> None:
    """It gets the default type of the project."""
    world.types.set_project_default(ADMIN, ALICE.project_id, default)
    volume = str(uuid.uuid4())
    if source is not None:
        volume = world.volume()
        world.set(models.Volume, volume, backend=source, deleted=True)
    backup = world.backup(volume_id=volume, store="main", volume_record={})
    # The restore takes the backup: another one for the volume that is made from it.
    other = world.backup(volume_id=volume, store="main", volume_record={})
    assert made(world, backup_id=other) == expected
    target = BackupManager(world.db, world.conf).restore(ALICE, backup)[1]
    with world.db.read() as session:
        row = session.get_one(models.Volume, target)
        assert (row.volume_type, row.backend) == (default, expected)


def test_a_volume_gets_no_type_of_another_back_end(world: Catalogue) -> None:
    volume = world.volume()
    world.volumes.retype(ALICE, volume, "plain")
    with pytest.raises(InvalidVolume, match="type gold, which has another back end"):
        world.volumes.retype(ALICE, volume, "gold")
    assert world.volumes.get(ALICE, volume).volume_type == "plain"


def test_every_task_about_a_volume_requires_its_back_end(world: Catalogue) -> None:
    def required() -> str | None:
        with world.db.read() as session:
            return session.scalars(select(models.Task.backend).order_by(models.Task.id.desc())).first()

    volume = world.volumes.create(ALICE, size=1, volume_type="gold").id
    assert required() == "fast"
    world.run_all()
    snapshot = world.snapshot(volume)
    world.volumes.create(ALICE, size=1, snapshot_id=snapshot)
    assert required() == "fast"
    world.run_all()
    world.volumes.extend(ALICE, volume, new_size=2)
    assert required() == "fast"
    world.run_all()
    world.snapshots.delete(ALICE, snapshot)
    assert required() == "fast"
    world.run_all()
    world.volumes.delete(ALICE, volume)
    assert required() == "fast"


def test_administrators_find_volumes_by_host_and_back_end(world: Catalogue) -> None:
    ours, theirs, shared = world.volume(), world.volume(), world.volume()
    world.set(models.Volume, ours, host="a@b", backend="fast")
    world.set(models.Volume, theirs, host="a", backend="b")

    def found(host: str) -> set[str]:
        return {one.id for one in world.volumes.list(ALICE, filters={"host": host}).items}

    assert found("a@b") == {ours, theirs}
    assert found("a@b@fast") == found("a@b@fast#fast") == {ours}
    assert found("a") == found("a@b#b") == {theirs}
    assert found("*@local") == found("*@local#local") == {shared}
    assert (
        found("a@b@fast#slow")
        == found("local")
        == found("fast")
        == found("")
        == found("@")
        == found("@local")
        == set()
    )
    assert world.volumes.totals(ALICE, filters={"host": "a@b@fast"}).count == 1


def test_why_a_task_of_a_back_end_waits(world: Catalogue) -> None:
    world.volumes.create(ALICE, size=1, volume_type="gold")

    def why() -> str | None:
        with world.db.read() as session:
            task = session.scalars(select(models.Task)).one()
            return waiting.why(session, world.conf, task, Limits())

    services = world.services
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x"}, {"local": True})
    assert why() == waiting.WAITING_FOR_WORKER
    services.heartbeat("one", "cinder-backup", "nova", {"main": "x"}, {"fast": False}, process="two")
    assert why() == waiting.QUEUED
