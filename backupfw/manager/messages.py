"""User messages: what users can read about an operation that failed after it was accepted.

A message is added in the transaction that moves the status, so there is one exactly when the operation
failed.  It names the action and the reason by ids that clients know; ``fail_reason`` of a backup says
more.  It is kept for ``[DEFAULT] message_ttl`` seconds by the database's clock.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Unpack

from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.errors import MessageNotFound
from backupfw.manager import listing, rows

if TYPE_CHECKING:
    from oslo_config import cfg

BACKUP = "VOLUME_BACKUP"
VOLUME = "VOLUME"
SNAPSHOT = "VOLUME_SNAPSHOT"
POLICY = "VOLUME_BACKUP_POLICY"

ERROR = "ERROR"
WARNING = "WARNING"
"""The operation succeeded, but not exactly as requested."""


class Action(Enum):
    """The action that failed.  The value is the id, which clients know."""

    EXTEND_VOLUME = "007"
    CREATE_VOLUME = "008"
    CREATE_SNAPSHOT = "009"
    DELETE_SNAPSHOT = "010"
    CREATE_BACKUP = "013"
    DELETE_BACKUP = "014"
    RESTORE_BACKUP = "015"
    # No other service has ids for these.  Clients show the text that comes with an id they do not know.
    DELETE_VOLUME = "101"
    IMPORT_BACKUP = "102"
    VERIFY_BACKUP = "103"
    COPY_BACKUP = "104"


class Detail(Enum):
    """Why it failed.  The value is the id, which clients know."""

    UNKNOWN = "001"
    NO_BACKEND = "003"
    EXTEND_VOLUME = "010"
    CREATE_VOLUME = "012"
    CREATE_SNAPSHOT = "013"
    DELETE_SNAPSHOT = "016"
    SERVICE_DOWN = "018"
    DEVICE = "019"
    CREATE_BACKUP = "020"
    ATTACH = "021"
    SCHEDULE = "024"
    DELETE_BACKUP = "025"
    RESTORE_BACKUP = "026"
    VOLUME_STATE = "027"
    BECAME_FULL = "030"
    # Likewise.
    VOLUME_GREW = "101"
    IMPORT_BACKUP = "102"
    CANCELLED = "103"
    CHANGE_MISSED = "104"
    DAMAGED = "105"
    LOCKED = "106"
    NEEDED = "107"
    COPY_BACKUP = "108"
    VERIFY_BACKUP = "109"
    NOT_QUIESCED = "110"
    RUN_MISSED = "111"
    RUN_FAILED = "112"


_ACTIONS: Mapping[Action, str] = {
    Action.EXTEND_VOLUME: "extend volume",
    Action.CREATE_VOLUME: "create volume",
    Action.CREATE_SNAPSHOT: "create snapshot",
    Action.DELETE_SNAPSHOT: "delete snapshot",
    Action.CREATE_BACKUP: "create backup",
    Action.DELETE_BACKUP: "delete backup",
    Action.RESTORE_BACKUP: "restore backup",
    Action.DELETE_VOLUME: "delete volume",
    Action.IMPORT_BACKUP: "import backup",
    Action.VERIFY_BACKUP: "verify backup",
    Action.COPY_BACKUP: "copy backup",
}

_DETAILS: Mapping[Detail, str] = {
    Detail.UNKNOWN: "The operation failed.",
    Detail.NO_BACKEND: "No service that can open the volume was available.",
    Detail.EXTEND_VOLUME: "The volume could not be made larger.",
    Detail.CREATE_VOLUME: "The volume could not be made.",
    Detail.CREATE_SNAPSHOT: "The snapshot could not be made.",
    Detail.DELETE_SNAPSHOT: "The snapshot could not be deleted.",
    Detail.SERVICE_DOWN: "No backup service was available.",
    Detail.DEVICE: "The volume could not be read.",
    Detail.CREATE_BACKUP: "The backup could not be made.",
    Detail.ATTACH: "The volume could not be opened or written.",
    Detail.SCHEDULE: "No backup service can take this backup.",
    Detail.DELETE_BACKUP: "The backup's data could not be deleted.",
    Detail.RESTORE_BACKUP: "The backup could not be restored.",
    Detail.VOLUME_STATE: "The volume's status does not allow it.",
    Detail.BECAME_FULL: "The data of the backup before could not be used, so all data was stored anew.",
    Detail.VOLUME_GREW: "The volume is larger than it was known to be. All of it is used; its new size counts"
    " towards the quota.",
    Detail.IMPORT_BACKUP: "The backup could not be imported.",
    Detail.CANCELLED: "The operation was cancelled.",
    Detail.CHANGE_MISSED: "The volume's storage said wrongly what had changed. All data was"
    " compared instead, and will be by later backups of this volume. Earlier backups since the last one that"
    " compared all data may hold wrong data, too.",
    Detail.DAMAGED: "A part of the backup's data is lost or has changed in its store. The next incremental"
    " backup of the volume stores that part again.",
    Detail.LOCKED: "The backup's data is locked in its store. It is deleted when the lock has ended; the"
    " backup says when that is.",
    Detail.COPY_BACKUP: "The backup could not be copied to another store.",
    Detail.VERIFY_BACKUP: "Not all of the backup's data could be read, so nobody knows whether it is whole.",
    Detail.NOT_QUIESCED: "The volume was not frozen when the backup's point was taken. It is as after a power"
    " cut.",
    Detail.RUN_MISSED: "The backup policy missed a run. Its list of runs says for which volumes, and why.",
    Detail.RUN_FAILED: "The backup policy had a run that could not begin. Its list of runs says for which"
    " volume, and why.",
    Detail.NEEDED: "Incremental backups in the store that are not known here need the backup's data.",
}


def post(
    session: Session,
    action: Action,
    detail: Detail,
    *,
    project_id: str,
    request_id: str | None,
    resource_type: str,
    resource_id: str,
    level: str = ERROR,
) -> None:
    """Add a message in the caller's transaction.

    :param project_id: who reads it: the project that asked for the operation.
    :param resource_type: :data:`BACKUP`, :data:`VOLUME`, :data:`SNAPSHOT` or :data:`POLICY`.
    """
    session.add(
        models.Message(
            id=str(uuid.uuid4()),
            project_id=project_id,
            request_id=request_id,
            resource_type=resource_type,
            resource_uuid=resource_id,
            action_id=action.value,
            detail_id=detail.value,
            event_id=f"VOLUME_{resource_type}_{action.value}_{detail.value}",
            message_level=level,
            created_at=now(session),
        )
    )
    session.flush()


def text(action_id: str, detail_id: str) -> str:
    """Return what users read, also for ids that only a newer release knows."""
    try:
        action = _ACTIONS[Action(action_id)]
    except ValueError:
        action = "unknown operation"
    try:
        detail = _DETAILS[Detail(detail_id)]
    except ValueError:
        detail = _DETAILS[Detail.UNKNOWN]
    return f"{action}: {detail}"


class MessageManager:
    """The user messages of all projects.  Thread-safe.

    A caller who is no administrator cannot see messages of other projects.  Nobody can see a message that is
    older than ``message_ttl``.

    :param conf: ``message_ttl``.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def get(self, ctx: RequestContext, message_id: str) -> rows.Message:
        """Return one message.

        :raises MessageNotFound: no such message for this caller.
        """
        with self._db.read() as session:
            return self._record(self._find(session, ctx, message_id))

    def list(
        self, ctx: RequestContext, *, detail: bool = True, **paging: Unpack[listing.Paging]
    ) -> rows.Page[rows.Message]:
        """Return one page of messages.

        :param detail: ignored.
        :raises InvalidInput: a sort key or direction is unknown.
        :raises MarkerNotFound: the marker is no message that this caller can see.
        """
        del detail
        with self._db.read() as session:
            living = models.Message.created_at > self._oldest(session)
            found, total = listing.page(session, models.Message, ctx, paging, where=[living])
            return rows.Page([self._record(row) for row in found], total)

    def delete(self, ctx: RequestContext, message_id: str) -> None:
        """Delete one message.

        :raises MessageNotFound: no such message for this caller.
        """
        self._db.run(lambda session: session.delete(self._find(session, ctx, message_id)))

    def purge(self) -> int:
        """Delete the messages that are too old to be shown; return how many there were.

        Any process may do it, at any time.
        """
        return listing.purge(self._db, models.Message, self._oldest)

    def _oldest(self, session: Session) -> datetime:
        return now(session) - timedelta(seconds=self._conf.message_ttl)

    def _find(self, session: Session, ctx: RequestContext, message_id: str) -> models.Message:
        row = session.get(models.Message, message_id)
        visible = row is not None and (ctx.is_admin or row.project_id == ctx.project_id)
        if row is None or not visible or row.created_at <= self._oldest(session):
            raise MessageNotFound(message_id)
        return row

    def _record(self, row: models.Message) -> rows.Message:
        return rows.Message(
            **rows.columns(row, rows.Message),
            user_message=text(row.action_id, row.detail_id),
            guaranteed_until=row.created_at + timedelta(seconds=self._conf.message_ttl),
        )
