"""Damaged objects: which objects the next backup must store again, and which backups name them.

A *mark* says that a manifest names a damaged object.  Marks belong to manifests, not only to objects: a
backup that uses other blocks of a damaged pack may be undamaged, and a verification that finds this proves
nothing about other backups.  So a full verification removes the marks of its own manifest, and an object
leaves the list when a verification found it undamaged and no manifest has a mark for it any more.

A manifest that is being written gets marks for the objects that its base names, because it may share them.
Objects that were on the list before its attempt began are not shared, so no damaged object is missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from oslo_log import log
from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.orm import Session, aliased

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.locks import insert_if_absent, lock, put
from backupfw.db.session import after, now
from backupfw.manager import messages
from backupfw.manager.lineage.lifecycle import LIVE, WRITING
from backupfw.manager.lineage.manifests import CINDER
from backupfw.manager.outcomes.base import Outcomes
from backupfw.manager.queue import outbox

LOG = log.getLogger(__name__)

#: What a verification read: everything, or maps and the ends of packs.
FULL, QUICK = "full", "quick"
#: What it found.
OK, DAMAGED = "ok", "damaged"

#: How many rows one statement names at most.
_BATCH = 500
#: Likewise, where a statement joins tables: its text grows with them.
_FEW = 50


@dataclass(frozen=True, slots=True)
class DamagedObject:
    """An object on the list."""

    key: str
    reason: str
    found_at: datetime


@dataclass(frozen=True, slots=True)
class Sharer:
    """A manifest that may name the objects of another.

    :ivar key: of the manifest to read for its objects: its own, or its base's while it is being written.
    :ivar marked: keys of the damaged objects that it is known to name.
    """

    manifest_id: str
    key: str
    marked: frozenset[str]


def is_damaged() -> ColumnElement[bool]:
    """The condition on a backup's row that it names known damaged objects."""
    return exists().where(models.DamageMark.manifest_id == models.Backup.manifest_id)


def forget_marks(session: Session, manifest_id: str) -> None:
    """Remove all marks of a manifest."""
    session.execute(
        delete(models.DamageMark).where(models.DamageMark.manifest_id == manifest_id),
        execution_options={"synchronize_session": False},
    )


def mark(session: Session, manifest_id: str, digests: Iterable[str]) -> None:
    """Mark a manifest that names objects.

    :param digests: of the objects; those that are not on the list (any more) are skipped.
    """
    for some in _held(session, digests):
        listed = session.scalars(select(models.DamagedObject.digest).where(some)).all()
        if listed:
            found = [{"manifest_id": manifest_id, "digest": digest} for digest in listed]
            session.execute(insert_if_absent(session, models.DamageMark), found)


def _held(session: Session, digests: Iterable[str]) -> Iterator[ColumnElement[bool]]:
    """Yield conditions that select the listed objects, some at a time, and lock them until the transaction
    ends.

    Without the lock, an object could leave the list with its last mark at the moment when it gets a new one.
    """
    row, wanted = models.DamagedObject, sorted(digests)
    for start in range(0, len(wanted), _BATCH):
        some = row.digest.in_(wanted[start : start + _BATCH])
        session.execute(
            update(row).where(some).values(reason=row.reason),
            execution_options={"synchronize_session": False},
        )
        yield some


def tell(session: Session, backup_id: str, project_id: str) -> None:
    """Tell everybody whom it concerns that a backup is damaged: its owner, the bus, and the log."""
    messages.post(
        session,
        messages.Action.VERIFY_BACKUP,
        messages.Detail.DAMAGED,
        project_id=project_id,
        request_id=None,
        resource_type=messages.BACKUP,
        resource_id=backup_id,
    )
    outbox.add(session, "backup.damaged", backup_id, None)
    after(session, lambda: LOG.error("Backup %s is damaged: see its damaged objects", backup_id))


def _is_kept(session: Session, manifest_id: str) -> bool:
    """Return whether a manifest is live or being written, and lock it until the transaction ends."""
    row = models.Manifest
    return bool(lock(session, row, row.id == manifest_id, row.state.in_((LIVE, WRITING))))


class DamagedObjects(Outcomes):
    """The list of damaged objects, the marks, and the results of verifications."""

    def keys(self, store: str, container: str, prefix: str = "") -> frozenset[str]:
        """Return the keys of damaged objects that start with ``prefix``."""
        row = models.DamagedObject
        with self._db.read() as session:
            found = session.scalars(
                select(row.key).where(
                    row.store == store,
                    row.container == container,
                    row.key.startswith(prefix, autoescape=True),
                )
            )
            return frozenset(found)

    def record(self, store: str, container: str, key: str, reason: str, manifest_id: str) -> bool:
        """Add an object to the list, or update its reason, and mark the manifest that names it.

        :param reason: the error; cut to 255 characters.
        :returns: False: nothing was recorded, because that manifest is being deleted, and its objects
            with it.
        """

        def work(session: Session) -> bool:
            if not _is_kept(session, manifest_id):
                return False
            digest = object_digest(store, container, key)
            found = {
                "digest": digest,
                "store": store,
                "container": container,
                "key": key,
                "reason": reason[: models.TEXT_LENGTH],
                "found_at": now(session),
            }
            known = session.get(models.DamagedObject, digest) is not None
            put(session, models.DamagedObject, [found])
            mark(session, manifest_id, [digest])
            if not known:
                text = f"An object is damaged: {key} in container {container} of the store {store}: {reason}"
                outbox.alert(session, "object.damaged", text, store=store, container=container, key=key)
            return True

        return self._db.run(work)

    def repaired(self, store: str, container: str, keys: Iterable[str]) -> None:
        """Take objects from the list, with all their marks: they were put again, whole."""
        row, of_mark = models.DamagedObject, models.DamageMark
        wanted = [object_digest(store, container, key) for key in keys]

        def work(session: Session) -> None:
            for some in _held(session, wanted):
                found = session.scalars(select(row.digest).where(some)).all()
                for model in (of_mark, row):
                    session.execute(
                        delete(model).where(model.digest.in_(found)),
                        execution_options={"synchronize_session": False},
                    )

        self._db.run(work)

    def sharers(self, manifest_id: str) -> list[Sharer]:
        """Return the other manifests that may name objects of this one: those of its volume in its container.

        Manifests that are being written are among them if they have a base.
        """
        row, of_mark, damaged = models.Manifest, models.DamageMark, models.DamagedObject
        base = aliased(row)
        with self._db.read() as session:
            own = session.get(row, manifest_id)
            if own is None or own.installation_id == CINDER:
                # A link of Cinder's format: its own verification finds what it needs.
                return []
            of_volume = (
                (row.volume_id == own.volume_id)
                & (row.store == own.store)
                & (row.container == own.container)
                & (row.installation_id == own.installation_id)
                & (row.id != manifest_id)
                & ((row.state == LIVE) | (row.state == WRITING) & row.base_id.is_not(None))
            )
            marked: dict[str, set[str]] = {}
            for one, key in session.execute(
                select(of_mark.manifest_id, damaged.key)
                .join(damaged, damaged.digest == of_mark.digest)
                .join(row, row.id == of_mark.manifest_id)
                .where(of_volume)
            ):
                marked.setdefault(one, set()).add(key)
            found = session.execute(
                select(row.id, func.coalesce(row.key, base.key))
                .outerjoin(base, base.id == row.base_id)
                .where(of_volume)
                .order_by(row.id)
            )
            return [Sharer(one, str(key), frozenset(marked.get(one, ()))) for one, key in found]

    def mark(self, store: str, container: str, manifest_id: str, keys: Iterable[str]) -> None:
        """Mark a manifest that names objects which are on the list; nothing if it is being deleted.

        :param keys: of the objects; those that left the list meanwhile are skipped.
        """
        wanted = [object_digest(store, container, key) for key in keys]

        def work(session: Session) -> None:
            if _is_kept(session, manifest_id):
                mark(session, manifest_id, wanted)

        self._db.run(work)

    def of(self, manifest_id: str) -> list[DamagedObject]:
        """Return the damaged objects that a manifest is known to name, by key."""
        row, of_mark = models.DamagedObject, models.DamageMark
        with self._db.read() as session:
            found = session.execute(
                select(row.key, row.reason, row.found_at)
                .join(of_mark, of_mark.digest == row.digest)
                .where(of_mark.manifest_id == manifest_id)
                .order_by(row.key)
            )
            return [DamagedObject(*columns) for columns in found]

    def record_verification(
        self, manifest_id: str, begun: datetime, how: str, result: str, named: Iterable[str] = ()
    ) -> datetime:
        """Record at all backups of a manifest that it was verified now.

        A full verification that found it undamaged removes the marks for objects that were found before it
        began, and removes objects without other marks from the list.

        :param begun: when it began, by the database's clock.
        :param how: ``FULL`` or ``QUICK``.
        :param result: ``OK`` or ``DAMAGED``.
        :param named: keys of objects on the list that the manifest names.
        :returns: the moment, naive UTC.
        """

        def work(session: Session) -> datetime:
            moment = now(session)
            backup = models.Backup
            values: Mapping[str, object] = {
                "verified_at": moment,
                "verified_how": how,
                "verified_result": result,
                **({"fully_verified_at": moment} if how == FULL else {}),
            }
            of_manifest = (backup.manifest_id == manifest_id) & backup.deleted.is_(False)
            ids = lock(session, backup, of_manifest)
            session.execute(
                update(backup).where(backup.id.in_(ids), of_manifest).values(**values),
                execution_options={"synchronize_session": False},
            )
            manifest = session.get(models.Manifest, manifest_id)
            if how == FULL and manifest is not None:
                manifest.fully_verified_at = moment
            if how == FULL and result == OK and manifest is not None:
                place = (manifest.store, manifest.container)
                digests: Iterable[str] = [object_digest(*place, key) for key in named]
                if manifest.installation_id == CINDER:
                    # Its links may be in several containers.
                    mark = models.DamageMark
                    digests = session.scalars(
                        select(mark.digest).where(mark.manifest_id == manifest_id)
                    ).all()
                self._heal(session, manifest_id, begun, digests)
            return moment

        return self._db.run(work)

    def alert(self, store: str, container: str, keys: Iterable[str], told: set[str]) -> None:
        """Tell the owners of backups that name objects which are on the list.

        Each gets a user message, and the bus an event.

        :param keys: of objects that were found damaged.
        :param told: ids of backups whose owners know; those that are told are added.
        """
        wanted = sorted(object_digest(store, container, key) for key in keys)
        backup, of_mark = models.Backup, models.DamageMark
        for start in range(0, len(wanted), _FEW):
            some = wanted[start : start + _FEW]
            with self._db.read() as session:
                found = session.execute(
                    select(backup.id, backup.project_id)
                    .join(of_mark, of_mark.manifest_id == backup.manifest_id)
                    .where(of_mark.digest.in_(some), backup.deleted.is_(False))
                    .distinct()
                    .order_by(backup.id)
                ).all()
            for backup_id, project_id in found:
                if backup_id not in told:
                    self._db.run(partial(tell, backup_id=backup_id, project_id=project_id))
                    told.add(backup_id)

    @staticmethod
    def _heal(session: Session, manifest_id: str, begun: datetime, digests: Iterable[str]) -> None:
        row, of_mark = models.DamagedObject, models.DamageMark
        for some in _held(session, digests):
            # An object that was found damaged during this verification may have been read before.
            old = some & (row.found_at < begun)
            session.execute(
                delete(of_mark).where(
                    of_mark.manifest_id == manifest_id, of_mark.digest.in_(select(row.digest).where(old))
                ),
                execution_options={"synchronize_session": False},
            )
            session.execute(
                delete(row).where(old, ~exists().where(of_mark.digest == row.digest)),
                execution_options={"synchronize_session": False},
            )
