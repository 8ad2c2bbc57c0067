"""Removing rows of what was deleted long ago.

Backups, volumes and snapshots are deleted softly.  Their rows are needed by what still points to them
only.

*Manifests* that are gone are known for three reasons: an import of what was deleted is refused, a listing
that still shows one does not make it count as unknown, and the lineage tree needs its forks.  So the row of
one goes only when the row of the backup that made it went before, when it is in no tree, when no row points
to it, and when it went as long ago as the others.  Nothing is lost by that: a manifest without a row is one
that the database does not know, which no clean-up deletes, nor anything that it names
(:mod:`backupfw.engine.removal`).  Should it turn up again, an import reads everything that it names before
it is believed.  What stays besides:

* Manifests of volumes in which another one is being made or removed: that attempt has read which manifests
  are known, and may be deleting by it.  A sweep does the same and leaves no mark; the two are not to run at
  the same time.
* Keys that were announced for a manifest and given up, for ever; they are few.  A manifest may lie under one
  in the store: without the row it would be one that the database does not know, so a sweep would keep it and
  all that it names, and an import would take it for a backup.  What is still open of a deleted backup, which
  a worker of an older release deleted, is given up here.
* One manifest of each container: sweep and audit look where manifests are known.

*Damaged objects* are known for the next incremental of their volume, and for backups that are marked
because of them.  One goes when no manifest of its volume in its container is left but gone ones, so that
nothing can name it any more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, Select, delete, exists, func, or_, select
from sqlalchemy.orm import Session, aliased

from backupfw import naming
from backupfw.db.locks import lock
from backupfw.db.models import Backup, DamagedObject, DamageMark, Manifest, Snapshot, Task, Volume
from backupfw.db.session import Database
from backupfw.manager.lineage import manifests
from backupfw.manager.lineage.lifecycle import GONE, RELEASED, WRITING

#: Rows looked at in one transaction, so that none is long and few are held.
BATCH = 500


def run(db: Database, before: datetime, dry_run: bool = False) -> dict[str, int]:
    """Remove the rows of what was deleted before a moment.

    Memory does not depend on the number of rows, and no row is looked at twice.

    :param before: naive UTC.
    :param dry_run: count only.
    :returns: how many rows of each, by noun.
    """
    # A snapshot's row points to its volume's, a manifest's is needed by that of its maker: they go later.
    if not dry_run:
        db.run(lambda session: manifests.give_up(session, manifests.announced_for_nobody()))
    steps = ((Backup, "backups"), (Snapshot, "snapshots"), (Volume, "volumes"), (Manifest, "manifests"))
    removed = {noun: _remove(db, model, _may_go(model, before), dry_run) for model, noun in steps}
    return removed | {"damaged objects": _remove_damaged(db, before, dry_run)}


def _remove(db: Database, model: type[Any], condition: ColumnElement[bool], dry_run: bool) -> int:
    kept = _last_of_containers(db) if model is Manifest else frozenset()
    query = select(model.id).where(condition)
    total = 0
    for page in _pages(db, query, model.id):
        ids = [row.id for row in page if row.id not in kept]
        total += len(ids) if dry_run else db.run(partial(_delete, model, ids, condition))
    return total


def _pages(db: Database, query: Select[*tuple[Any, ...]], key: Any) -> Iterator[Sequence[Any]]:
    """Yield what a query finds in the order of a key, some rows at a time."""
    last = ""
    while True:
        with db.read() as session:
            page = session.execute(query.where(key > last).order_by(key).limit(BATCH)).all()
        if not page:
            return
        yield page
        last = page[-1][0]


def _delete(model: type[Any], ids: Collection[str], condition: ColumnElement[bool], session: Session) -> int:
    lock(session, model, model.id.in_(ids))
    found = session.scalars(select(model.id).where(model.id.in_(ids), condition)).all()
    # Metadata, attachments and marks go with their owner.
    session.execute(
        delete(model).where(model.id.in_(found)), execution_options={"synchronize_session": False}
    )
    return len(found)


def _may_go(model: type[Any], before: datetime) -> ColumnElement[bool]:
    """The condition that something was deleted long ago and that nothing needs its row any more."""
    condition: ColumnElement[bool] = ~exists().where(
        or_(Task.resource_id == model.id, Task.source_id == model.id)
    )
    if model is Manifest:
        other = aliased(Manifest)
        moving = exists().where(
            other.volume_id == Manifest.volume_id, other.in_tree, other.state.in_((WRITING, RELEASED))
        )
        return (
            condition
            & (Manifest.state == GONE)
            & (func.coalesce(Manifest.updated_at, Manifest.created_at) < before)
            & Manifest.in_tree.is_(False)
            # A key without a length was given up.
            & or_(Manifest.key.is_(None), Manifest.length.is_not(None))
            & ~exists().where(Backup.manifest_id == Manifest.id)
            & ~exists().where(Backup.id == Manifest.backup_id, ~_may_go(Backup, before))
            & ~moving
        )
    condition &= model.deleted.is_(True) & (model.deleted_at < before)
    if model is Backup:
        # What a killed attempt left is found by them.
        condition &= Backup.manifest_id.is_(None) & Backup.temp_snapshot_id.is_(None)
    elif model is Snapshot:
        condition &= ~exists().where(Backup.temp_snapshot_id == Snapshot.id)
    else:
        condition &= ~exists().where(Snapshot.volume_id == Volume.id, ~_may_go(Snapshot, before))
    return condition


def _last_of_containers(db: Database) -> frozenset[str]:
    """Return a manifest of each container, so that it stays known."""
    with db.read() as session:
        last = select(func.max(Manifest.id)).group_by(Manifest.store, Manifest.container)
        return frozenset(session.scalars(last))


def _remove_damaged(db: Database, before: datetime, dry_run: bool) -> int:
    row = DamagedObject
    old = row.found_at < before
    total = 0
    for page in _pages(db, select(row.digest, row.store, row.container, row.key).where(old), row.digest):
        # One that was found again meanwhile is no longer old; one that a manifest was marked for stays.
        named = exists().where(DamageMark.digest == row.digest)
        condition = old & row.digest.in_(_unnamed(db, page)) & ~named
        if dry_run:
            with db.read() as session:
                total += session.scalar(select(func.count()).select_from(row).where(condition)) or 0
        else:
            total += db.run(partial(_delete_damaged, condition))
    return total


def _unnamed(db: Database, page: Sequence[Any]) -> list[str]:
    """Return the digests of the damaged objects that no manifest can name."""
    volumes = {one.digest: naming.key_part_text(one.key.split("/", 3)[2]) for one in page}
    with db.read() as session:
        named = {
            tuple(place)
            for place in session.execute(
                select(Manifest.store, Manifest.container, Manifest.volume_id)
                .where(Manifest.volume_id.in_(set(volumes.values())), Manifest.state != GONE)
                .distinct()
            )
        }
    return [one.digest for one in page if (one.store, one.container, volumes[one.digest]) not in named]


def _delete_damaged(condition: ColumnElement[bool], session: Session) -> int:
    result = session.execute(
        delete(DamagedObject).where(condition), execution_options={"synchronize_session": False}
    )
    assert isinstance(result, CursorResult)
    return result.rowcount
