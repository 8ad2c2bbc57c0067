"""The use cases of attachments: they record which programs use a volume.

The service attaches nothing itself; other programs report it here.  A volume in use is backed up from a
temporary snapshot, and no restore writes to it.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

from sqlalchemy import delete
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.session import now
from backupfw.errors import AttachmentNotFound, InvalidVolume
from backupfw.manager import actions, rows
from backupfw.manager.actions import Kind
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import VolumeMoves
from backupfw.manager.rules.volume_rules import find_volume, is_attached, is_read_by_task

if TYPE_CHECKING:
    from backupfw.context import RequestContext
    from backupfw.db.session import Database


def add_attachment(
    session: Session,
    volume_id: str,
    attachment_id: str,
    attach_mode: str | None = "rw",
    **columns: str | None,
) -> None:
    """Add the row of an attachment; the caller moves the volume."""
    session.add(
        models.Attachment(
            id=attachment_id,
            volume_id=volume_id,
            attach_mode=attach_mode,
            attached_at=now(session),
            **columns,
        )
    )


class Attachments:
    """The use cases of attachments.  Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def attach(
        self,
        ctx: RequestContext,
        volume_id: str,
        *,
        instance_uuid: str | None = None,
        host_name: str | None = None,
        mountpoint: str | None = None,
        mode: str | None = "rw",
    ) -> rows.Volume:
        """Record that a program uses an available volume: it is ``in-use`` from now on.

        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: it is not available, or it is being copied.
        """
        attachment_id = str(uuid.uuid4())

        def work(session: Session) -> rows.Volume:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in VolumeMoves.attach.sources:
                raise InvalidVolume(
                    f"Volume {volume_id} must be available to be attached, "
                    f'but the current status is "{volume.status}".'
                )
            if is_read_by_task(session, volume_id):
                # While a volume is copied, nothing may write to it.
                raise InvalidVolume(f"Volume {volume_id} is being copied; it can be attached after that.")
            add_attachment(
                session,
                volume_id,
                attachment_id,
                instance_uuid=instance_uuid,
                host_name=host_name,
                mountpoint=mountpoint,
                attach_mode=mode,
            )
            actions.record(session, ctx, Kind.VOLUME_ATTACH, volume, mountpoint or instance_uuid or host_name)
            lifecycle.move(session, models.Volume, volume_id, VolumeMoves.attach)
            return rows.volume(session, volume)

        def noted(session: Session) -> rows.Volume | None:
            found = session.get(models.Attachment, attachment_id)
            volume = session.get(models.Volume, volume_id)
            return None if found is None or volume is None else rows.volume(session, volume)

        return self._db.run(work, noted)

    def detach(self, ctx: RequestContext, volume_id: str, *, attachment_id: str | None = None) -> rows.Volume:
        """Record that a program does not use the volume any more; after the last one it is ``available``.

        :param attachment_id: which attachment; all of them unless given.
        :raises VolumeNotFound: there is none, or not for this caller.
        :raises InvalidVolume: it is not in use.
        :raises AttachmentNotFound: the volume has no such attachment.
        """

        def work(session: Session) -> rows.Volume:
            volume = find_volume(session, ctx, volume_id, lock=True)
            if volume.status not in VolumeMoves.detach.sources:
                raise InvalidVolume(
                    f"Volume {volume_id} must be in-use to be detached, "
                    f'but the current status is "{volume.status}".'
                )
            gone = [
                entry.id for entry in rows.volume(session, volume).attachments
                if attachment_id in (None, entry.id)
            ]  # fmt: skip
            if attachment_id is not None and not gone:
                raise AttachmentNotFound(attachment_id)
            session.execute(delete(models.Attachment).where(models.Attachment.id.in_(gone)))
            actions.record(session, ctx, Kind.VOLUME_DETACH, volume)
            if not is_attached(session, volume_id):
                lifecycle.move(session, models.Volume, volume_id, VolumeMoves.detach)
            return rows.volume(session, volume)

        return self._db.run(work)
