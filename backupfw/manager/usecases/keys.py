"""The ids of project keys, the wrapped data keys, and what the destruction of a key does to backups.

No method calls the key store, because no transaction may wait for one: callers make or destroy a key there
before or after.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import ColumnElement, Select, and_, delete, func, select, update
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.locks import insert_if_absent, lock
from backupfw.db.session import now
from backupfw.errors import Conflict, InvalidInput
from backupfw.manager import actions, rows
from backupfw.manager.actions import Kind
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.queue import outbox
from backupfw.manager.rules import backup_rows, project_keys
from backupfw.manager.rules.project_keys import CURRENT, DESTROYING, GONE, RETIRED
from backupfw.manager.rules.quota import lock_project

if TYPE_CHECKING:
    from backupfw.context import RequestContext
    from backupfw.db.session import Database


#: How many data keys a refusal names.
_MAX_NAMED = 20
#: What a data key belongs to: the backups of one volume in one container.
_PLACE = ("installation_id", "project_id", "volume_id", "store", "container")


class Destruction(NamedTuple):
    """What is to be destroyed in the key store.

    :ivar key_ids: all keys of the project, those too that an earlier destruction named.
    :ivar backups: how many backups became unreadable now.
    """

    key_ids: Sequence[str]
    backups: int


class Outdated(NamedTuple):
    """A data key that an earlier key of its project wraps.

    :ivar current: the id of the key that shall wrap it.
    """

    data_key: rows.DataKey
    current: str


class KeyManager:
    """Project keys and data keys.  Thread-safe.

    :param wake: called after a destruction has cancelled tasks.
    """

    def __init__(self, db: Database, wake: Callable[[], None] = lambda: None) -> None:
        self._db = db
        self._wake = wake

    def current(self, project_id: str) -> str | None:
        """Return the id of the project key that wraps new data keys; None: the project has none."""
        with self._db.read() as session:
            return project_keys.current(session, project_id)

    def current_since(self, project_id: str) -> tuple[str, datetime] | None:
        """Return :meth:`current`, and when that key became it."""
        key = models.ProjectKey
        with self._db.read() as session:
            found = session.execute(
                select(key.key_id, key.created_at).where(key.project_id == project_id, key.state == CURRENT)
            ).one_or_none()
            return None if found is None else (found.key_id, found.created_at)

    def add_project_key(self, project_id: str, key_id: str, replaces: str | None = None) -> str:
        """Make a new key of the key store the current one of a project.

        :param replaces: the current key, which is retired; None: the project has none.
        :returns: the project's current key: another one than ``key_id`` if somebody else was faster.  Then
            the caller destroys ``key_id`` in the key store.
        """

        def work(session: Session) -> str:
            lock_project(session, project_id)
            found = project_keys.current(session, project_id)
            if found not in (None, replaces):
                return str(found)
            moment = now(session)
            if found is not None:
                _set(session, models.ProjectKey.key_id == found, state=RETIRED, retired_at=moment)
            session.add(
                models.ProjectKey(key_id=key_id, project_id=project_id, state=CURRENT, created_at=moment)
            )
            return key_id

        return self._db.run(work)

    def add_found(self, data_keys: Sequence[rows.DataKey]) -> None:
        """Record data keys that were found in a store, and their project keys.

        :raises DataKeyMissing: a project key is being destroyed; nothing was recorded.
        """
        self._db.run(lambda session: project_keys.record(session, data_keys))

    def list(self, project_id: str | None = None) -> Sequence[rows.ProjectKey]:
        """Return the project keys, those of one project together, the oldest first.

        :param project_id: only those of this project; None: all.
        """
        key, data_key = models.ProjectKey, models.DataKey
        backup, manifest = models.Backup, models.Manifest
        mine = () if project_id is None else (data_key.project_id == project_id,)
        with self._db.read() as session:
            data_keys = _counts(session, select(data_key.project_key_id, func.count()).where(*mine))
            backups = _counts(
                session,
                select(data_key.project_key_id, func.count())
                .join(manifest, manifest.key_id == data_key.id)
                .join(backup, backup.manifest_id == manifest.id)
                .where(backup.deleted.is_(False), *mine),
            )
            query = select(key).order_by(key.project_id, key.created_at, key.key_id)
            if project_id is not None:
                query = query.where(key.project_id == project_id)
            return [
                rows.ProjectKey(
                    row.key_id,
                    row.project_id,
                    row.state,
                    row.created_at,
                    row.retired_at,
                    row.destroyed_at,
                    data_keys.get(row.key_id, 0),
                    backups.get(row.key_id, 0),
                )
                for row in session.scalars(query)
            ]

    # ---- data keys -------------------------------------------------------------------------------

    def add_data_key(self, data_key: rows.DataKey) -> None:
        """Record a data key, unless it is recorded already; ``created_at`` is set if it is None."""

        def work(session: Session) -> None:
            values = asdict(data_key)
            values["created_at"] = data_key.created_at or now(session)
            session.execute(insert_if_absent(session, models.DataKey), values)

        self._db.run(work)

    def data_key(self, data_key_id: str) -> rows.DataKey | None:
        """Return a data key by its id."""
        return self._first(models.DataKey.id == data_key_id)

    def newest_data_key(
        self, store: str, container: str, project_id: str, volume_id: str
    ) -> rows.DataKey | None:
        """Return the newest data key of a volume's backups in a container, whose project key can be used.

        Backups that were copied there brought theirs along, and the next ones can share with them.
        """
        row, key, manifest = models.DataKey, models.ProjectKey, models.Manifest
        copied = select(manifest.mac_id).where(
            manifest.store == store,
            manifest.container == container,
            manifest.volume_id == volume_id,
            manifest.state == lifecycle.LIVE,
            manifest.mac_id.is_not(None),
        )
        gone = select(key.key_id).where(key.project_id == project_id, key.state.in_((DESTROYING, GONE)))
        return self._first(
            and_(row.store == store, row.container == container) | row.mac_id.in_(copied),
            row.project_id == project_id,
            row.volume_id == volume_id,
            row.project_key_id.not_in(gone),
        )

    def _first(self, *where: ColumnElement[bool]) -> rows.DataKey | None:
        row = models.DataKey
        with self._db.read() as session:
            found = session.scalar(
                select(row).where(*where).order_by(row.created_at.desc(), row.id.desc()).limit(1)
            )
            return None if found is None else _data_key(found)

    def is_last_encrypted(self, manifest_id: str) -> bool:
        """Return whether a manifest is encrypted, and no other one of its volume in its container is."""
        with self._db.read() as session:
            going = session.get(models.Manifest, manifest_id)
            return going is not None and _is_last_encrypted(session, going)

    def drop_data_keys(self, manifest_id: str) -> Sequence[rows.DataKey] | None:
        """Remove the data keys of a volume's backups in a container, unless another manifest may need one.

        The record of a data key that copies in another container need stays: it belongs to that one then.

        :param manifest_id: a manifest of theirs that is going.
        :returns: what goes from the container; None: another manifest may need one.
        """
        row, manifest = models.DataKey, models.Manifest

        def work(session: Session) -> Sequence[rows.DataKey] | None:
            going = session.get(manifest, manifest_id)
            if going is None:
                return None
            here = [getattr(row, name) == getattr(going, name) for name in _PLACE]
            # A backup that begins locks them, too, before its manifest names a data key.
            wrapped_by = select(row.project_key_id).where(*here)
            lock(session, models.ProjectKey, models.ProjectKey.key_id.in_(wrapped_by))
            if not _is_last_encrypted(session, going):
                return None
            found = [_data_key(one) for one in session.scalars(select(row).where(*here))]
            for one in found:
                others = [place for place in _places(session, one) if place != (one.store, one.container)]
                if others:
                    store, container = others[0]
                    session.execute(
                        update(row).where(row.id == one.id).values(store=store, container=container),
                        execution_options={"synchronize_session": False},
                    )
                else:
                    session.execute(
                        delete(row).where(row.id == one.id), execution_options={"synchronize_session": False}
                    )
            return found

        return self._db.run(work)

    def containers_of(self, data_key: rows.DataKey) -> Sequence[tuple[str, str]]:
        """Return the stores and containers that have a data key: its own first, then those with copies."""
        with self._db.read() as session:
            own = (data_key.store, data_key.container)
            return list(dict.fromkeys((own, *_places(session, data_key))))

    def outdated(self, project_id: str | None, after: str = "", limit: int = 1000) -> Sequence[Outdated]:
        """Return data keys that their project's current key does not wrap, by id.

        :param project_id: only those of this project; None: of all.
        :param after: only ids after this one.
        """
        row, key = models.DataKey, models.ProjectKey
        gone = select(key.key_id).where(key.state.in_((DESTROYING, GONE)))
        query = (
            select(row, key.key_id)
            .join(key, (key.project_id == row.project_id) & (key.state == CURRENT))
            .where(row.id > after, row.project_key_id != key.key_id, row.project_key_id.not_in(gone))
            .order_by(row.id)
            .limit(limit)
        )
        if project_id is not None:
            query = query.where(row.project_id == project_id)
        with self._db.read() as session:
            return [Outdated(_data_key(found), key_id) for found, key_id in session.execute(query)]

    def rewrapped(self, data_key_id: str, old_key_id: str, key_id: str, wrapped: bytes) -> bool:
        """Record that a data key is wrapped by another project key, if it still is wrapped by ``old_key_id``.

        :returns: whether it was, or is recorded already.
        """
        row = models.DataKey

        def work(session: Session) -> bool:
            session.execute(
                update(row)
                .where(row.id == data_key_id, row.project_key_id == old_key_id)
                .values(project_key_id=key_id, wrapped=wrapped),
                execution_options={"synchronize_session": False},
            )
            now_by = session.scalar(select(row.project_key_id).where(row.id == data_key_id))
            return now_by == key_id

        return self._db.run(work)

    # ---- destruction -----------------------------------------------------------------------------

    def encrypted_backups(self, project_id: str) -> int:
        """Count the backups that nobody can read without the keys of a project."""
        backup = models.Backup
        with self._db.read() as session:
            counted = select(func.count(backup.id)).where(project_keys.backups_of(project_id))
            return session.scalar(counted) or 0

    def begin_destruction(self, ctx: RequestContext, project_id: str) -> Destruction:
        """Decide that all keys of a project are destroyed; the caller destroys them in the key store then.

        In one transaction no key of the project can be used any more, and its encrypted backups become
        ``error`` with the reason; their tasks are cancelled, as by a reset.  Deletions go on.  It can be
        repeated.
        """

        def work(session: Session) -> Destruction:
            lock_project(session, project_id)
            key, backup = models.ProjectKey, models.Backup
            mine = key.project_id == project_id
            lock(session, key, mine)
            moment = now(session)
            _set(session, mine & (key.state == CURRENT), state=DESTROYING, retired_at=moment)
            _set(session, mine & (key.state == RETIRED), state=DESTROYING)
            key_ids = session.scalars(
                select(key.key_id).where(mine).order_by(key.created_at, key.key_id)
            ).all()
            failed = 0
            for backup_id in lock(session, backup, project_keys.backups_of(project_id)):
                row = session.get_one(backup, backup_id)
                if row.fail_reason != project_keys.DESTROYED or row.status != lifecycle.ERROR:
                    self._fail(session, row, ctx.request_id)
                    actions.record(session, ctx, Kind.BACKUP_DESTROY_KEYS, row)
                    failed += 1
            return Destruction(key_ids, failed)

        found = self._db.run(work)
        self._wake()
        return found

    @staticmethod
    def _fail(session: Session, row: models.Backup, request_id: str | None) -> None:
        outbox.add(session, "backup.reset_status.start", row.id, request_id)
        backup_rows.stop_tasks(session, row)
        manifest = backup_rows.manifest_of(session, row, lock=True)
        lifecycle.move(
            session,
            models.Backup,
            row.id,
            lifecycle.BackupMoves.reset_error,
            fail_reason=project_keys.DESTROYED,
        )
        if manifest is not None and manifest.state == lifecycle.RELEASED:
            backup_rows.queue_release(session, manifest, row.project_id, request_id)
        outbox.add(session, "backup.reset_status.end", row.id, request_id)

    def wrapped_by(self, key_id: str) -> Sequence[rows.DataKey]:
        """Return the data keys that a project key wraps, by id, as the database has them."""
        with self._db.read() as session:
            return _wrapped_by(session, key_id)

    def places(self, project_id: str) -> set[tuple[str, str]]:
        """Return the stores and containers in which a project has data keys, as the database knows them."""
        row, manifest = models.DataKey, models.Manifest
        copied = manifest.copied & manifests.is_placed() & manifest.key_id.is_not(None)
        held = manifest.state.in_((lifecycle.WRITING, lifecycle.LIVE))
        queries = (
            select(row.store, row.container).where(row.project_id == project_id),
            select(manifest.store, manifest.container).where(manifest.project_id == project_id, copied, held),
        )
        with self._db.read() as session:
            return {(place.store, place.container) for query in queries for place in session.execute(query)}

    def retired(self, key_id: str) -> rows.ProjectKey:
        """Return a project key that is not the current one of its project.

        :raises InvalidInput: there is no such key.
        :raises Conflict: it is the current one.
        """
        with self._db.read() as session:
            project_id = _require_retired(session, key_id)
        (found,) = [one for one in self.list(project_id) if one.key_id == key_id]
        return found

    def begin_key_destruction(self, key_id: str) -> None:
        """Decide that one retired key is destroyed; the caller destroys it in the key store then.

        From then on nothing can be recorded that it wraps.  It can be repeated, also after the end.

        :raises InvalidInput: there is no such key.
        :raises Conflict: it is its project's current key, or wraps data keys of the database.
        """

        def work(session: Session) -> None:
            key = models.ProjectKey
            lock_project(session, _require_retired(session, key_id))
            lock(session, key, key.key_id == key_id)
            # A retired key never becomes the current one again.
            if session.scalar(select(key.state).where(key.key_id == key_id)) == RETIRED:
                if wrapped := _wrapped_by(session, key_id):
                    raise still_needed(key_id, [f"data key {one.id}" for one in wrapped])
                _set(session, key.key_id == key_id, state=DESTROYING)

        self._db.run(work)

    def end_destruction(self, key_ids: Sequence[str]) -> None:
        """Record that the key store has destroyed keys."""

        def work(session: Session) -> None:
            key = models.ProjectKey
            mine = key.key_id.in_(key_ids) & (key.state == DESTROYING)
            _set(session, mine, state=GONE, destroyed_at=now(session))

        self._db.run(work)


def still_needed(key_id: str, wrapped: Sequence[str]) -> Conflict:
    """Return the refusal to destroy a key that wraps data keys.

    :param wrapped: how each of them is called; must not be empty.
    """
    some = ", ".join(wrapped[:_MAX_NAMED])
    more = f" and {len(wrapped) - _MAX_NAMED} more" if len(wrapped) > _MAX_NAMED else ""
    return Conflict(f"Project key {key_id} cannot be destroyed, it still wraps {some}{more}.")


def _require_retired(session: Session, key_id: str) -> str:
    """Return the project of a key that is not its current one."""
    key = session.get(models.ProjectKey, key_id)
    if key is None:
        raise InvalidInput(f"There is no project key {key_id}.")
    if key.state == CURRENT:
        raise Conflict(
            f"Project key {key_id} is the current one: 'backupfw keys rotate --project {key.project_id}'"
            " replaces it."
        )
    return key.project_id


def _wrapped_by(session: Session, key_id: str) -> Sequence[rows.DataKey]:
    row = models.DataKey
    found = session.scalars(select(row).where(row.project_key_id == key_id).order_by(row.id))
    return [_data_key(one) for one in found]


def _places(session: Session, data_key: rows.DataKey) -> list[tuple[str, str]]:
    """Return the stores and containers with manifests that may need a data key.

    A copy that has put nothing needs none yet.
    """
    row = models.Manifest
    found = session.execute(
        select(row.store, row.container)
        .where(
            row.installation_id == data_key.installation_id,
            row.project_id == data_key.project_id,
            row.volume_id == data_key.volume_id,
            row.mac_id == data_key.mac_id,
            row.state.in_((lifecycle.WRITING, lifecycle.LIVE)),
            ~row.copied | manifests.is_placed(),
        )
        .distinct()
        .order_by(row.store, row.container)
    )
    return [(store, container) for store, container in found]


def _is_last_encrypted(session: Session, going: models.Manifest) -> bool:
    row = models.Manifest
    others = select(row.id).where(
        *(getattr(row, name) == getattr(going, name) for name in _PLACE),
        row.id != going.id,
        row.key_id.is_not(None),
        row.state != lifecycle.GONE,
    )
    return going.key_id is not None and session.scalar(others.limit(1)) is None


def _set(session: Session, where: ColumnElement[bool], **values: object) -> None:
    session.execute(
        update(models.ProjectKey).where(where).values(**values),
        execution_options={"synchronize_session": False},
    )


def _counts(session: Session, query: Select[*tuple[Any, ...]]) -> dict[str, int]:
    """Return the counts of a query by project key."""
    found = session.execute(query.group_by(models.DataKey.project_key_id))
    return {str(key_id): int(count) for key_id, count in found}


def _data_key(row: models.DataKey) -> rows.DataKey:
    return rows.DataKey(**rows.columns(row, rows.DataKey))
