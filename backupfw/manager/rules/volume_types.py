"""Volume types: which exist, which projects may use them, which one new volumes get, and in which back end.

Volumes, placement rules and manifests have a type's name; its extra specs are data of clients, except for
``volume_backend_name``.  Only administrators and the projects with access see a private type.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Unpack

from oslo_db.exception import DBDuplicateEntry
from oslo_log import log
from sqlalchemy import ColumnElement, and_, delete, exists, or_, select, update
from sqlalchemy.orm import Session

from backupfw.conf.volumes import default_backend
from backupfw.db import locks, queries
from backupfw.db.models import (
    Backup,
    DefaultVolumeType,
    Volume,
    VolumeType,
    VolumeTypeExtraSpec,
    VolumeTypeProject,
)
from backupfw.db.session import now
from backupfw.errors import Conflict, InvalidInput, KeyNotFound, NotFound, VolumeTypeNotFound
from backupfw.manager import rows
from backupfw.manager.rules import quota

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database
    from backupfw.manager import listing

LOG = log.getLogger(__name__)

#: The extra spec that names the back end of a type's volumes.
BACKEND_SPEC = "volume_backend_name"


class DefaultTypeNotFound(NotFound):
    """The project has no default type of its own."""

    noun = "Default type for project"


class AccessNotFound(NotFound):
    """The project has no access to the type, or the type is public and needs none."""

    noun = "Volume type access for"


def _open_to(project_id: str) -> ColumnElement[bool]:
    """The condition that a project may use a type."""
    access = exists().where(
        VolumeTypeProject.volume_type_id == VolumeType.id, VolumeTypeProject.project_id == project_id
    )
    return or_(VolumeType.is_public.is_(True), access)


def _visible(ctx: RequestContext) -> Sequence[ColumnElement[bool]]:
    return () if ctx.is_admin else (_open_to(ctx.project_id),)


def chosen(session: Session, ctx: RequestContext, wanted: str) -> str:
    """Return the name of a requested type, given by id or name, for a new volume.

    :raises VolumeTypeNotFound: there is none, or not for this caller.
    """
    asked = (or_(VolumeType.id == wanted, VolumeType.name == wanted), *_visible(ctx))
    # A type can have the id of another type as its name.
    found = session.scalar(select(VolumeType.id).where(*asked).order_by(VolumeType.id != wanted).limit(1))
    # Lock it, so that it is neither renamed nor deleted before the volume exists.
    if found is None or not locks.lock(session, VolumeType, VolumeType.id == found, *asked):
        raise VolumeTypeNotFound(wanted)
    return session.get_one(VolumeType, found).name


def of_backup(session: Session, project_id: str, name: object) -> str | None:
    """Return the type that a backup's volume had, if a project may still use it."""
    return name if isinstance(name, str) and usable(session, project_id, name) else None


def usable(session: Session, project_id: str, name: str) -> bool:
    """Return whether a type of this name exists that a project may use."""
    if "\0" in name:
        return False
    return bool(session.scalar(select(VolumeType.id).where(VolumeType.name == name, _open_to(project_id))))


def default(session: Session, conf: cfg.ConfigOpts, project_id: str) -> VolumeType | None:
    """Return the default type of a project: its own, else the installation's."""
    own = (
        select(VolumeType)
        .join(DefaultVolumeType, DefaultVolumeType.volume_type_id == VolumeType.id)
        .where(DefaultVolumeType.project_id == project_id, _open_to(project_id))
    )
    return session.scalar(own) or session.scalar(
        select(VolumeType).where(VolumeType.name == conf.default_volume_type)
    )


def backend_of(session: Session, conf: cfg.ConfigOpts, name: str | None) -> str | None:
    """Return the volume back end that a type names; None: it names none, or there is no such type.

    Types that were copied from another service name its back ends.  While only one is enabled, there is
    nothing to choose: the name of any other is ignored, with a warning.
    """
    spec = VolumeTypeExtraSpec
    found = (
        select(spec.value)
        .join(VolumeType, VolumeType.id == spec.volume_type_id)
        .where(VolumeType.name == name, spec.key == BACKEND_SPEC)
    )
    wanted = None if name is None else (session.scalar(found) or "").strip() or None
    if wanted is not None and len(conf.volumes.enabled) == 1 and wanted not in conf.volumes.enabled:
        _warn_of_ignored(name, wanted, conf.volumes.enabled[0])
        return None
    return wanted


@lru_cache(maxsize=1024)
def _warn_of_ignored(name: str | None, wanted: str, enabled: str) -> None:
    """Warn once of each type, as each of its volumes asks."""
    LOG.warning(
        "Volume type %s: its %s %s is ignored: the only volume back end is %s",
        name,
        BACKEND_SPEC,
        wanted,
        enabled,
    )


def backend_for(session: Session, conf: cfg.ConfigOpts, name: str | None) -> str:
    """Return the back end of a new volume of a type: the one that the type names, else the default.

    :raises InvalidInput: the type's back end is not enabled.
    """
    wanted = backend_of(session, conf, name)
    if wanted is None:
        return default_backend(conf)
    if wanted not in conf.volumes.enabled:
        # Users do not see extra specs, so they must not read the back end's name either.
        LOG.warning("Volume type %s cannot be used: its back end %s is not enabled", name, wanted)
        raise InvalidInput(f"Volume type {name} cannot be used here: its back end is not enabled.")
    return wanted


def type_of_backup(session: Session, project_id: str, backup: Backup) -> str | None:
    """Return the type that the volume of a backup had, if it is known and a project may use it."""
    return of_backup(session, project_id, (backup.volume_record or {}).get("volume_type"))


def backend_of_restored(
    session: Session,
    conf: cfg.ConfigOpts,
    ctx: RequestContext,
    backup: Backup,
    kind: str | None,
    *,
    chosen: bool = False,
) -> str:
    """Return the back end of a new volume that a backup is restored to.

    It is that of the backup's volume, else that of the type, else the default: the first that is enabled.

    :param kind: the type of the new volume; None: it gets the default type of the caller's project.
    :param chosen: the request names the type: if the type names a back end, no other one will do.
    :raises InvalidInput: the back end of the type that was chosen is not enabled.
    """
    if kind is None and (found := default(session, conf, ctx.project_id)) is not None:
        kind = found.name
    wanted = backend_of(session, conf, kind)
    if chosen and wanted is not None:
        return backend_for(session, conf, kind)
    # The row of a volume that was deleted is there until it is purged.
    source = session.get(Volume, backup.volume_id)
    for name in (None if source is None else source.backend, wanted):
        if name in conf.volumes.enabled:
            assert name is not None
            return name
    return default_backend(conf)


class VolumeTypeManager:
    """The use cases of volume types.  Thread-safe.

    The API's policy decides who may change them; a type that a caller cannot see is not found.

    :param conf: has the option ``default_volume_type``.
    """

    def __init__(self, db: Database, conf: cfg.ConfigOpts) -> None:
        self._db = db
        self._conf = conf

    def list(
        self,
        ctx: RequestContext,
        *,
        public: bool | None = None,
        detail: bool = True,
        **paging: Unpack[listing.Paging],
    ) -> rows.Page[rows.VolumeType]:
        """Return a page of the types that a caller may use; an administrator of all.

        :param public: for administrators: True: types that the own project may use, False: only private
            types, None: all.
        :param detail: accepted as in the other listings; there is only one view of types.
        :raises InvalidInput: a sort key or direction is unknown.
        :raises MarkerNotFound: the marker is no type that this caller can see.
        """
        del detail
        where = [*_visible(ctx)]
        if ctx.is_admin and public is not None:
            where = [_open_to(ctx.project_id)] if public else [VolumeType.is_public.is_(False)]
        with self._db.read() as session:
            found, total = queries.page(
                session,
                VolumeType,
                project_id=None,
                filters=paging.get("filters") or {},
                sort=paging.get("sort", ()),
                limit=paging.get("limit"),
                marker=paging.get("marker"),
                offset=paging.get("offset", 0),
                with_count=paging.get("with_count", False),
                where=where,
                reachable=_visible(ctx),
            )
            return rows.Page(rows.volume_types(session, found), total)

    def get(self, ctx: RequestContext, type_id: str) -> rows.VolumeType:
        """Return a type.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        """
        with self._db.read() as session:
            return _record(session, _find(session, ctx, type_id))

    def default(self, ctx: RequestContext) -> rows.VolumeType:
        """Return the type that the caller's new volumes get.

        :raises VolumeTypeNotFound: the configured one is not there.
        """
        with self._db.read() as session:
            found = default(session, self._conf, ctx.project_id)
            if found is None:
                raise VolumeTypeNotFound(self._conf.default_volume_type)
            return _record(session, found)

    def create(
        self,
        ctx: RequestContext,
        *,
        name: str,
        description: str | None = None,
        is_public: bool = True,
        extra_specs: Mapping[str, str] | None = None,
    ) -> rows.VolumeType:
        """Make a type.

        :raises InvalidInput: the name is empty.
        :raises Conflict: there is one of this name.
        """
        del ctx
        wanted = _checked_name(name)
        type_id = str(uuid.uuid4())

        def work(session: Session) -> rows.VolumeType:
            row = VolumeType(
                id=type_id,
                name=wanted,
                description=description,
                is_public=is_public,
                created_at=now(session),
                updated_at=None,
            )
            session.add(row)
            session.flush()
            session.add_all(
                VolumeTypeExtraSpec(volume_type_id=type_id, key=key, value=value)
                for key, value in (extra_specs or {}).items()
            )
            session.flush()
            return _record(session, row)

        def made(session: Session) -> rows.VolumeType | None:
            found = session.get(VolumeType, type_id)
            return None if found is None else _record(session, found)

        try:
            return self._db.run(work, made)
        except DBDuplicateEntry as error:
            raise Conflict(f"Volume Type {wanted} already exists.") from error

    def update(
        self,
        ctx: RequestContext,
        type_id: str,
        *,
        name: str | None = None,
        description: str | None = None,
        is_public: bool | None = None,
    ) -> rows.VolumeType:
        """Change the given values; volumes of the type get its new name.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        :raises InvalidInput: the name is empty, or the default type would be renamed or become private.
        :raises Conflict: another type has the name.
        """
        wanted = None if name is None else _checked_name(name)

        def work(session: Session) -> rows.VolumeType:
            row = _find(session, ctx, type_id, lock=True)
            if row.name == self._conf.default_volume_type and (
                wanted not in (None, row.name) or is_public is False
            ):
                raise InvalidInput("The default volume type keeps its name and is public.")
            if wanted is not None and wanted != row.name:
                session.execute(
                    update(Volume).where(_has_type(row.name)).values(volume_type=wanted),
                    execution_options={"synchronize_session": False},
                )
                quota.follow_type(session, row.name, wanted)
                row.name = wanted
            if description is not None:
                row.description = description
            if is_public is not None:
                row.is_public = is_public
            row.updated_at = now(session)
            session.flush()
            return _record(session, row)

        try:
            return self._db.run(work)
        except DBDuplicateEntry as error:
            raise Conflict(f"Volume Type {wanted} already exists.") from error

    def delete(self, ctx: RequestContext, type_id: str) -> None:
        """Delete a type that no volume has.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        :raises InvalidInput: it is in use, or a default.
        """

        def work(session: Session) -> None:
            row = _find(session, ctx, type_id, lock=True)
            if row.name == self._conf.default_volume_type or session.scalar(
                select(DefaultVolumeType.project_id)
                .where(DefaultVolumeType.volume_type_id == row.id)
                .limit(1)
            ):
                raise InvalidInput(
                    f"The volume type {row.name} is the default volume type and cannot be deleted."
                )
            used = select(Volume.id).where(_has_type(row.name), Volume.deleted.is_(False))
            if session.scalar(used.limit(1)) is not None:
                raise InvalidInput("Target volume type is still in use.")
            quota.follow_type(session, row.name, None)
            session.delete(row)

        self._db.run(work)

    def set_extra_specs(
        self, ctx: RequestContext, type_id: str, extra_specs: Mapping[str, str]
    ) -> Mapping[str, str]:
        """Add and overwrite keys; returns all of them.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> Mapping[str, str]:
            row = _find(session, ctx, type_id, lock=True)
            wanted = [
                {"volume_type_id": row.id, "key": key, "value": value} for key, value in extra_specs.items()
            ]
            locks.put(session, VolumeTypeExtraSpec, wanted)
            row.updated_at = now(session)
            session.flush()
            return _record(session, row).extra_specs

        return self._db.run(work)

    def delete_extra_spec(self, ctx: RequestContext, type_id: str, key: str) -> None:
        """Remove one key.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        :raises KeyNotFound: the type has no such key.
        """

        def work(session: Session) -> None:
            row = _find(session, ctx, type_id, lock=True)
            found = session.get(VolumeTypeExtraSpec, (row.id, key))
            if found is None:
                raise KeyNotFound(key)
            session.delete(found)

        self._db.run(work)

    def projects(self, ctx: RequestContext, type_id: str) -> Sequence[str]:
        """Return the projects that may use a private type.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        :raises AccessNotFound: it is public.
        """
        with self._db.read() as session:
            row = _find(session, ctx, type_id)
            if row.is_public:
                raise AccessNotFound(f"public volume type {row.id}")
            access = VolumeTypeProject
            return session.scalars(
                select(access.project_id).where(access.volume_type_id == row.id).order_by(access.project_id)
            ).all()

    def allow(self, ctx: RequestContext, type_id: str, project_id: str) -> None:
        """Let a project use a private type.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        :raises InvalidInput: it is public.
        :raises Conflict: the project has access already.
        """

        def work(session: Session) -> None:
            row = _private(session, ctx, type_id)
            session.add(VolumeTypeProject(volume_type_id=row.id, project_id=project_id))

        try:
            self._db.run(work)
        except DBDuplicateEntry as error:
            raise Conflict(
                f"Volume type access for {type_id} / {project_id} combination already exists."
            ) from error

    def refuse(self, ctx: RequestContext, type_id: str, project_id: str) -> None:
        """Remove a project's access to a private type; its volumes keep the type.

        :raises VolumeTypeNotFound: there is none, or not for this caller.
        :raises InvalidInput: it is public.
        :raises AccessNotFound: the project could not use it.
        """

        def work(session: Session) -> None:
            row = _private(session, ctx, type_id)
            found = session.get(VolumeTypeProject, (row.id, project_id))
            if found is None:
                raise AccessNotFound(f"{row.id} / {project_id} combination")
            session.delete(found)

        self._db.run(work)

    def project_defaults(self) -> Sequence[tuple[str, str]]:
        """Return ``(project, type's id)`` of every project with a default of its own."""
        with self._db.read() as session:
            own = DefaultVolumeType
            found = session.execute(select(own.project_id, own.volume_type_id).order_by(own.project_id))
            return [(project, type_id) for project, type_id in found]

    def project_default(self, project_id: str) -> str:
        """Return the id of a project's own default type.

        :raises DefaultTypeNotFound: it has none.
        """
        with self._db.read() as session:
            found = session.get(DefaultVolumeType, project_id)
            if found is None:
                raise DefaultTypeNotFound(project_id)
            return found.volume_type_id

    def set_project_default(self, ctx: RequestContext, project_id: str, wanted: str) -> str:
        """Choose the type of a project's new volumes; returns the type's id.

        :param wanted: the type's id or name.
        :raises VolumeTypeNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> str:
            row = session.scalar(select(VolumeType).where(VolumeType.name == chosen(session, ctx, wanted)))
            assert row is not None
            quota.lock_project(session, project_id)
            locks.put(session, DefaultVolumeType, [{"project_id": project_id, "volume_type_id": row.id}])
            return row.id

        return self._db.run(work)

    def unset_project_default(self, project_id: str) -> None:
        """Remove a project's own default type, if it has one; the installation's default holds again."""
        self._db.run(
            lambda session: session.execute(
                delete(DefaultVolumeType).where(DefaultVolumeType.project_id == project_id)
            )
        )


def _find(session: Session, ctx: RequestContext, type_id: str, *, lock: bool = False) -> VolumeType:
    if lock:
        locks.lock(session, VolumeType, VolumeType.id == type_id)
    row = session.scalar(select(VolumeType).where(VolumeType.id == type_id, *_visible(ctx)))
    if row is None:
        raise VolumeTypeNotFound(type_id)
    return row


def _has_type(name: str) -> ColumnElement[bool]:
    """The condition that a volume has a type; a foreign volume has one of its own catalogue."""
    return and_(Volume.volume_type == name, Volume.mirrored_at.is_(None))


def _private(session: Session, ctx: RequestContext, type_id: str) -> VolumeType:
    row = _find(session, ctx, type_id, lock=True)
    if row.is_public:
        raise InvalidInput("Type access modification is not applicable to public volume type.")
    return row


def _record(session: Session, row: VolumeType) -> rows.VolumeType:
    return rows.volume_types(session, [row])[0]


def _checked_name(name: str) -> str:
    wanted = name.strip()
    if not wanted:
        raise InvalidInput("Volume type name can not be empty.")
    return wanted
