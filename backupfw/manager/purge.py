"""Removing rows of what was deleted long ago.

Backups, volumes and snapshots are deleted softly.  Their rows are needed by what still points to them
only; the lineage is in the manifests' rows, which are never removed: a key that was deleted must be refused
for ever when an import names it again.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from sqlalchemy import ColumnElement, CursorResult, delete, exists, func, or_, select
from sqlalchemy.orm import Session

from backupfw.db.locks import lock
from backupfw.db.models import Backup, Snapshot, Task, Volume
from backupfw.db.session import Database

#: Rows removed in one transaction, so that none is long.
BATCH = 500


def run(db: Database, before: datetime, dry_run: bool = False) -> dict[str, int]:
    """Remove the rows of backups, snapshots and volumes that were deleted before a moment.

    :param before: naive UTC.
    :param dry_run: count only.
    :returns: how many rows of each, by noun.
    """
    # A snapshot's row points to its volume's: it goes first.
    removed = {}
    for model in (Backup, Snapshot, Volume):
        condition = _may_go(model, before)
        if dry_run:
            with db.read() as session:
                removed[_noun(model)] = session.scalar(select(func.count(model.id)).where(condition)) or 0
            continue
        total = 0
        while count := db.run(partial(_batch, model, condition)):
            total += count
        removed[_noun(model)] = total
    return removed


def _noun(model: type) -> str:
    return f"{model.__name__.lower()}s"


def _batch(model: type[Any], condition: ColumnElement[bool], session: Session) -> int:
    ids = lock(session, model, condition, limit=BATCH)
    # Metadata and attachments go with their owner.
    result = session.execute(
        delete(model).where(model.id.in_(ids), condition), execution_options={"synchronize_session": False}
    )
    assert isinstance(result, CursorResult)
    return result.rowcount


def _may_go(model: type[Any], before: datetime) -> ColumnElement[bool]:
    """The condition that a row was deleted long ago and nothing points to it any more."""
    condition: ColumnElement[bool] = model.deleted.is_(True) & (model.deleted_at < before)
    condition &= ~exists().where(or_(Task.resource_id == model.id, Task.source_id == model.id))
    if model is Backup:
        # What a killed attempt left is found by them.
        condition &= Backup.manifest_id.is_(None) & Backup.temp_snapshot_id.is_(None)
    elif model is Snapshot:
        condition &= ~exists().where(Backup.temp_snapshot_id == Snapshot.id)
    else:
        condition &= ~exists().where(Snapshot.volume_id == Volume.id, ~_may_go(Snapshot, before))
    return condition
