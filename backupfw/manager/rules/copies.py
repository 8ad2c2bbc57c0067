"""Rows of the copies of backups; all inside the caller's transaction."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Sequence

from sqlalchemy import and_, delete, or_, select
from sqlalchemy.orm import Session, aliased

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.locks import lock
from backupfw.db.session import now
from backupfw.errors import InvalidBackup, InvalidInput
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import CopyMoves
from backupfw.manager.queue import tasks
from backupfw.manager.rules import backup_rows


def begin(
    session: Session,
    backup: models.Backup,
    store: str,
    container: str,
    request_id: str | None,
    *,
    again: bool = False,
) -> models.BackupCopy:
    """Begin a copy of a backup in another store, or begin one again that failed.

    :param container: in that store.
    :param again: it failed before, and its user knows that.
    :raises InvalidInput: it is the backup's own store, or the backup's data is another installation's.
    :raises InvalidBackup: the backup is not available, has that copy, or the same data is being copied or
        removed there.
    """
    source = backup_rows.manifest_of(session, backup, lock=True)
    if backup.status not in (lifecycle.AVAILABLE, lifecycle.RESTORING):
        raise InvalidBackup("Backup status must be available")
    if source is None or source.state != lifecycle.LIVE or source.key is None:
        raise InvalidBackup("The backup has no data that could be copied.")
    if source.installation_id != installation_id(session):
        raise InvalidInput("The backup's data is another installation's: it can only be read.")
    if source.store == store:
        raise InvalidInput(f"The backup itself is in the store {store}: a copy goes to another one.")
    copy = _of(session, backup.id, store)
    if copy is not None and copy.status != lifecycle.ERROR:
        raise InvalidBackup(f"The backup has a copy in the store {store}, or is being copied there.")
    manifest_id, is_there = _manifest(session, source, store, container)
    copy = _record(session, backup, copy, store, container, manifest_id)
    if is_there:
        lifecycle.move(session, models.BackupCopy, copy.id, CopyMoves.copied)
    else:
        tasks.add(
            session,
            tasks.BACKUP_COPY,
            resource_id=manifest_id,
            source_id=None,
            project_id=backup.project_id,
            request_id=request_id,
            payload={"from_store": source.store, "again": again},
        )
    return copy


def begin_failed_again(
    session: Session, backup: models.Backup, store: str, container: str, request_id: str | None
) -> None:
    """Begin the copies in a store again that failed of other backups of a volume.

    One that cannot be begun now is left to the next backup.

    :param backup: the volume's newest one, which is about to be copied there, too.
    """
    row, other = models.BackupCopy, models.Backup
    found = session.scalars(
        select(other)
        .join(row, row.backup_id == other.id)
        .where(
            row.store == store,
            row.status == lifecycle.ERROR,
            other.volume_id == backup.volume_id,
            other.project_id == backup.project_id,
            other.id != backup.id,
            other.store != store,
            other.status == lifecycle.AVAILABLE,
            other.deleted.is_(False),
        )
        .order_by(other.created_at, other.id)
    )
    for one in found.all():
        with contextlib.suppress(InvalidBackup, InvalidInput):
            begin(session, one, store, container, request_id, again=True)


def convert(
    session: Session,
    backup: models.Backup,
    store: str,
    container: str,
    request_id: str | None,
    *,
    encrypt: bool,
) -> models.BackupCopy:
    """Begin to make a backup of our own format of one of Cinder's, in another store; or to make it again.

    Until it is complete it is a copy that is being made; then it is the backup's own, and its link is a copy
    (:func:`converted`).  It waits for the conversion of its parent, with which it shares.

    :param container: in that store.
    :param encrypt: whether it is to be encrypted.
    :raises InvalidInput: the backup has our format already, or is in that store.
    :raises InvalidBackup: the backup is not available, or is being converted into another store.
    """
    source = backup_rows.manifest_of(session, backup, lock=True)
    if backup.status not in (lifecycle.AVAILABLE, lifecycle.RESTORING):
        raise InvalidBackup("Backup status must be available")
    if source is None or source.state != lifecycle.LIVE or source.installation_id != manifests.CINDER:
        raise InvalidInput("The backup has no data of Cinder's format.")
    if source.store == store:
        raise InvalidInput(f"The backup is in the store {store}: it is converted into another one.")
    row = models.BackupCopy
    known = session.scalars(select(row).where(row.backup_id == backup.id)).all()
    for one in known:
        if one.status == lifecycle.COPYING and one.store == store:
            return one
        if one.status != lifecycle.ERROR:
            raise InvalidBackup(f"The backup is being converted into the store {one.store}.")
    moment = now(session)
    made = models.Manifest(
        id=str(uuid.uuid4()),
        store=store,
        container=container,
        installation_id=installation_id(session),
        project_id=backup.project_id,
        volume_id=backup.volume_id,
        backup_id=backup.id,
        in_tree=True,
        detached=False,
        state=lifecycle.WRITING,
        epoch=1,
        # The first attempt chooses these.
        block_size=0,
        segment_size=0,
        hash_mode="",
        length=source.length,
        touched=0,
        created_at=moment,
        updated_at=moment,
    )
    session.add(made)
    session.flush()
    copy = _record(session, backup, _of(session, backup.id, store), store, container, made.id)
    parent = select(row.manifest_id).where(
        row.backup_id == backup.parent_id, row.store == store, row.status == lifecycle.COPYING
    )
    tasks.add(
        session,
        tasks.BACKUP_COPY,
        resource_id=made.id,
        source_id=session.scalar(parent),
        project_id=backup.project_id,
        request_id=request_id,
        payload={"from_store": source.store, "encrypt": encrypt},
    )
    return copy


def converted(session: Session, backup: models.Backup, copy: models.BackupCopy) -> None:
    """Let what was made of a backup of Cinder's format be the backup's own, and its link be a copy.

    What is known of verifications was about the link, so it is forgotten.
    """
    link = backup_rows.manifest_of(session, backup, lock=True)
    made = session.get_one(models.Manifest, copy.manifest_id)
    assert link is not None
    manifests.count_as_copy(link)
    lifecycle.move(session, models.BackupCopy, copy.id, CopyMoves.copied, fail_reason=None)
    session.refresh(copy)
    copy.store, copy.container, copy.manifest_id = link.store, link.container, link.id
    backup.store, backup.container, backup.manifest_id = made.store, made.container, made.id
    _forget_verifications(backup)
    backup.updated_at = now(session)
    session.flush()


def _record(
    session: Session,
    backup: models.Backup,
    copy: models.BackupCopy | None,
    store: str,
    container: str,
    manifest_id: str,
) -> models.BackupCopy:
    """Record that a copy is being made.

    :param copy: its record if it failed before.
    """
    if copy is None:
        copy = models.BackupCopy(
            id=str(uuid.uuid4()),
            backup_id=backup.id,
            store=store,
            container=container,
            status=lifecycle.COPYING,
            created_at=now(session),
        )
        session.add(copy)
    else:
        lifecycle.move(session, models.BackupCopy, copy.id, CopyMoves.copy_again)
    copy.container, copy.manifest_id, copy.fail_reason = container, manifest_id, None
    session.flush()
    return copy


def _forget_verifications(backup: models.Backup) -> None:
    backup.verified_at = backup.verified_how = backup.verified_result = backup.fully_verified_at = None


def places(session: Session, backup: models.Backup, stores: Sequence[str]) -> list[rows.Place]:
    """Return where the data of a backup is, in the order in which the stores are configured.

    A link from which the backup was converted has other objects; it is not among them.

    :param stores: the configured ones; the others come last.
    """
    copy, manifest = models.BackupCopy, models.Manifest
    own = aliased(manifest)
    found = session.execute(
        select(manifest.id, manifest.store, manifest.container, manifest.locked_until)
        .outerjoin(copy, copy.manifest_id == manifest.id)
        # A copy is of the same volume, by which the index finds it.
        .join(
            own,
            (own.id == backup.manifest_id)
            & (own.volume_id == manifest.volume_id)
            & (own.key == manifest.key),
        )
        .where(
            or_(
                manifest.id == backup.manifest_id,
                and_(copy.backup_id == backup.id, copy.status == lifecycle.AVAILABLE),
            ),
            manifest.state == lifecycle.LIVE,
        )
        .distinct()
    )
    order = {name: number for number, name in enumerate(stores)}
    return sorted((rows.Place(*one) for one in found), key=lambda one: order.get(one.store, len(order)))


def places_of(session: Session, manifest_id: str, stores: Sequence[str]) -> list[rows.Place]:
    """Return where the data of a live manifest is, itself first, then in the order of the stores.

    :param stores: the configured ones; the others come last.
    """
    row, own = models.Manifest, aliased(models.Manifest)
    found = session.execute(
        select(row.id, row.store, row.container, row.locked_until)
        .join(own, own.key == row.key)
        .where(own.id == manifest_id, row.volume_id == own.volume_id, row.state == lifecycle.LIVE)
    )
    order = {name: number for number, name in enumerate(stores)}
    places = (rows.Place(*one) for one in found)
    return sorted(places, key=lambda one: (one.manifest_id != manifest_id, order.get(one.store, len(order))))


def promote(session: Session, backup: models.Backup, store: str, service: str) -> None:
    """Let the copy of a backup in a store be the backup's own, and what was its own be a copy.

    What is known of verifications was about the other store, so it is forgotten.

    :param service: the wire name of the store's driver.
    :raises InvalidBackup: the backup is not available, has no complete copy there, or is being copied.
    """
    copy = _of(session, backup.id, store)
    own = backup_rows.manifest_of(session, backup, lock=True)
    if backup.status != lifecycle.AVAILABLE or own is None:
        raise InvalidBackup("Backup status must be available")
    if copy is None or copy.status != lifecycle.AVAILABLE or copy.manifest_id is None:
        raise InvalidBackup(f"The backup has no complete copy in the store {store}.")
    if session.get_one(models.Manifest, copy.manifest_id).installation_id == manifests.CINDER:
        raise InvalidBackup("What a backup was converted from cannot be the backup's own again.")
    others = select(models.BackupCopy.store).where(
        models.BackupCopy.backup_id == backup.id, models.BackupCopy.status == lifecycle.COPYING
    )
    if (running := session.scalar(others.limit(1))) is not None:
        # Its task needs the store that the backup was in.
        raise InvalidBackup(f"The backup is being copied to the store {running}: wait until that has ended.")
    backup.manifest_id, copy.manifest_id = copy.manifest_id, own.id
    backup.store, copy.store = copy.store, own.store
    backup.container, copy.container = copy.container, own.container
    backup.service = service
    _forget_verifications(backup)
    backup.updated_at = copy.updated_at = now(session)
    session.flush()


def enter(session: Session, backup: models.Backup, manifest_id: str) -> bool:
    """Record a live manifest with the key of a backup's, that was found in another store, as a copy of it.

    :returns: False: the backup is deleted, or has a copy in that store, or is there itself.
    """
    manifest = session.get_one(models.Manifest, manifest_id)
    # Its deletion comes before, or removes the copy, too.
    lock(session, models.Backup, models.Backup.id == backup.id)
    session.refresh(backup)
    copy = _of(session, backup.id, manifest.store)
    if backup.deleted or backup.store == manifest.store:
        return False
    if copy is not None and copy.status != lifecycle.ERROR:
        return False
    if copy is not None:
        session.delete(copy)
        session.flush()
    moment = now(session)
    manifests.count_as_copy(manifest)
    session.add(
        models.BackupCopy(
            id=str(uuid.uuid4()),
            backup_id=backup.id,
            store=manifest.store,
            container=manifest.container,
            status=lifecycle.AVAILABLE,
            manifest_id=manifest_id,
            created_at=moment,
            updated_at=moment,
        )
    )
    session.flush()
    return True


def _of(session: Session, backup_id: str, store: str) -> models.BackupCopy | None:
    row = models.BackupCopy
    return session.scalar(select(row).where(row.backup_id == backup_id, row.store == store))


def _manifest(session: Session, source: models.Manifest, store: str, container: str) -> tuple[str, bool]:
    """Return the row of a manifest that gets a copy, and whether the copy is there already.

    A duplicate of the backup may have it, or a backup that was found there.
    """
    assert source.key is not None
    row = models.Manifest
    digest = object_digest(store, container, source.key)
    lock(session, row, row.key_digest == digest)
    known = session.scalar(
        select(row).where(row.key_digest == digest).execution_options(populate_existing=True)
    )
    if known is not None and known.state == lifecycle.LIVE and manifests.take(session, known.id):
        return known.id, True
    if known is not None and (known.state != lifecycle.GONE or known.length is None):
        raise InvalidBackup(
            f"The same data is being copied to the store {store}, or removed there; try again later."
        )
    manifests.free_key(session, digest)
    moment = now(session)
    same = (
        *("key", "installation_id", "project_id", "volume_id", "backup_id", "epoch", "block_size"),
        *("segment_size", "hash_mode", "key_id", "mac_id", "length"),
    )
    made = row(
        id=str(uuid.uuid4()),
        store=store,
        container=container,
        key_digest=digest,
        in_tree=True,
        # Until its place is known; see manifests.place_copy.
        detached=True,
        copied=True,
        state=lifecycle.WRITING,
        touched=0,
        created_at=moment,
        updated_at=moment,
        **{name: getattr(source, name) for name in same},
    )
    session.add(made)
    session.flush()
    return made.id, False


def remove_all(session: Session, backup_id: str, request_id: str | None) -> None:
    """Remove all copies of a backup: see :func:`remove`."""
    row = models.BackupCopy
    for copy in session.scalars(select(row).where(row.backup_id == backup_id).order_by(row.id)).all():
        remove(session, copy, request_id)


def remove(session: Session, copy: models.BackupCopy, request_id: str | None) -> None:
    """Delete the record of a copy, cancel its task, and queue the removal of what it needs alone."""
    manifest_id = copy.manifest_id
    session.delete(copy)
    session.flush()
    if manifest_id is not None:
        end(session, manifest_id, request_id)


def end(session: Session, manifest_id: str, request_id: str | None) -> None:
    """End a copy that no record names any more: its manifest, and what was put for it, can go.

    A link goes when no other link needs it any more.
    """
    row = models.Manifest
    tasks.cancel(session, manifest_id, (tasks.BACKUP_COPY,))
    lock(session, row, row.id == manifest_id)
    manifest = session.get(row, manifest_id, populate_existing=True)
    if manifest is None:
        return
    project, base_id = manifest.project_id, manifest.base_id
    if manifest.state != lifecycle.WRITING:
        backup_rows.let_go(session, manifest_id, project, request_id)
    elif not manifests.has_begun(manifest):
        # It has not begun: nothing was put.  A worker that was about to begin finds its task cancelled.
        session.execute(delete(row).where(row.id == manifest_id))
        session.expire_all()
    else:
        # Of a conversion, which puts a manifest under another key with each attempt.
        here = (row.store == manifest.store, row.container == manifest.container)
        manifests.give_up(session, row.backup_id == manifest.backup_id, *here)
        session.execute(delete(models.Segment).where(models.Segment.manifest_id == manifest_id))
        manifests.abandon(session, manifest_id)
        backup_rows.queue_release(session, session.get_one(row, manifest_id), project, request_id)
        backup_rows.let_go(session, base_id, project, request_id)
