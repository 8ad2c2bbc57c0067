"""What the use cases of backups, volumes and snapshots have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy.orm import Session

from backupfw.db.models import Backup, Snapshot, SnapshotMetadata, Volume, VolumeMetadata
from backupfw.db.session import now
from backupfw.manager import actions
from backupfw.manager import metadata as pairs
from backupfw.manager.queue import tasks

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

Result = TypeVar("Result")


class UseCases:
    """Use cases that queue tasks.

    :param db: the database.
    :param conf: the configuration.
    :param wake: called after a transaction that queued or cancelled tasks has committed.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts, wake: Callable[[], None]) -> None:
        self._db = db
        self._conf = conf
        self._wake = wake

    def _change(
        self, work: Callable[[Session], Result], done: Callable[[Session], Result | None] | None = None
    ) -> Result:
        """Run a transaction that queues or cancels tasks; parameters as of :meth:`Database.run`."""
        result = self._db.run(work, done)
        self._wake()
        return result


def queue(
    session: Session,
    ctx: RequestContext,
    kind: str,
    row: Backup | Volume | Snapshot,
    source_id: str | None = None,
    **payload: Any,
) -> None:
    """Queue a task about a row, for its project.

    :param source_id: the volume or snapshot that it occupies.
    """
    tasks.add(
        session,
        kind,
        resource_id=row.id,
        source_id=source_id,
        project_id=row.project_id,
        request_id=ctx.request_id,
        payload=payload,
    )


def describe(
    session: Session,
    ctx: RequestContext,
    row: Volume | Snapshot,
    name: str | None,
    description: str | None,
    metadata: Mapping[str, str] | None,
) -> None:
    """Set name and description, and the whole metadata unless it is None; the caller has locked the row."""
    row.display_name = name
    row.display_description = description
    row.updated_at = now(session)
    words = "name, description" + ("" if metadata is None else ", metadata")
    kind = actions.Kind.VOLUME_UPDATE if isinstance(row, Volume) else actions.Kind.SNAPSHOT_UPDATE
    actions.record(session, ctx, kind, row, words)
    if metadata is not None:
        model = VolumeMetadata if isinstance(row, Volume) else SnapshotMetadata
        pairs.replace(session, model, row.id, metadata)
    session.flush()
