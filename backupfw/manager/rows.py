"""What the manager returns: frozen records of rows, never ORM objects.

Fields have the names of the columns; ``metadata`` and counts are added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from functools import cache
from typing import Any, Generic, NamedTuple, TypeVar

from sqlalchemy import ColumnElement, Select, and_, bindparam, case, func, select
from sqlalchemy.orm import Session

from backupfw.db import models

Item = TypeVar("Item")
#: Runs a statement with values and returns the rows.
Fetch = Callable[[Select[Any], Mapping[str, Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a listing.

    :ivar items: the page, in order.
    :ivar total: how many there are without paging; None unless it was asked for.
    """

    items: Sequence[Item]
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup; ``num_dependent_backups`` counts the living backups made from it in its project."""

    id: str
    user_id: str | None
    project_id: str
    volume_id: str
    snapshot_id: str | None
    host: str | None
    availability_zone: str | None
    container: str | None
    store: str | None
    service: str | None
    parent_id: str | None
    is_incremental: bool
    completed: bool
    status: str
    fail_reason: str | None
    size: int
    length: int | None
    display_name: str | None
    display_description: str | None
    service_metadata: str | None
    object_count: int
    stored_bytes: int
    referenced_bytes: int
    progress_done: int
    progress_total: int
    temp_volume_id: str | None
    temp_snapshot_id: str | None
    restore_volume_id: str | None
    encryption_key_id: str | None
    data_timestamp: datetime | None
    volume_record: Mapping[str, Any] | None
    manifest_id: str | None
    created_at: datetime
    updated_at: datetime | None
    deleted_at: datetime | None
    deleted: bool
    num_dependent_backups: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)
    comparison: str | None = None
    read_bytes: int | None = None
    verified_at: datetime | None = None
    verified_how: str | None = None
    verified_result: str | None = None
    fully_verified_at: datetime | None = None
    restore_tested_at: datetime | None = None
    restore_test_result: str | None = None
    content_digest: str | None = None
    quiesced: bool | None = None
    quiesce_reason: str | None = None

    @property
    def has_dependent_backups(self) -> bool:
        """Whether a living backup of the same project was made from this one."""
        return self.num_dependent_backups > 0


@dataclass(frozen=True, slots=True)
class BackupCopy:
    """A copy of a backup in another store.

    :ivar status: ``copying``, ``available`` or ``error``, then with ``fail_reason``.
    :ivar manifest_id: the row of the manifest there; None if the copy failed.
    """

    id: str
    backup_id: str
    store: str
    container: str
    status: str
    fail_reason: str | None
    manifest_id: str | None
    created_at: datetime
    updated_at: datetime | None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the data of a backup is: the backup's own store, or one that has a copy.

    :ivar manifest_id: the row of the manifest there.
    :ivar locked_until: until when everything that it names is locked there at least, naive UTC.
    """

    manifest_id: str
    store: str
    container: str
    locked_until: datetime | None = None


class ListedBackup(NamedTuple):
    """What a listing shows of a backup.  A page makes a thousand of them; a tuple costs a fifth of a
    record."""

    id: str
    user_id: str | None
    project_id: str
    volume_id: str
    snapshot_id: str | None
    availability_zone: str | None
    container: str | None
    is_incremental: bool
    status: str
    fail_reason: str | None
    size: int
    display_name: str | None
    display_description: str | None
    object_count: int
    encryption_key_id: str | None
    data_timestamp: datetime | None
    created_at: datetime
    updated_at: datetime | None
    num_dependent_backups: int
    metadata: Mapping[str, str]

    @property
    def has_dependent_backups(self) -> bool:
        """Whether a living backup of the same project was made from this one."""
        return self.num_dependent_backups > 0


@dataclass(frozen=True, slots=True)
class Attachment:
    """An attachment: a user of a volume."""

    id: str
    volume_id: str
    instance_uuid: str | None
    host_name: str | None
    mountpoint: str | None
    attach_mode: str | None
    attached_at: datetime


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume of the catalogue.

    :ivar backend: the name of its back end.
    :ivar volume_type: the type's name; ``volume_type_id`` its id, None where there is no such type any more.
    :ivar image_metadata: what is known of the image that it holds.
    """

    id: str
    project_id: str
    user_id: str | None
    status: str
    previous_status: str | None
    size: int
    length: int
    display_name: str | None
    display_description: str | None
    availability_zone: str | None
    volume_type: str | None
    snapshot_id: str | None
    source_volid: str | None
    bootable: bool
    location: str | None
    host: str | None
    backend: str
    adopted: bool
    created_at: datetime
    updated_at: datetime | None
    deleted_at: datetime | None
    deleted: bool
    volume_type_id: str | None = None
    storage_id: str | None = None
    changes_distrusted_at: datetime | None = None
    changes_trusted_at: datetime | None = None
    mirrored_at: datetime | None = None
    encryption_key_id: str | None = None
    keeps_points: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    image_metadata: Mapping[str, str] = field(default_factory=dict)
    attachments: Sequence[Attachment] = ()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot of a volume."""

    id: str
    volume_id: str
    project_id: str
    user_id: str | None
    status: str
    previous_status: str | None
    size: int
    length: int
    display_name: str | None
    display_description: str | None
    location: str | None
    progress: str | None
    temporary: bool
    created_at: datetime
    updated_at: datetime | None
    deleted_at: datetime | None
    deleted: bool
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VolumeType:
    """A kind of volumes."""

    id: str
    name: str
    description: str | None
    is_public: bool
    created_at: datetime
    updated_at: datetime | None
    extra_specs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transfer:
    """A volume that ``project_id`` offers."""

    id: str
    volume_id: str
    project_id: str
    display_name: str | None
    no_snapshots: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class BackupPolicy:
    """A backup policy.

    :ivar settings: as the API shows them.
    :ivar next_run_at: None while it is paused.
    """

    id: str
    project_id: str
    user_id: str | None
    updated_by: str | None
    display_name: str | None
    display_description: str | None
    enabled: bool
    settings: Mapping[str, Any]
    max_concurrent: int | None
    next_run_at: datetime | None
    created_at: datetime
    updated_at: datetime | None


#: ``volume_id`` of an imported backup until its manifest is read, and of runs that search for volumes.
NO_VOLUME = "00000000-0000-0000-0000-000000000000"


@dataclass(frozen=True, slots=True)
class PolicyRun:
    """A run of a backup policy for one volume.

    :ivar volume_id: None: it searches the volumes of foreign catalogues.
    :ivar quiesced: whether the volume was frozen when the point of its backup was taken; None: nobody asked
        for it, or nobody wrote to it.
    """

    id: str
    policy_id: str
    project_id: str
    volume_id: str | None
    scheduled_at: datetime
    status: str
    reason: str | None
    backup_id: str | None
    quiesced: bool | None
    started_at: datetime | None
    ended_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Message:
    """A user message; shown until ``guaranteed_until``."""

    id: str
    project_id: str
    request_id: str | None
    resource_type: str
    resource_uuid: str
    event_id: str
    message_level: str
    created_at: datetime
    user_message: str
    guaranteed_until: datetime


@dataclass(frozen=True, slots=True)
class Action:
    """Something that somebody had done (:mod:`backupfw.manager.actions`).

    :ivar kind: what was done to what, e.g. ``backup.delete``.
    :ivar user_id: who, as the identity service names him.
    :ivar policy_id: the backup policy that did it; None: nobody's.
    :ivar resource_name: what the resource was called then.
    :ivar volume_id: the volume that the resource is, or is of; None: it is of none.
    :ivar created_at: naive UTC.
    """

    id: int
    kind: str
    project_id: str
    user_id: str | None
    policy_id: str | None
    resource_id: str
    resource_name: str | None
    volume_id: str | None
    detail: str | None
    request_id: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Task:
    """A claimed task, as it was when it was claimed.

    :ivar attempt: counts claims from 1; the fence of everything this attempt does.
    :ivar failures: attempts before this one that failed (or were lost) without progress.
    :ivar checkpoint: the point that an earlier attempt of a restore reached, in the engine's form.
    :ivar fail_reason: why the attempts before it failed, as far as they reported it.
    :ivar taken_over: another worker's lease ran out before this claim.
    :ivar cancel: it was cancelled: clean up and :meth:`~backupfw.manager.queue.tasks.Tasks.discard` it.
    """

    id: int
    kind: str
    resource_id: str
    source_id: str | None
    project_id: str
    request_id: str
    attempt: int
    failures: int = 0
    checkpoint: int = 0
    cancel: bool = False
    taken_over: bool = False
    payload: dict[str, Any] = field(default_factory=dict)
    fail_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ProjectKey:
    """A key of a project in the key store.

    :ivar state: ``current``, ``retired``, ``destroying`` or ``destroyed``.
    :ivar data_keys: how many data keys it wraps.
    :ivar backups: how many backups cannot be read without it.
    """

    key_id: str
    project_id: str
    state: str
    created_at: datetime
    retired_at: datetime | None
    destroyed_at: datetime | None
    data_keys: int = 0
    backups: int = 0


@dataclass(frozen=True, slots=True)
class DataKey:
    """A wrapped data key.

    :ivar id: 32 hexadecimal digits, drawn for the key that encrypts.
    :ivar mac_id: the same for the key that makes digests; several data keys may share it.
    :ivar algorithm: the name of the content's cipher.
    :ivar project_key_id: the project key that wraps it.
    :ivar created_at: None for a new one.
    """

    id: str
    mac_id: str
    project_id: str
    volume_id: str
    installation_id: str
    store: str
    container: str
    algorithm: str
    project_key_id: str
    wrapped: bytes = field(repr=False)
    created_at: datetime | None = None


def columns(row: models.Base, record: type) -> dict[str, Any]:
    """Return the values of ``row`` for those fields of ``record`` that are columns."""
    # The instance's own dict holds what is loaded: a listing reads tens of thousands of values.
    loaded = row.__dict__
    return {
        name: loaded[name] if name in loaded else getattr(row, name) for name in _shared(type(row), record)
    }


@cache
def _shared(model: type[models.Base], record: type) -> tuple[str, ...]:
    """The fields of ``record`` that are columns of ``model``."""
    names = {column.key for column in model.__mapper__.column_attrs}
    return tuple(item.name for item in fields(record) if item.name in names)


def metadata_of(session: Session, model: Any, ids: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the metadata of many owners by id; owners without any are missing.

    :param model: ``BackupMetadata`` or another table of pairs whose key begins with the owner's id.
    """
    found: dict[str, dict[str, str]] = {}
    session.flush()
    # all(): to fetch the rows one by one takes twice as long.
    for owner_id, key, value in session.connection().execute(_pairs(model), {"ids": list(ids)}).all():
        found.setdefault(owner_id, {})[key] = value
    return found


@cache
def _pairs(model: Any) -> Select[Any]:
    pairs = model.__table__
    owner = pairs.primary_key.columns[0]
    return (
        select(owner, pairs.c.key, pairs.c.value)
        # One parameter that is a list, so that the statement is compiled once for any number of ids.
        .where(owner.in_(bindparam("ids", expanding=True)))
        .order_by(pairs.c.key)
    )


def dependents_of(session: Session, ids: Iterable[str]) -> dict[tuple[str, str], int]:
    """Count the living, once available children of backups, by (parent id, project id)."""
    session.flush()
    found = session.connection().execute(_dependents(), {"ids": list(ids)})
    return {(parent, project): count for parent, project, count in found}


@cache
def _dependents() -> Select[Any]:
    backup = models.Backup.__table__.c
    return (
        select(backup.parent_id, backup.project_id, _living(backup))
        .where(backup.parent_id.in_(bindparam("ids", expanding=True)))
        .group_by(backup.parent_id, backup.project_id)
    )


def _living(child: Any, *more: ColumnElement[bool]) -> ColumnElement[int]:
    """Count the children that are not deleted and were once available, and that meet the conditions ``more``.

    The conditions stand in the count, not in the WHERE clause: there, a database without statistics might
    take the index of one of them and read all backups that are not deleted.
    """
    return func.count(case((and_(child.deleted.is_(False), child.completed.is_(True), *more), 1)))


@cache
def listed_columns() -> tuple[ColumnElement[Any], ...]:
    """Return what a listing selects of backups: the columns of :class:`ListedBackup`, in their order.

    They are columns of the table, not of the mapped class: plain tuples cost less without the mapping.
    """
    table = models.Backup.__table__
    return tuple(table.c[name] for name in ListedBackup._fields if name in table.c)


def listed_backups(session: Session, found: Sequence[Any], *, detail: bool) -> list[ListedBackup]:
    """Turn tuples of :func:`listed_columns` into records, with two queries for all of them.

    :param detail: whether metadata and dependents are wanted; without them there is no query.
    """
    ids = [row.id for row in found] if detail else []
    metadata = metadata_of(session, models.BackupMetadata, ids) if ids else {}
    dependents = dependents_of(session, ids) if ids else {}
    nothing: Mapping[str, str] = {}
    return [
        ListedBackup._make((*row, dependents.get((row.id, row.project_id), 0), metadata.get(row.id, nothing)))
        for row in found
    ]


def backup(session: Session, row: models.Backup) -> Backup:
    """Turn one row into a record."""
    metadata = metadata_of(session, models.BackupMetadata, [row.id]).get(row.id, {})
    dependents = dependents_of(session, [row.id]).get((row.id, row.project_id), 0)
    return Backup(**columns(row, Backup), metadata=metadata, num_dependent_backups=dependents)


@cache
def _backup_by_id() -> Select[Any]:
    """One statement for a backup, its metadata and its dependents: a row for each key, at least one."""
    backup, meta = models.Backup.__table__, models.BackupMetadata.__table__
    # Columns of the table, not of the mapped class: see listed_columns.
    shown = [backup.c[name] for name in _shared(models.Backup, Backup)]
    child = backup.alias()
    dependents = (
        select(_living(child.c, child.c.project_id == backup.c.project_id))
        .where(child.c.parent_id == backup.c.id)
        .scalar_subquery()
    )
    return (
        select(meta.c.key, meta.c.value, *shown, dependents)
        .select_from(backup.outerjoin(meta, meta.c.backup_id == backup.c.id))
        .where(backup.c.id == bindparam("backup_id"), backup.c.deleted.is_(False))
        .order_by(meta.c.key)
    )


def backup_by_id(fetch: Fetch, backup_id: str) -> Backup | None:
    """Read one living backup with a single statement; clients that wait ask for it every second.

    :param fetch: runs a statement: :meth:`Database.fetch`, or :func:`fetching` for a session's transaction.
    """
    found = fetch(_backup_by_id(), {"backup_id": backup_id})
    if not found:
        return None
    *values, dependents = found[0][2:]
    return Backup(
        **dict(zip(_shared(models.Backup, Backup), values, strict=True)),
        num_dependent_backups=dependents,
        metadata={row[0]: row[1] for row in found if row[0] is not None},
    )


def copies(session: Session, backup_id: str) -> list[BackupCopy]:
    """Return the copies of a backup, by store."""
    row = models.BackupCopy
    found = session.scalars(select(row).where(row.backup_id == backup_id).order_by(row.store))
    return [BackupCopy(**columns(one, BackupCopy)) for one in found]


def fetching(session: Session) -> Fetch:
    """Return what runs a statement in the session's transaction."""
    return lambda statement, values: session.connection().execute(statement, values).all()


def new_backup(row: models.Backup, metadata: Mapping[str, str]) -> Backup:
    """Turn the row of a backup just made into a record: nothing has been made from it yet."""
    return Backup(**columns(row, Backup), metadata=dict(metadata))


def volumes(session: Session, rows: Sequence[models.Volume]) -> list[Volume]:
    """Turn rows into records, with a few queries for all of them."""
    ids = [row.id for row in rows]
    metadata = metadata_of(session, models.VolumeMetadata, ids)
    image_metadata = metadata_of(session, models.VolumeImageMetadata, ids)
    kind = models.VolumeType
    names = {row.volume_type for row in rows} - {None}
    type_ids = {
        found.name: found.id
        for found in session.execute(select(kind.id, kind.name).where(kind.name.in_(names)))
    }
    attached: dict[str, list[Attachment]] = {}
    for entry in session.scalars(
        select(models.Attachment)
        .where(models.Attachment.volume_id.in_(ids))
        .order_by(models.Attachment.attached_at, models.Attachment.id)
    ):
        attached.setdefault(entry.volume_id, []).append(Attachment(**columns(entry, Attachment)))
    return [
        Volume(
            **columns(row, Volume),
            volume_type_id=type_ids.get(row.volume_type or ""),
            metadata=metadata.get(row.id, {}),
            image_metadata=image_metadata.get(row.id, {}),
            attachments=tuple(attached.get(row.id, ())),
        )
        for row in rows
    ]


def volume(session: Session, row: models.Volume) -> Volume:
    """Turn one row into a record."""
    return volumes(session, [row])[0]


def transfer(row: models.Transfer) -> Transfer:
    """Turn one row into a record."""
    return Transfer(**columns(row, Transfer))


def backup_policy(row: models.BackupPolicy) -> BackupPolicy:
    """Turn one row into a record."""
    found = BackupPolicy(**columns(row, BackupPolicy))
    # What a release before this one has not saved.
    how = {"quiesce": None, **found.settings["backup"]}
    return replace(found, settings={"copy_to": [], **found.settings, "backup": how})


def policy_run(row: models.PolicyRun) -> PolicyRun:
    """Turn one row into a record."""
    found = PolicyRun(**columns(row, PolicyRun))
    return replace(found, volume_id=None) if found.volume_id == NO_VOLUME else found


def volume_types(session: Session, rows: Sequence[models.VolumeType]) -> list[VolumeType]:
    """Turn rows into records, with one query for all of them."""
    specs = metadata_of(session, models.VolumeTypeExtraSpec, [row.id for row in rows])
    return [VolumeType(**columns(row, VolumeType), extra_specs=specs.get(row.id, {})) for row in rows]


def snapshots(session: Session, rows: Sequence[models.Snapshot]) -> list[Snapshot]:
    """Turn rows into records, with one query for all of them."""
    metadata = metadata_of(session, models.SnapshotMetadata, [row.id for row in rows])
    return [Snapshot(**columns(row, Snapshot), metadata=metadata.get(row.id, {})) for row in rows]


def snapshot(session: Session, row: models.Snapshot) -> Snapshot:
    """Turn one row into a record."""
    return snapshots(session, [row])[0]
