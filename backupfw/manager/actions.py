"""Actions: who had what done to which backup, volume, snapshot or backup policy, when, and by which request.

An action is recorded in the transaction of the change, so there is a record exactly when the change was
made.  A record has the names of then: it tells of a backup that is gone, too.  It is kept for
``[DEFAULT] action_ttl`` seconds by the database's clock, and nobody can change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.session import Database, now
from backupfw.manager import listing, rows

if TYPE_CHECKING:
    from oslo_config import cfg


class Kind(StrEnum):
    """What was done; the part before the dot says to what."""

    BACKUP_CREATE = "backup.create"
    BACKUP_UPDATE = "backup.update"
    BACKUP_DELETE = "backup.delete"
    BACKUP_FORCE_DELETE = "backup.force_delete"
    BACKUP_RESTORE = "backup.restore"
    BACKUP_VERIFY = "backup.verify"
    BACKUP_CANCEL = "backup.cancel"
    BACKUP_COPY = "backup.copy"
    BACKUP_REMOVE_COPY = "backup.remove_copy"
    BACKUP_PROMOTE_COPY = "backup.promote_copy"
    BACKUP_CONVERT = "backup.convert"
    BACKUP_IMPORT = "backup.import"
    BACKUP_RESET_STATUS = "backup.reset_status"
    BACKUP_DESTROY_KEYS = "backup.destroy_keys"
    POLICY_CREATE = "policy.create"
    POLICY_UPDATE = "policy.update"
    POLICY_DELETE = "policy.delete"
    POLICY_RUN = "policy.run"
    VOLUME_CREATE = "volume.create"
    VOLUME_UPDATE = "volume.update"
    VOLUME_ADOPT = "volume.adopt"
    VOLUME_FORGET = "volume.forget"
    VOLUME_DELETE = "volume.delete"
    VOLUME_FORCE_DELETE = "volume.force_delete"
    VOLUME_EXTEND = "volume.extend"
    VOLUME_TRANSFER = "volume.transfer"
    VOLUME_ATTACH = "volume.attach"
    VOLUME_DETACH = "volume.detach"
    VOLUME_RESET_STATUS = "volume.reset_status"
    SNAPSHOT_CREATE = "snapshot.create"
    SNAPSHOT_UPDATE = "snapshot.update"
    SNAPSHOT_DELETE = "snapshot.delete"
    SNAPSHOT_FORCE_DELETE = "snapshot.force_delete"
    SNAPSHOT_RESET_STATUS = "snapshot.reset_status"


def record(
    session: Session,
    ctx: RequestContext,
    kind: Kind,
    row: models.Backup | models.BackupPolicy | models.Volume | models.Snapshot,
    detail: str | None = None,
) -> None:
    """Record an action in the transaction that it is about.

    :param row: what it is done to; its project sees the record.
    :param detail: what else people need to know of it, e.g. the store of a copy; cut to 255 characters.
    """
    volume_id = row.id if isinstance(row, models.Volume) else getattr(row, "volume_id", rows.NO_VOLUME)
    session.add(
        models.Action(
            kind=kind.value,
            project_id=row.project_id,
            # A policy acts in the name of whoever changed it last, who knows nothing of it.
            user_id=None if ctx.policy_id else ctx.user_id or None,
            policy_id=ctx.policy_id,
            resource_id=row.id,
            resource_name=row.display_name,
            volume_id=None if volume_id == rows.NO_VOLUME else volume_id,
            detail=None if detail is None else detail[: models.TEXT_LENGTH],
            request_id=ctx.request_id,
            created_at=now(session),
        )
    )


class ActionManager:
    """The records of the actions of all projects.  Thread-safe.

    A caller who is no administrator cannot see those of other projects.  Nobody can see one that is older
    than ``action_ttl``.

    :param conf: ``action_ttl``.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def list(
        self,
        ctx: RequestContext,
        *,
        limit: int,
        project_id: str | None = None,
        about: str | None = None,
        policies: bool = True,
        before: int | None = None,
    ) -> Sequence[rows.Action]:
        """Return the newest records, the newest first.

        :param project_id: only of this project; None: of all that the caller sees.
        :param about: only about this backup, volume, snapshot or policy, or about what is of this volume.
        :param policies: whether the caller may see what was done to policies, too.
        :param before: the id of the last record that was shown before.
        """
        row = models.Action
        query = select(row).order_by(row.id.desc()).limit(limit)
        whose = project_id if ctx.is_admin else ctx.project_id
        if whose is not None:
            query = query.where(row.project_id == whose)
        if about is not None:
            query = query.where(or_(row.resource_id == about, row.volume_id == about))
        if not policies:
            query = query.where(row.kind.not_like("policy.%"))
        if before is not None:
            query = query.where(row.id < before)
        with self._db.read() as session:
            found = session.scalars(query.where(row.created_at > self._oldest(session)))
            return [rows.Action(**rows.columns(one, rows.Action)) for one in found]

    def purge(self) -> int:
        """Delete the records that are too old to be shown; return how many there were.

        Any process may do it, at any time.
        """
        return listing.purge(self._db, models.Action, self._oldest)

    def _oldest(self, session: Session) -> datetime:
        return now(session) - timedelta(seconds=self._conf.action_ttl)
