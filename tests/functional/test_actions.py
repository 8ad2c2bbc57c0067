"""Who had what done: a record of each change, in its transaction, for those who may know, for a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.errors import BackupfwError
from backupfw.manager.actions import ActionManager, Kind
from backupfw.manager.usecases.keys import KeyManager
from tests.functional.cloud import Cloud

ALICE = RequestContext("demo", "alice", ["member"], request_id="req-1")
ROOT = RequestContext("ops", "root", ["admin"], is_admin=True, request_id="req-2")


def listed(cloud: Cloud, ctx: RequestContext = ROOT, **chosen: Any) -> list[tuple[str, str | None]]:
    """Kind and detail of the records, the oldest first."""
    found = ActionManager(cloud.db, cloud.conf).list(ctx, limit=1000, **chosen)
    return [(one.kind, one.detail) for one in reversed(found)]


def begin(cloud: Cloud) -> str:
    """Return a backup that is being made."""
    return cloud.managers.backups.create(ALICE, volume_id=cloud.volume()).id


def copied(cloud: Cloud) -> str:
    """Return a backup with a copy."""
    backup = cloud.backup(cloud.volume())
    cloud.managers.backups.copy(ALICE, backup, "offsite")
    cloud.settle()
    return backup


def snapshot(cloud: Cloud) -> str:
    """Return a snapshot."""
    made = cloud.managers.snapshots.create(ALICE, volume_id=cloud.volume()).id
    cloud.settle()
    return made


def policy(cloud: Cloud) -> str:
    """Return a policy."""
    settings = {"schedule": {"cron": "@daily"}, "selection": {"all": True}}
    return cloud.managers.policies.create(ALICE, settings=settings, name="daily").id


def backup(cloud: Cloud) -> str:
    """Return a backup."""
    return cloud.backup(cloud.volume())


#: What is done, to what, and its record.
CHANGES: Mapping[str, tuple[Callable[[Cloud], str], Callable[[Cloud, str], object], Kind, str | None]] = {
    "update": (
        backup,
        lambda c, one: c.managers.backups.update(ALICE, one, name="a", description=None),
        Kind.BACKUP_UPDATE,
        "name, description",
    ),
    "keep": (
        backup,
        lambda c, one: c.managers.backups.merge_metadata(ALICE, one, {"backupfw:keep": "true"}),
        Kind.BACKUP_UPDATE,
        "backupfw:keep=true",
    ),
    "delete": (backup, lambda c, one: c.managers.backups.delete(ALICE, one), Kind.BACKUP_DELETE, None),
    "force delete": (
        begin,
        lambda c, one: c.managers.backups.force_delete(ALICE, one),
        Kind.BACKUP_FORCE_DELETE,
        None,
    ),
    "cancel": (
        begin,
        lambda c, one: c.managers.backups.cancel(ALICE, one),
        Kind.BACKUP_CANCEL,
        "backup.create",
    ),
    "verify": (
        copied,
        lambda c, one: c.managers.backups.verify(ALICE, one),
        Kind.BACKUP_VERIFY,
        "in main and offsite",
    ),
    "copy": (
        backup,
        lambda c, one: c.managers.backups.copy(ALICE, one, "offsite"),
        Kind.BACKUP_COPY,
        "to offsite",
    ),
    "remove copy": (
        copied,
        lambda c, one: c.managers.backups.remove_copy(ALICE, one, "offsite"),
        Kind.BACKUP_REMOVE_COPY,
        "in offsite",
    ),
    "promote": (
        copied,
        lambda c, one: c.managers.backups.promote_copy(ALICE, one, "offsite", "x"),
        Kind.BACKUP_PROMOTE_COPY,
        "in offsite",
    ),
    "reset": (
        backup,
        lambda c, one: c.managers.backups.reset_status(ALICE, one, "error"),
        Kind.BACKUP_RESET_STATUS,
        "to error",
    ),
    "policy: change": (
        policy,
        lambda c, one: c.managers.policies.update(ALICE, one, name="b", enabled=False),
        Kind.POLICY_UPDATE,
        "name, paused",
    ),
    "policy: run": (policy, lambda c, one: c.managers.policies.run(ALICE, one), Kind.POLICY_RUN, None),
    "policy: delete": (
        policy,
        lambda c, one: c.managers.policies.delete(ALICE, one),
        Kind.POLICY_DELETE,
        None,
    ),
    "volume: change": (
        Cloud.volume,
        lambda c, one: c.managers.volumes.update(ALICE, one, name="b", description=None),
        Kind.VOLUME_UPDATE,
        "name, description",
    ),
    "volume: extend": (
        Cloud.volume,
        lambda c, one: c.managers.volumes.extend(ALICE, one, new_size=7),
        Kind.VOLUME_EXTEND,
        "to 7 GiB",
    ),
    "volume: delete": (
        Cloud.volume,
        lambda c, one: c.managers.volumes.delete(ALICE, one, cascade=True),
        Kind.VOLUME_DELETE,
        "with its snapshots",
    ),
    "volume: force delete": (
        Cloud.volume,
        lambda c, one: c.managers.volumes.force_delete(ALICE, one),
        Kind.VOLUME_FORCE_DELETE,
        None,
    ),
    "volume: reset": (
        Cloud.volume,
        lambda c, one: c.managers.volumes.reset_status(ALICE, one, "error"),
        Kind.VOLUME_RESET_STATUS,
        "to error",
    ),
    "volume: attach": (
        Cloud.volume,
        lambda c, one: c.managers.volumes.attachments.attach(ALICE, one, mountpoint="/dev/vdb"),
        Kind.VOLUME_ATTACH,
        "/dev/vdb",
    ),
    "snapshot: change": (
        snapshot,
        lambda c, one: c.managers.snapshots.update(ALICE, one, name="b", description=None, metadata={}),
        Kind.SNAPSHOT_UPDATE,
        "name, description, metadata",
    ),
    "snapshot: delete": (
        snapshot,
        lambda c, one: c.managers.snapshots.delete(ALICE, one),
        Kind.SNAPSHOT_DELETE,
        None,
    ),
    "snapshot: force delete": (
        snapshot,
        lambda c, one: c.managers.snapshots.force_delete(ALICE, one),
        Kind.SNAPSHOT_FORCE_DELETE,
        None,
    ),
    "snapshot: reset": (
        snapshot,
        lambda c, one: c.managers.snapshots.reset_status(ALICE, one, "error"),
        Kind.SNAPSHOT_RESET_STATUS,
        "to error",
    ),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_recorded_once(cloud: Cloud, what: str) -> None:
    make, change, kind, detail = CHANGES[what]
    about = make(cloud)
    before = len(listed(cloud))
    change(cloud, about)
    with cloud.db.read() as session:
        rows = session.scalars(select(models.Action).order_by(models.Action.id)).all()
    assert len(rows) == before + 1
    row = rows[-1]
    assert (row.kind, row.detail, row.resource_id) == (kind, detail, about)
    assert (row.project_id, row.user_id, row.policy_id, row.request_id) == ("demo", "alice", None, "req-1")
    assert (row.volume_id is None) == kind.startswith("policy.")
    assert listed(cloud, ALICE, about=about)[-1] == (kind, detail)


def test_restores_and_what_is_made_are_recorded(cloud: Cloud) -> None:
    volume = cloud.volume()
    one = cloud.managers.backups.create(ALICE, volume_id=volume, name="monday").id
    cloud.settle()
    _, target, _ = cloud.managers.backups.restore(ALICE, one)
    cloud.settle()
    made = cloud.managers.volumes.create(ALICE, backup_id=one, size=3)
    snap = cloud.managers.snapshots.create(ALICE, volume_id=volume).id
    assert listed(cloud, about=one) == [
        (Kind.BACKUP_CREATE, "full"),
        (Kind.BACKUP_RESTORE, f"to volume {target}"),
        (Kind.BACKUP_RESTORE, f"to volume {made.id}"),
    ]
    assert listed(cloud, about=made.id) == [(Kind.VOLUME_CREATE, f"from backup {one}")]
    assert (Kind.SNAPSHOT_CREATE, None) in listed(cloud, about=volume)
    assert listed(cloud, about=snap) == [(Kind.SNAPSHOT_CREATE, None)]


def test_what_was_refused_is_no_action(cloud: Cloud) -> None:
    one = backup(cloud)
    before = listed(cloud)
    for refused in (
        lambda: cloud.managers.backups.cancel(ALICE, one),
        lambda: cloud.managers.backups.remove_copy(ALICE, one, "offsite"),
        lambda: cloud.managers.volumes.extend(
            ALICE, cloud.managers.backups.get(ALICE, one).volume_id, new_size=1
        ),
    ):
        with pytest.raises(BackupfwError):
            refused()
    assert listed(cloud) == before


def test_what_a_policy_does_is_nobodys(cloud: Cloud) -> None:
    one = backup(cloud)
    acting = RequestContext("demo", "alice", ["member"], policy_id="p" * 36)
    cloud.managers.backups.delete(acting, one)
    (last,) = ActionManager(cloud.db, cloud.conf).list(ALICE, limit=1)
    assert (last.kind, last.user_id, last.policy_id) == (Kind.BACKUP_DELETE, None, "p" * 36)


def test_a_volume_that_is_given_away_is_known_on_both_sides(cloud: Cloud) -> None:
    volume = cloud.volume()
    offered, key = cloud.managers.transfers.create(ALICE, volume_id=volume, name=None)
    bob = RequestContext("other", "bob", ["member"])
    cloud.managers.transfers.accept(bob, offered.id, key)
    assert listed(cloud, ALICE, about=volume)[-1] == (Kind.VOLUME_TRANSFER, "to project other")
    assert listed(cloud, bob) == [(Kind.VOLUME_TRANSFER, "from project demo")]


def test_destroyed_keys_are_recorded_at_each_backup(cloud: Cloud) -> None:
    one = backup(cloud)
    with cloud.db.write() as session:
        moment = now(session)
        values = {
            "mac_id": "m",
            "project_id": "demo",
            "volume_id": "v",
            "installation_id": "i",
            "store": "main",
        }
        values |= {"container": "c", "algorithm": "a", "wrapped": b"", "project_key_id": "k"}
        session.add(models.ProjectKey(key_id="k", project_id="demo", state="current", created_at=moment))
        session.add(models.DataKey(id="d", created_at=moment, **values))
        session.execute(update(models.Manifest).values(key_id="d"))
    assert KeyManager(cloud.db).begin_destruction(ROOT, "demo").backups == 1
    assert listed(cloud, about=one)[-1] == (Kind.BACKUP_DESTROY_KEYS, None)


def test_who_sees_what_and_for_how_long(cloud: Cloud) -> None:
    mine, policies = backup(cloud), policy(cloud)
    theirs = cloud.backup(cloud.volume("other"), project="other")
    manager = ActionManager(cloud.db, cloud.conf)
    assert {one.project_id for one in manager.list(ALICE, limit=100)} == {"demo"}
    assert {one.project_id for one in manager.list(ALICE, limit=100, project_id="other")} == {"demo"}
    assert {one.project_id for one in manager.list(ROOT, limit=100)} == {"demo", "other"}
    assert {one.project_id for one in manager.list(ROOT, limit=100, project_id="other")} == {"other"}
    assert not manager.list(ALICE, limit=100, about=theirs)
    assert not manager.list(ALICE, limit=100, about=policies, policies=False)
    everything = [one.id for one in manager.list(ROOT, limit=100)]
    (newest,) = manager.list(ROOT, limit=1)
    assert [newest.id, *(one.id for one in manager.list(ROOT, limit=100, before=newest.id))] == everything
    old = timedelta(seconds=cloud.conf.action_ttl + 1)
    with cloud.db.write() as session:
        session.execute(
            update(models.Action)
            .where(models.Action.resource_id == mine)
            .values(created_at=now(session) - old)
        )
    assert not manager.list(ALICE, limit=100, about=mine), "nobody sees it any more"
    assert manager.purge() == 1
    assert manager.purge() == 0
    assert len(manager.list(ROOT, limit=100)) == len(everything) - 1


def test_a_change_that_is_undone_leaves_no_record(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record and the change are one transaction."""
    one = backup(cloud)
    before = listed(cloud)

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("backupfw.manager.usecases.backups.queue", fails)
    with pytest.raises(RuntimeError):
        cloud.managers.backups.delete(ALICE, one)
    assert listed(cloud) == before
    assert isinstance(cloud.db, Database)
