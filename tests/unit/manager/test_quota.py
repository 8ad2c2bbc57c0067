"""Quotas: texts, limits of three kinds, and that races never get past a limit."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from backupfw.db import models
from backupfw.db.session import Database
from backupfw.errors import BackupfwError, InvalidInput, QuotaExceeded
from backupfw.manager.rules import quota
from tests.servers import databases
from tests.servers.directory import server_directory
from tests.unit.manager.catalogue import ADMIN, ALICE, BOB, Catalogue, make_conf, make_database


@pytest.fixture
def world() -> Iterator[Catalogue]:
    db = make_database()
    yield Catalogue(db, make_conf())
    db.close()


def check(world: Catalogue, **wanted: int) -> None:
    with world.db.write() as session:
        quota.check(session, world.conf, "blue", wanted)


@pytest.mark.parametrize(
    ("resource", "limit", "wanted", "text"),
    [
        ("backups", 2, 1, "Maximum number of backups allowed (2) exceeded"),
        (
            "backup_gigabytes", 9, 3,
            ("Requested backup exceeds allowed Backup gigabytes quota. "
            "Requested 3G, quota is 9G and 7G has been consumed."),
        ),
        ("volumes", 2, 1, "Maximum number of volumes allowed (2) exceeded for quota 'volumes'."),
        (
            "gigabytes", 8, 2,
            ("Requested volume or snapshot exceeds allowed gigabytes quota. "
            "Requested 2G, quota is 8G and 7G has been consumed."),
        ),
        ("snapshots", 1, 1, "Maximum number of snapshots allowed (1) exceeded"),
        ("per_volume_gigabytes", 4, 5, "Requested volume size 5G is larger than maximum allowed limit 4G."),
    ],
)  # fmt: skip
def test_a_refusal_by_a_quota_has_the_text_that_clients_know(
    world: Catalogue, resource: str, limit: int, wanted: int, text: str
) -> None:
    world.backup(size=3)
    world.backup(size=4)
    world.backup(BOB, size=100)
    world.backup(size=100, deleted=True)
    world.volume(size=3)
    world.snapshot(world.volume(size=2))
    world.volume(BOB, size=100)
    world.quotas.update("blue", {resource: limit})
    with pytest.raises(QuotaExceeded) as caught:
        check(world, **{resource: wanted})
    assert str(caught.value) == text
    assert caught.value.resource == resource
    world.quotas.update("blue", {resource: limit + 1})
    check(world, **{resource: wanted})
    world.quotas.update("blue", {resource: -1})
    check(world, **{resource: 1 << 30})


def test_nothing_more_is_always_allowed(world: Catalogue) -> None:
    world.backup(size=3)
    limits = {"backups": 0, "backup_gigabytes": 2}
    with pytest.raises(InvalidInput, match="backups must not be below what is used: 1, but is 0"):
        world.quotas.update("blue", limits)
    assert world.quotas.show("blue")["backups"] == 10
    world.quotas.update("blue", limits, force=True)
    check(world, backups=0, backup_gigabytes=0)


def test_of_several_the_gigabytes_are_reported_first(world: Catalogue) -> None:
    world.quotas.update("blue", {"backups": 0, "backup_gigabytes": 0})
    with pytest.raises(QuotaExceeded) as caught:
        check(world, backups=1, backup_gigabytes=1)
    assert caught.value.resource == "backup_gigabytes"


def test_hidden_snapshots_and_deleted_rows_do_not_count(world: Catalogue) -> None:
    volume = world.volume(size=2)
    world.snapshot(volume)
    world.snapshot(volume, temporary=True)
    world.snapshot(volume, deleted=True)
    assert world.usage("blue") == {
        "volumes": 1, "snapshots": 1, "gigabytes": 4, "backups": 0, "backup_gigabytes": 0,
        "per_volume_gigabytes": 0, "groups": 0,
    }  # fmt: skip


def test_own_limits_win_over_the_class_and_that_over_the_configuration(world: Catalogue) -> None:
    world.conf.set_override("backups", 3, "quota")
    assert world.quotas.defaults()["backups"] == 3
    assert world.quotas.class_update("default", {"backups": 4})["backups"] == 4
    world.quotas.class_update("gold", {"backups": 40})
    assert world.quotas.defaults()["backups"] == 4
    assert world.quotas.class_show("gold")["backups"] == 40
    assert world.quotas.class_show("gold")["volumes"] == 10
    assert world.quotas.update("blue", {"backups": 5})["backups"] == 5
    assert world.quotas.show("green")["backups"] == 4
    assert world.quotas.show("blue")["backups"] == 5
    world.quotas.delete("blue")
    assert world.quotas.show("blue")["backups"] == 4


def test_defaults_are_the_published_ones(world: Catalogue) -> None:
    assert world.quotas.defaults() == {
        "volumes": 10, "snapshots": 10, "gigabytes": 1000, "backups": 10, "backup_gigabytes": 1000,
        "per_volume_gigabytes": -1, "groups": 10,
    }  # fmt: skip


@pytest.mark.parametrize(
    "limits",
    [{"backups": -2}, {"backups": 1 << 31}, {"backups": True}, {"backups": "5"}, {"shares": 1}],
)
def test_wrong_limits_are_refused_and_change_nothing(world: Catalogue, limits: dict[str, Any]) -> None:
    for change in (world.quotas.update, world.quotas.class_update):
        with pytest.raises(InvalidInput):
            change("blue", {"volumes": 1, **limits})
    assert world.quotas.show("blue")["volumes"] == 10


def test_usage_is_shown_beside_limits(world: Catalogue) -> None:
    world.backup(size=3)
    shown = world.quotas.show("blue", usage=True)
    assert shown["backup_gigabytes"] == {"limit": 1000, "in_use": 3, "reserved": 0}
    assert set(shown) == set(quota.RESOURCES)


def test_limits_have_the_names_clients_know(world: Catalogue) -> None:
    world.backup(size=3)
    world.snapshot(world.volume(size=2))
    world.quotas.update("blue", {"backups": -1})
    assert world.quotas.limits(ALICE) == {
        "maxTotalVolumes": 10, "maxTotalSnapshots": 10, "maxTotalVolumeGigabytes": 1000,
        "maxTotalBackups": -1, "maxTotalBackupGigabytes": 1000, "totalVolumesUsed": 1,
        "totalSnapshotsUsed": 1, "totalGigabytesUsed": 4, "totalBackupsUsed": 1,
        "totalBackupGigabytesUsed": 3,
    }  # fmt: skip
    assert world.quotas.limits(ADMIN, "blue") == world.quotas.limits(ALICE)
    assert world.quotas.limits(BOB)["totalBackupsUsed"] == 0


def race(count: int, call: Callable[[int], object]) -> list[BackupfwError | None]:
    """Start ``count`` calls at once; return what each raised."""
    start = threading.Barrier(count)

    def one(number: int) -> BackupfwError | None:
        start.wait()
        try:
            call(number)
        except BackupfwError as error:
            return error
        return None

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


def the_last_places_are_given_once(db: Database) -> None:
    world = Catalogue(db, make_conf(volumes=5, gigabytes=100))
    outcomes = race(12, lambda number: world.volumes.create(ALICE if number % 4 else BOB, size=1))
    # Nine want one of blue's five places; the other project's three are not held up by that.
    refused = [error for error in outcomes if error is not None]
    assert len(refused) == 4
    assert all(isinstance(error, QuotaExceeded) and error.resource == "volumes" for error in refused)
    assert world.usage("blue")["volumes"] == 5
    assert world.usage("green")["volumes"] == 3

    world.run_all()
    world.quotas.update("green", {"gigabytes": 13})
    ids = [volume.id for volume in world.volumes.list(BOB).items]
    # Each wants 5 more; 10 of the 13 are free, and two in a race for one volume are refused otherwise.
    outcomes = race(6, lambda number: world.volumes.extend(BOB, ids[number // 2], new_size=6))
    assert sum(error is None for error in outcomes) == 2
    assert world.usage("green")["gigabytes"] == 13


def test_races_never_get_past_a_limit(tmp_path: Path) -> None:
    db = make_database(tmp_path)
    the_last_places_are_given_once(db)
    db.close()


@pytest.mark.server
@pytest.mark.parametrize(
    ("server", "programs"),
    [
        (databases.postgresql, databases.postgresql_programs),
        (databases.mariadb, databases.mariadb_programs),
    ],
    ids=["postgresql", "mariadb"],
)
def test_races_on_servers_never_get_past_a_limit(server: Any, programs: Callable[[], object]) -> None:
    if not programs():
        pytest.skip("the server is not installed")
    with server_directory() as directory, server(directory) as url:
        db = make_database(url=url)
        the_last_places_are_given_once(db)
        db.close()


class UsageIsRows(RuleBasedStateMachine):
    """Whatever happens in whatever order, usage is what the rows say and never beyond the limits."""

    @initialize()
    def begin(self) -> None:
        self.db = make_database()
        self.world = Catalogue(self.db, make_conf(volumes=3, gigabytes=12, snapshots=2))

    def teardown(self) -> None:
        self.db.close()

    def attempt(self, call: Callable[[], object]) -> None:
        with contextlib.suppress(BackupfwError):
            call()

    def pick(self, choice: int) -> str:
        items = self.world.volumes.list(ALICE).items
        return items[choice % len(items)].id if items else "none"

    def pick_snapshot(self, choice: int) -> str:
        items = self.world.snapshots.list(ALICE).items
        return items[choice % len(items)].id if items else "none"

    @rule(size=st.integers(1, 6))
    def create(self, size: int) -> None:
        self.attempt(lambda: self.world.volumes.create(ALICE, size=size))

    @rule(choice=st.integers(0, 3))
    def create_from_snapshot(self, choice: int) -> None:
        snapshot = self.pick_snapshot(choice)
        self.attempt(lambda: self.world.volumes.create(ALICE, size=None, snapshot_id=snapshot))

    @rule(choice=st.integers(0, 3), size=st.integers(1, 8))
    def extend(self, choice: int, size: int) -> None:
        self.attempt(lambda: self.world.volumes.extend(ALICE, self.pick(choice), new_size=size))

    @rule(choice=st.integers(0, 3))
    def snapshot(self, choice: int) -> None:
        self.attempt(lambda: self.world.snapshots.create(ALICE, volume_id=self.pick(choice)))

    @rule(choice=st.integers(0, 3), cascade=st.booleans())
    def delete(self, choice: int, cascade: bool) -> None:
        self.attempt(lambda: self.world.volumes.delete(ALICE, self.pick(choice), cascade=cascade))

    @rule(choice=st.integers(0, 3))
    def force_delete(self, choice: int) -> None:
        self.attempt(lambda: self.world.volumes.force_delete(ALICE, self.pick(choice)))

    @rule(choice=st.integers(0, 3))
    def delete_snapshot(self, choice: int) -> None:
        self.attempt(lambda: self.world.snapshots.delete(ALICE, self.pick_snapshot(choice)))

    @rule(choice=st.integers(0, 3), status=st.sampled_from(["error", "available"]))
    def reset(self, choice: int, status: str) -> None:
        self.attempt(lambda: self.world.volumes.reset_status(ADMIN, self.pick(choice), status))

    @rule(fail=st.booleans())
    def work(self, fail: bool) -> None:
        task = self.world.claim()
        if task is None:
            return
        if fail and task.kind in ("volume.create", "volume.extend"):
            self.world.work.fail(task, "no")
        else:
            self.world.run(task)

    @invariant()
    def usage_is_rows_within_limits(self) -> None:
        volumes = self.world.volumes.list(ALICE).items
        snapshots = self.world.snapshots.list(ALICE).items
        used = self.world.usage("blue")
        assert used["volumes"] == len(volumes) <= 3
        assert used["snapshots"] == len(snapshots) <= 2
        assert used["gigabytes"] == sum(item.size for item in [*volumes, *snapshots]) <= 12

    @invariant()
    def no_transient_status_stands_without_a_task(self) -> None:
        with self.db.read() as session:
            busy = {task.resource_id for task in session.query(models.Task)}
        for item in [*self.world.volumes.list(ALICE).items, *self.world.snapshots.list(ALICE).items]:
            assert (
                item.status in ("available", "error", "error_extending", "error_deleting") or item.id in busy
            )


TestUsageIsRows = UsageIsRows.TestCase
TestUsageIsRows.settings = settings(max_examples=8, stateful_step_count=25, deadline=None)


@pytest.mark.soak
class TestUsageIsRowsForLong(UsageIsRows.TestCase):  # type: ignore[name-defined,misc]
    settings = settings(TestUsageIsRows.settings, max_examples=200)


def test_volumes_of_a_type_have_limits_of_their_own(world: Catalogue) -> None:
    """Counted with snapshots, on every way into the type; they follow its name, and go with it."""
    gold = world.types.create(ADMIN, name="gold")
    for name in ("volumes_lead", "backups_gold", "per_volume_gigabytes_gold", f"volumes_{'x' * 70}"):
        with pytest.raises(InvalidInput, match="Bad key"):
            world.quotas.update("blue", {name: 1})
    world.quotas.class_update("default", {"volumes_gold": 2})
    assert world.quotas.defaults()["volumes_gold"] == 2
    world.quotas.update("blue", {"gigabytes_gold": 5})
    assert "gigabytes_gold" not in world.quotas.show("green")
    first = world.volumes.create(ALICE, size=2, volume_type="gold").id
    world.run_all()
    plain = world.volume(size=3)
    for more in (
        lambda: world.volumes.create(ALICE, size=4, volume_type="gold"),
        lambda: world.volumes.extend(ALICE, first, new_size=6),
    ):
        with pytest.raises(QuotaExceeded) as caught:
            more()
        assert caught.value.resource == "gigabytes"
    world.volumes.retype(ALICE, plain, "gold")
    with pytest.raises(QuotaExceeded):
        world.snapshots.create(ALICE, volume_id=first)
    other = world.volume(size=1)
    world.quotas.update("blue", {"gigabytes_gold": -1})
    with pytest.raises(QuotaExceeded) as caught:
        world.volumes.retype(ALICE, other, "gold")
    assert caught.value.resource == "volumes"
    assert world.usage("blue")["volumes_gold"] == 2
    assert world.usage("blue")["gigabytes_gold"] == 5
    world.types.update(ADMIN, gold.id, name="silver")
    assert world.quotas.show("blue")["volumes_silver"] == 2
    for volume in (first, plain):
        world.volumes.delete(ALICE, volume)
    world.run_all()
    world.types.delete(ADMIN, gold.id)
    assert "volumes_silver" not in world.quotas.defaults()
