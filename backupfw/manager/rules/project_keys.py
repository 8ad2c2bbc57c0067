"""Which keys may be used, and which backups need them; all inside the caller's transaction.

The database has the ids of project keys and wrapped data keys.  A destruction marks the project's keys
first, and the backups that need them in the same transaction.  Whoever begins to use a data key locks its
project key's row before (:func:`require_usable`), so that one of the two sees the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import insert_if_absent, lock
from backupfw.db.session import now
from backupfw.errors import AttemptInVain, DataKeyMissing
from backupfw.manager import rows
from backupfw.manager.lineage.lifecycle import DELETING, ERROR_DELETING

CURRENT = "current"
"""The key that wraps a project's new data keys."""
RETIRED = "retired"
"""An earlier one: what it wrapped can still be read."""
DESTROYING = "destroying"
"""Its destruction was decided; the key store has not confirmed it yet."""
GONE = "destroyed"
"""The key store has destroyed it."""

_LONG_AGO = datetime(1970, 1, 1)

#: What users read of a backup whose key was destroyed.
DESTROYED = "The key of the backup's data was destroyed."


def current(session: Session, project_id: str) -> str | None:
    """Return the id of a project's current key."""
    key = models.ProjectKey
    return session.scalar(select(key.key_id).where(key.project_id == project_id, key.state == CURRENT))


def is_gone(session: Session, manifest: models.Manifest | None) -> bool:
    """Return whether a manifest cannot be read because the key of its data was destroyed."""
    if manifest is None or manifest.key_id is None:
        return False
    data_key, key = models.DataKey, models.ProjectKey
    found = session.scalar(
        select(key.key_id)
        .join(data_key, data_key.project_key_id == key.key_id)
        .where(data_key.id == manifest.key_id, key.state.in_((DESTROYING, GONE)))
    )
    return found is not None


def require_usable(session: Session, data_key_id: str) -> None:
    """Make sure that a data key can be used, and that its destruction sees what this transaction writes.

    :raises AttemptInVain: its project key is being destroyed: the next attempt finds or makes another one.
    """
    data_key, key = models.DataKey, models.ProjectKey
    wrapped_by = select(data_key.project_key_id).where(data_key.id == data_key_id)
    lock(session, key, key.key_id == session.scalar(wrapped_by))
    # The data key may be gone since, with the last backup of its volume.
    state = session.scalar(select(key.state).where(key.key_id == wrapped_by.scalar_subquery()))
    if state is None or state in (DESTROYING, GONE):
        raise AttemptInVain("the key of the backup's data was destroyed meanwhile")


def record(session: Session, data_keys: Sequence[rows.DataKey]) -> None:
    """Record the data keys of an imported backup, and their project keys as retired ones.

    What is known already stays as it is.  Since when the others are in use is not known: they count as older
    than all others, so that the next backup gets a new data key, which shares with them.

    :raises DataKeyMissing: a project key is being destroyed.
    """
    moment = now(session)
    for one in data_keys:
        key = {"key_id": one.project_key_id, "project_id": one.project_id, "state": RETIRED}
        times = {"created_at": _LONG_AGO, "retired_at": moment, "destroyed_at": None}
        session.execute(insert_if_absent(session, models.ProjectKey), {**key, **times, "touched": 0})
        session.execute(insert_if_absent(session, models.DataKey), {**asdict(one), "created_at": _LONG_AGO})
    row = models.ProjectKey
    used = row.key_id.in_([one.project_key_id for one in data_keys])
    lock(session, row, used)
    gone = set(session.scalars(select(row.key_id).where(used, row.state.in_((DESTROYING, GONE)))))
    for one in data_keys:
        if one.project_key_id in gone:
            raise DataKeyMissing(one.id, "the keys of its project were destroyed")


def backups_of(project_id: str) -> ColumnElement[bool]:
    """The condition on a backup's row that it cannot be read without the keys of a project.

    Backups that are being deleted are not among them.
    """
    backup, manifest, data_key = models.Backup, models.Manifest, models.DataKey
    mine = select(data_key.id).where(data_key.project_id == project_id)
    return (
        backup.deleted.is_(False)
        & backup.status.not_in((DELETING, ERROR_DELETING))
        & backup.manifest_id.in_(
            select(manifest.id).where(
                manifest.key_id.is_not(None),
                or_(manifest.project_id == project_id, manifest.key_id.in_(mine)),
            )
        )
    )
