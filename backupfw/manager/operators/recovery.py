"""Entering backups that were found in a store: the catalogue is rebuilt from the objects.

Rows are written in batches, each in one transaction, and a base before those that share with it; so a run
that is killed leaves rows that are right, and the next run goes on.  Rows that are there are never changed,
but for what could not be read without a key.

A manifest of this installation enters the lineage.  Its place in it is exact if the volume's tree was empty
when its first manifest was entered; otherwise the database may know manifests that the store does not have
any more, and so the lineage counts as unknown (*detached*), as after an import.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from oslo_db.exception import DBDuplicateEntry
from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from backupfw.db import locks, models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id, take_over_installation
from backupfw.db.session import Database, now
from backupfw.errors import InvalidInput
from backupfw.manager import records
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.queue.tasks import short_reason
from backupfw.manager.rules import backup_rows, copies
from backupfw.manager.rules.found_manifests import MAX_LENGTH, ManifestFacts, add_manifest, columns
from backupfw.manager.rules.volume_rules import may_be_id

#: Most backups that one transaction enters.
BATCH = 100

#: How often a batch is tried that others enter, too.
_MOST_TRIES = 20

#: What became of a manifest.
ENTERED = "entered"
KNOWN = "known"
DESCRIBED = "described"

# Ids of backups whose own id another manifest's backup has.
_IDS = uuid.UUID("f3a0c1f4-6b0d-4d0e-9a44-5c2f6f6a3f0b")


@dataclass(frozen=True, slots=True)
class Found:
    """A manifest that was found in a store.

    :ivar attempt: of its key; with ``facts.epoch`` it says which of two manifests of a backup is the later.
    :ivar problem: why the backup cannot be restored; it is entered in ``error`` with this reason.
    :ivar is_sealed: what people wrote cannot be read, because a key is missing.
    :ivar base: key of its neighbour in the lineage, of the same volume and container.
    :ivar detached: its lineage is not known.
    """

    facts: ManifestFacts
    attempt: int
    problem: str | None = None
    is_sealed: bool = False
    base: str | None = None
    detached: bool = True


@dataclass(frozen=True, slots=True)
class Entered:
    """What became of a manifest.

    :ivar backup_id: its backup; one that made it, if that is not entered.
    :ivar result: one of the constants of this module.
    :ivar is_other: the id is new, because another backup has the one that made it.
    :ivar is_copy: the manifest of that backup has the same key, in another place.  Without ``is_other`` it is
        a copy of the backup in another store, and is entered as that.
    """

    found: Found
    backup_id: str
    result: str
    is_other: bool = False
    is_copy: bool = False


def take_over(db: Database, installation: str) -> None:
    """Make this database the one of an installation whose database was lost.  It can be repeated.

    Read-only references to that installation's manifests become its own.

    :raises InvalidInput: this database has its own installation with backups.
    """

    def work(session: Session) -> None:
        refuse_take_over(session, installation)
        take_over_installation(session, installation)
        row = models.Manifest
        session.execute(
            update(row)
            .where(row.installation_id == installation, row.in_tree.is_(False), row.state == lifecycle.LIVE)
            .values(in_tree=True, detached=True),
            execution_options={"synchronize_session": False},
        )

    if not has_installation(db, installation):
        db.run(work)


def has_installation(db: Database, installation: str) -> bool:
    """Say whether this database is the one of an installation."""
    with db.read() as session:
        return installation_id(session) == installation


def refuse_take_over(session: Session, installation: str) -> None:
    """Refuse to take over another installation where the own one has backups.

    :raises InvalidInput: it has.
    """
    mine = installation_id(session)
    row = models.Manifest
    if mine != installation and session.scalar(select(row.id).where(row.installation_id == mine).limit(1)):
        raise InvalidInput(
            f"This database has backups of its own installation {mine}, and can be of one installation only."
            " Take the other one over with a new database."
        )


def elsewhere(
    db: Database, store: str, container: str, volume_id: str, keys: Collection[str]
) -> dict[tuple[str, str], str]:
    """Return the other stores and containers in which the catalogue has live manifests of a volume.

    :param keys: only manifests with one of these keys.
    :returns: the key of one manifest for each place.
    """
    row = models.Manifest
    with db.read() as session:
        found = session.execute(
            select(row.store, row.container, row.key).where(
                row.volume_id == volume_id, row.state == lifecycle.LIVE
            )
        )
        return {
            (one.store, one.container): one.key
            for one in found
            if (one.store, one.container) != (store, container) and one.key in keys
        }


def undescribed(db: Database, store: str, container: str, volume_id: str) -> set[str]:
    """Return the keys of a volume's manifests whose backups were entered without their key."""
    row, backup = models.Manifest, models.Backup
    with db.read() as session:
        found = session.scalars(
            select(row.key)
            .join(backup, backup.manifest_id == row.id)
            .where(
                row.volume_id == volume_id,
                row.store == store,
                row.container == container,
                row.state == lifecycle.LIVE,
                _is_undescribed(),
            )
        )
        return {key for key in found if key is not None}


def _is_undescribed() -> ColumnElement[bool]:
    backup = models.Backup
    return backup.deleted.is_(False) & backup.data_timestamp.is_(None)


def enter(
    db: Database,
    volume: Sequence[Found],
    record_of: Callable[[Found], Mapping[str, Any]],
    own_id: str,
    *,
    dry_run: bool = False,
) -> Iterator[Entered]:
    """Enter the manifests of one volume in one container, and yield what became of each.

    :param volume: a base before those that share with it.
    :param record_of: returns the part ``backup`` of a manifest's record, which may be hostile; called outside
        of transactions.
    :param own_id: this installation's id.
    :param dry_run: change nothing.
    """
    if not volume:
        return
    with db.read() as session:
        exact = not _has_tree(session, volume[0].facts)
    first: dict[str, Found] = {}
    for found in volume:
        rival = first.get(found.facts.backup_id)
        if rival is None or _rank(found) > _rank(rival):
            first[found.facts.backup_id] = found
    for start in range(0, len(volume), BATCH):
        batch = [(found, _record(found, record_of)) for found in volume[start : start + BATCH]]

        def work(session: Session, batch: Sequence[tuple[Found, records.Record]] = batch) -> list[Entered]:
            done = [
                _enter(session, found, record, own_id, exact, first[found.facts.backup_id] is found)
                for found, record in batch
            ]
            if dry_run:
                session.rollback()
            return done

        yield from _repeated(db, work)


def _repeated(db: Database, work: Callable[[Session], list[Entered]]) -> list[Entered]:
    """Enter a batch; again if another run, or an import, has inserted one of its backups meanwhile.

    A run on another store may do so for each of its batches, which are others.
    """
    for _ in range(_MOST_TRIES):
        with contextlib.suppress(DBDuplicateEntry):
            return db.run(work)
    return db.run(work)


def _rank(found: Found) -> tuple[bool, int, int, str]:
    return found.problem is None, found.facts.epoch, found.attempt, found.facts.key


def _record(found: Found, record_of: Callable[[Found], Mapping[str, Any]]) -> records.Record:
    facts = found.facts
    return records.of_manifest(facts.backup_id, facts.size, record_of(found))


def _has_tree(session: Session, facts: ManifestFacts) -> bool:
    row = models.Manifest
    known = select(row.id).where(
        row.volume_id == facts.volume_id,
        row.store == facts.store,
        row.container == facts.container,
        row.installation_id == facts.installation_id,
        row.state != lifecycle.ANNOUNCED,
    )
    return session.scalar(known.limit(1)) is not None


def _enter(
    session: Session, found: Found, record: records.Record, own_id: str, exact: bool, is_first: bool
) -> Entered:
    facts = found.facts
    row, backup = models.Manifest, models.Backup
    digest = object_digest(facts.store, facts.container, facts.key)
    moment = now(session)
    known = session.execute(select(row.id, row.state).where(row.key_digest == digest)).one_or_none()
    if known is not None:
        backup_id = session.scalar(
            select(backup.id).where(backup.manifest_id == known.id, _is_undescribed()).limit(1)
        )
        if backup_id is None or found.is_sealed or known.state != lifecycle.LIVE:
            return Entered(found, facts.backup_id, KNOWN)
        _describe(session, backup_id, found, record, moment)
        return Entered(found, backup_id, DESCRIBED)
    base_id = None
    detached = found.detached or not exact
    if not detached and found.base is not None:
        base = object_digest(facts.store, facts.container, found.base)
        base_id = session.scalar(select(row.id).where(row.key_digest == base, row.in_tree))
        if base_id is None or not manifests.take(session, base_id):
            base_id, detached = None, True
    manifest_id = add_manifest(session, facts, own_id, base_id=base_id, detached=detached)
    backup_id = facts.backup_id
    holder = session.get(backup, backup_id)
    place = (facts.store, facts.container, facts.key)
    if (
        holder is not None
        and holder.deleted
        and (holder.store, holder.container, holder.service_metadata) == place
    ):
        # A reference to this very manifest, that was deleted.
        session.delete(holder)
        session.flush()
        holder = None
    is_other = not is_first or not may_be_id(backup_id) or holder is not None
    is_copy = holder is not None and holder.service_metadata == facts.key
    is_whole = found.problem is None and facts.installation_id == own_id
    if holder is not None and is_copy and is_whole and copies.enter(session, holder, manifest_id):
        return Entered(found, backup_id, ENTERED, is_copy=True)
    if is_other:
        backup_id = str(uuid.uuid5(_IDS, digest))
    values = columns(backup_id, record, facts, moment, moment)
    if found.is_sealed:
        values["data_timestamp"] = None
    session.add(
        backup(
            id=backup_id,
            user_id=record.user_id,
            project_id=facts.project_id,
            manifest_id=manifest_id,
            status=lifecycle.AVAILABLE if found.problem is None else lifecycle.ERROR,
            completed=found.problem is None,
            fail_reason=None if found.problem is None else short_reason(found.problem),
            updated_at=moment,
            **values,
        )
    )
    session.add_all(
        models.BackupMetadata(backup_id=backup_id, key=key, value=value)
        for key, value in record.metadata.items()
    )
    return Entered(found, backup_id, ENTERED, is_other, is_copy)


def _describe(
    session: Session, backup_id: str, found: Found, record: records.Record, moment: datetime
) -> None:
    """Set what could not be read without the key."""
    backup = models.Backup
    locks.lock(session, backup, backup.id == backup_id)
    row = session.get_one(backup, backup_id)
    values = columns(backup_id, record, found.facts, moment, row.created_at)
    for name, value in {**values, "user_id": record.user_id}.items():
        setattr(row, name, value)
    backup_rows.set_metadata(session, backup_id, record.metadata)


def check_length(length: int) -> None:
    """Refuse a volume that is too long to be one.

    :raises InvalidInput: it is.
    """
    if length > MAX_LENGTH:
        raise InvalidInput(f"The backup's volume would be longer than {MAX_LENGTH >> 40} TiB.")
