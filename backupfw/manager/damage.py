"""Objects that were found damaged: what the next incremental must store anew, and whose data they are.

A *mark* says that a live manifest names a damaged object.  It is the manifest's, not only the object's: a
backup that needs other blocks of a damaged pack may be whole, and a verification that finds it so says
nothing for the others.  So a full verification takes away the marks of its own manifest, and an object
leaves the list with its last mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, exists, select, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.locks import insert_if_absent, lock, put
from backupfw.db.session import now
from backupfw.manager.lifecycle import LIVE
from backupfw.manager.outcome import Outcomes

#: What a verification read: everything, or maps and the ends of packs.
FULL, QUICK = "full", "quick"
#: What it found.
OK, DAMAGED = "ok", "damaged"

#: How many rows one statement names at most.
_BATCH = 500


@dataclass(frozen=True, slots=True)
class DamagedObject:
    """An object on the list."""

    key: str
    reason: str
    found_at: datetime


@dataclass(frozen=True, slots=True)
class Sharer:
    """A live manifest that may name the objects of another.

    :ivar marked: keys of the damaged objects that it is known to name.
    """

    manifest_id: str
    key: str
    marked: frozenset[str]


def forget_marks(session: Session, manifest_id: str) -> None:
    """Take away a manifest's marks: it is gone."""
    session.execute(
        delete(models.DamageMark).where(models.DamageMark.manifest_id == manifest_id),
        execution_options={"synchronize_session": False},
    )


def _mark(session: Session, manifest_id: str, digests: Iterable[str]) -> None:
    found = [{"manifest_id": manifest_id, "digest": digest} for digest in sorted(digests)]
    if found:
        session.execute(insert_if_absent(session, models.DamageMark), found)


def _is_live(session: Session, manifest_id: str) -> bool:
    """Say whether a manifest is live, and keep it so until the transaction ends."""
    row = models.Manifest
    return bool(lock(session, row, row.id == manifest_id, row.state == LIVE))


class Damage(Outcomes):
    """The list of damaged objects, the marks, and what verifications found."""

    def damaged_keys(self, store: str, container: str, prefix: str = "") -> frozenset[str]:
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

    def unmarked_keys(self, store: str, container: str, prefix: str) -> frozenset[str]:
        """Return the keys of damaged objects that start with ``prefix`` and have no mark.

        So are those that were found before there were marks.
        """
        row, mark = models.DamagedObject, models.DamageMark
        with self._db.read() as session:
            found = session.scalars(
                select(row.key).where(
                    row.store == store,
                    row.container == container,
                    row.key.startswith(prefix, autoescape=True),
                    ~exists().where(mark.digest == row.digest),
                )
            )
            return frozenset(found)

    def record_damage(
        self, store: str, container: str, key: str, reason: str, manifest_id: str | None = None
    ) -> bool:
        """Enter an object, or its newest reason.

        :param reason: what is wrong; cut to 255 characters.
        :param manifest_id: the manifest that was found to name it; it is marked.
        :returns: False: nothing was recorded, because that manifest is not live any more, and its objects
            are being deleted.
        """

        def work(session: Session) -> bool:
            if manifest_id is not None and not _is_live(session, manifest_id):
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
            put(session, models.DamagedObject, [found])
            if manifest_id is not None:
                _mark(session, manifest_id, [digest])
            return True

        return self._db.run(work)

    def sharers(self, manifest_id: str) -> list[Sharer]:
        """Return the other live manifests that may name objects of this one: those of its volume there."""
        row, mark = models.Manifest, models.DamageMark
        with self._db.read() as session:
            own = session.get(row, manifest_id)
            if own is None:
                return []
            of_volume = (
                (row.volume_id == own.volume_id)
                & (row.store == own.store)
                & (row.container == own.container)
                & (row.installation_id == own.installation_id)
                & (row.state == LIVE)
                & (row.id != manifest_id)
            )
            marked: dict[str, set[str]] = {}
            damaged = models.DamagedObject
            for one, key in session.execute(
                select(mark.manifest_id, damaged.key)
                .join(damaged, damaged.digest == mark.digest)
                .join(row, row.id == mark.manifest_id)
                .where(of_volume)
            ):
                marked.setdefault(one, set()).add(key)
            return [
                Sharer(one, str(key), frozenset(marked.get(one, ())))
                for one, key in session.execute(select(row.id, row.key).where(of_volume).order_by(row.id))
            ]

    def mark_damaged(self, store: str, container: str, manifest_id: str, keys: Iterable[str]) -> None:
        """Mark a manifest that names objects which are on the list; nothing if it is not live any more.

        :param keys: of the objects; those that left the list meanwhile are passed over.
        """
        wanted = sorted(object_digest(store, container, key) for key in keys)

        def work(session: Session) -> None:
            if not _is_live(session, manifest_id):
                return
            row = models.DamagedObject
            for start in range(0, len(wanted), _BATCH):
                some = row.digest.in_(wanted[start : start + _BATCH])
                # Changed, so that none of them goes before the mark is there.
                session.execute(
                    update(row).where(some).values(reason=row.reason),
                    execution_options={"synchronize_session": False},
                )
                _mark(session, manifest_id, session.scalars(select(row.digest).where(some)).all())

        self._db.run(work)

    def damage_of(self, manifest_id: str) -> list[DamagedObject]:
        """Return the damaged objects that a manifest is known to name, by key."""
        row, mark = models.DamagedObject, models.DamageMark
        with self._db.read() as session:
            found = session.execute(
                select(row.key, row.reason, row.found_at)
                .join(mark, mark.digest == row.digest)
                .where(mark.manifest_id == manifest_id)
                .order_by(row.key)
            )
            return [DamagedObject(*columns) for columns in found]

    def record_verification(self, manifest_id: str, how: str, result: str) -> datetime:
        """Record at all backups of a manifest that it was verified now.

        A full verification that found it whole takes its marks away, and off the list what nobody else is
        marked for.

        :param how: ``FULL`` or ``QUICK``.
        :param result: ``OK`` or ``DAMAGED``.
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
            named = (backup.manifest_id == manifest_id) & backup.deleted.is_(False)
            ids = lock(session, backup, named)
            session.execute(
                update(backup).where(backup.id.in_(ids), named).values(**values),
                execution_options={"synchronize_session": False},
            )
            if how == FULL and result == OK:
                self._heal(session, manifest_id)
            return moment

        return self._db.run(work)

    @staticmethod
    def _heal(session: Session, manifest_id: str) -> None:
        row, mark = models.DamagedObject, models.DamageMark
        digests = session.scalars(
            select(mark.digest).where(mark.manifest_id == manifest_id).order_by(mark.digest)
        ).all()
        forget_marks(session, manifest_id)
        for start in range(0, len(digests), _BATCH):
            some = row.digest.in_(digests[start : start + _BATCH])
            # Locked in one statement: the next sees the marks of whoever held them before.
            session.execute(
                update(row).where(some).values(reason=row.reason),
                execution_options={"synchronize_session": False},
            )
            session.execute(
                delete(row).where(some, ~exists().where(mark.digest == row.digest)),
                execution_options={"synchronize_session": False},
            )

    def clear_damage(self, store: str, container: str, key: str) -> None:
        """Take an object off the list: it was found whole, or it is deleted; idempotent."""

        def work(session: Session) -> None:
            row = models.DamagedObject
            session.execute(delete(row).where(row.digest == object_digest(store, container, key)))

        self._db.run(work)

    def clear_damage_below(self, store: str, container: str, prefix: str) -> None:
        """Take all objects below a prefix off the list: they are deleted."""

        def work(session: Session) -> None:
            row = models.DamagedObject
            session.execute(
                delete(row).where(
                    row.store == store,
                    row.container == container,
                    row.key.startswith(prefix, autoescape=True),
                ),
                execution_options={"synchronize_session": False},
            )

        self._db.run(work)
