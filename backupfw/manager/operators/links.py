"""Entering backups of Cinder's format that were found in a store, without records of them."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import locks, models
from backupfw.db.digest import object_digest
from backupfw.db.session import Database, now
from backupfw.errors import InvalidInput, TaskLost
from backupfw.manager.lineage import lifecycle
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.records import Record
from backupfw.manager.rules import backup_rows, copies
from backupfw.manager.rules.found_manifests import ManifestFacts, columns, hold_manifest


def is_known(db: Database, store: str, container: str, key: str) -> bool:
    """Return whether a backup that is not deleted has a link, or the link was deleted here."""
    row, backup = models.Manifest, models.Backup
    with db.read() as session:
        found = session.execute(
            select(row.state, backup.id)
            .outerjoin(backup, (backup.manifest_id == row.id) & backup.deleted.is_(False))
            .where(row.key_digest == object_digest(store, container, key))
        ).first()
        return found is not None and (found.state != lifecycle.LIVE or found[1] is not None)


def owner_of_volume(db: Database, volume_id: str) -> str | None:
    """Return the project of a volume that the catalogue has, or had."""
    row = models.Volume
    with db.read() as session:
        return session.scalar(select(row.project_id).where(row.id == volume_id))


def enter(db: Database, record: Record, facts: ManifestFacts) -> bool:
    """Enter an available backup, with the links that it needs; its project is that of the facts.

    Quotas are not asked: the data is there.

    :returns: False: there is a backup of this id; nothing was changed (see :func:`enter_origin`).
    :raises InvalidInput: a link was deleted here, or the backup of this id is an import that failed.
    """

    def work(session: Session) -> bool:
        locks.lock(session, models.Backup, models.Backup.id == record.id)
        known = session.get(models.Backup, record.id)
        if known is not None and not known.deleted:
            if known.manifest_id is None and known.status == lifecycle.ERROR:
                raise InvalidInput("A backup of this id is in error, without data: delete it first.")
            return False
        ctx = RequestContext(project_id=facts.project_id, user_id=record.user_id or "")
        row = backup_rows.imported(session, ctx, record, known, volume_id=facts.volume_id)
        manifest_id = hold_manifest(session, facts)
        moment = now(session)
        moved = lifecycle.move(
            session,
            models.Backup,
            row.id,
            BackupMoves.created,
            manifest_id=manifest_id,
            completed=True,
            **columns(row.id, record, facts, moment, moment),
        )
        if not moved:
            raise TaskLost(f"backup {row.id} was changed meanwhile")
        return True

    return db.run(work)


def enter_origin(db: Database, facts: ManifestFacts) -> bool:
    """Enter a link as a copy of the backup that was converted from it, as the conversion did.

    Only the manifest of that backup says which link that is: the caller has looked there.

    :returns: False: the backup has one in that store, or is not there itself; nothing was changed.
    :raises InvalidInput: a link was deleted here.
    """

    def work(session: Session) -> bool:
        locks.lock(session, models.Backup, models.Backup.id == facts.backup_id)
        known = session.get(models.Backup, facts.backup_id)
        if known is None or (known.volume_id, known.project_id) != (facts.volume_id, facts.project_id):
            return False
        manifest_id = hold_manifest(session, facts)
        if copies.enter(session, known, manifest_id):
            return True
        session.rollback()
        return False

    return db.run(work)
