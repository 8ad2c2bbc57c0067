"""Purge: deletes rows of resources that were deleted long ago.

A deleted backup, volume or snapshot keeps its row, with a mark that it is deleted.  The purge deletes the row
if the mark was set before the given moment and no other row refers to it.

A *mirror* of a volume or snapshot of a foreign catalogue never gets that mark.  Its row is deleted if no
backup refers to it and no request named it since the given moment; a later request makes it again.

A *manifest* that is gone keeps its row for three reasons: an import of a deleted backup is refused, a listing
that still shows the manifest does not make it unknown, and the lineage tree needs it where the tree forks.
So its row is deleted only after the row of the backup that made it, and only if the manifest is in no tree,
no row refers to it, and it was gone before the given moment.  This is safe: a manifest without a row is
unknown, and no clean-up deletes an unknown manifest or the objects that it names
(:mod:`backupfw.engine.removal`).  If the manifest appears again, an import first reads everything that it
names.  These rows stay:

* Manifests of a volume of which a backup is being made or deleted: that attempt has read which manifests are
  known, and decides by that which objects it deletes.  A sweep does so too, but nothing in the database shows
  that it runs; do not run purge and sweep at the same time.
* Announced keys that were given up stay for ever; they are few.  A manifest may be under such a key in the
  store.  Without the row it would be unknown, so a sweep would keep it and all that it names, and an import
  would accept it as a backup.  The purge also gives up keys that are still open although a worker of an older
  release deleted their backup.
* One manifest of each container, because sweep and audit look into the containers of known manifests.

*Keys*: the rows of project keys and data keys are kept.  They are few and short, and without the row of a
key its backups could not be read.

*Damaged objects* are kept for the next incremental backup of their volume, and for backups with marks.  One
is deleted when its volume has only gone manifests in its container, so that no manifest can name it any more.
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
from backupfw.db.models import Backup, BackupCopy, DamagedObject, DamageMark, Manifest, Snapshot, Task, Volume
from backupfw.db.session import Database
from backupfw.manager.lineage import manifests
from backupfw.manager.lineage.lifecycle import GONE, RELEASED, WRITING
from backupfw.manager.queue import tasks

#: Rows of one transaction, so that each is short and locks few rows.
BATCH = 500


def run(db: Database, before: datetime, dry_run: bool = False) -> dict[str, int]:
    """Delete the rows of resources that were deleted before a moment.

    Memory does not depend on the number of rows, and no row is looked at twice.

    :param before: naive UTC.
    :param dry_run: count only.
    :returns: how many rows of each, by noun.
    """
    if not dry_run:
        db.run(lambda session: manifests.give_up(session, manifests.announced_for_nobody()))
    # In this order, because rows refer to later ones: a snapshot's to its volume's, a backup's to its
    # manifest's.
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
    """Yield the rows of a query in the order of a key, some rows at a time."""
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
    # Metadata, attachments and marks are deleted with their owner.
    session.execute(
        delete(model).where(model.id.in_(found)), execution_options={"synchronize_session": False}
    )
    return len(found)


def _may_go(model: type[Any], before: datetime) -> ColumnElement[bool]:
    """The condition that a resource was deleted long ago and that nothing needs its row any more."""
    # Never one subquery with an OR, nor an EXISTS by a column without an index: a database would read the
    # other table again for each row.
    condition: ColumnElement[bool] = ~exists().where(Task.resource_id == model.id)
    condition &= ~exists().where(Task.source_id == model.id)
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
            # A row with a key but without a length is a key that was given up: it stays.
            & or_(Manifest.key.is_(None), Manifest.length.is_not(None))
            & ~exists().where(Backup.manifest_id == Manifest.id)
            & ~exists().where(BackupCopy.manifest_id == Manifest.id)
            & ~exists().where(Backup.id == Manifest.backup_id, ~_may_go(Backup, before))
            & ~moving
            & _is_tidied(Manifest)
        )
    gone = model.deleted.is_(True) & (model.deleted_at < before)
    # Each part is true or false, never null: the callers negate the condition, and a negated null is null.
    if model is Volume:
        gone |= (
            Volume.mirrored_at.is_not(None)
            & (Volume.mirrored_at < before)
            & ~exists().where(Backup.volume_id == Volume.id)
            & _is_not_in(Backup.restore_volume_id, Volume)
        )
    elif model is Snapshot:
        gone |= (
            Snapshot.mirrored_at.is_not(None)
            & (Snapshot.mirrored_at < before)
            & _is_not_in(Backup.snapshot_id, Snapshot)
        )
    condition &= gone
    if model is Backup:
        # These columns show where a killed attempt may have left objects or a snapshot.
        condition &= Backup.manifest_id.is_(None) & Backup.temp_snapshot_id.is_(None) & _is_tidied(Backup)
    elif model is Snapshot:
        condition &= ~exists().where(Backup.temp_snapshot_id == Snapshot.id)
    else:
        condition &= ~exists().where(Snapshot.volume_id == Volume.id, ~_may_go(Snapshot, before))
    return condition


def _is_not_in(column: Any, model: type[Volume | Snapshot]) -> ColumnElement[bool]:
    """The condition that no backup names a resource in a column that has no index."""
    return model.id.not_in(select(column).where(column.is_not(None)))


def _is_tidied(model: type[Backup | Manifest]) -> ColumnElement[bool]:
    """The condition that nothing is about to be removed from the storage of a row's volume.

    Without the row, what that keeps for the backup would be taken for another service's.
    """
    return ~exists().where(Task.kind == tasks.VOLUME_TIDY, Task.resource_id == model.volume_id)


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
        # Skip one that was found damaged again meanwhile, or for which a manifest got a mark.
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
    # An object of Cinder's format may have fewer parts: only marks keep it on the list.
    parts = {one.digest: one.key.split("/", 3) for one in page}
    volumes = {digest: naming.key_part_text(one[2]) if len(one) > 2 else "" for digest, one in parts.items()}
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
