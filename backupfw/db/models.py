"""The tables.  ``docs/architecture.md`` describes them; ``migrations/`` creates them.

Ids are UUID texts, times naive UTC with microseconds.  Volumes, snapshots and backups are deleted softly:
their rows stay with ``deleted`` set, because an id that once existed must stay known (an import uses it
again, a listing has it as a marker).  A manifest's row stays after its objects, so that an import of a
deleted backup is refused, until ``manager/operators/purge.py`` finds that nothing needs it any more.

Text is compared byte for byte on every database (MariaDB: ``utf8mb4_bin``).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Text,
    false,
    true,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from backupfw.db.types import UtcDateTime

#: Options of every table; SQLite and PostgreSQL ignore them.
_TABLE = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}

#: Names of constraints, so that a migration can refer to them on any database.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}

#: A 64-bit number that the database generates.  SQLite generates numbers of this type only, which has 64 bits
#: there.
_Drawn = BigInteger().with_variant(Integer(), "sqlite")

#: Longest text of the API's fields, and of ``fail_reason``.
TEXT_LENGTH = 255


class Base(DeclarativeBase):
    """Base of all models."""

    metadata = MetaData(naming_convention=NAMING)
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        datetime: UtcDateTime(),
        dict[str, Any]: JSON(),
        str: String(TEXT_LENGTH),
        bytes: LargeBinary(),
    }


class Lockable:
    """A row that decisions depend on; a lock changes its ``touched`` (``db/locks.py``)."""

    touched: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class _Timestamps:
    """When the row was made and last changed."""

    created_at: Mapped[datetime]
    updated_at: Mapped[datetime | None]


class _SoftDelete(_Timestamps):
    """A row that stays, marked, when its resource is deleted."""

    deleted_at: Mapped[datetime | None]
    deleted: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())


class Installation(Lockable, Base):
    """The one row that names this database's installation: the first part of every object key.

    It is touched to find out whether the database accepts writes.
    """

    __tablename__ = "installation"
    __table_args__ = _TABLE

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    uuid: Mapped[str] = mapped_column(String(36))
    created_at: Mapped[datetime]


class Queue(Lockable, Base):
    """The one row that every claim of a task locks.

    ``queue_position``: that of the task claimed last; its column keeps its old name, ``turn``.
    """

    __tablename__ = "queue"
    __table_args__ = _TABLE

    id: Mapped[int] = mapped_column(SmallInteger, primary_key=True, autoincrement=False)
    queue_position: Mapped[int] = mapped_column("turn", BigInteger)


class Project(Lockable, Base):
    """The row that a quota check locks; inserted at the project's first use."""

    __tablename__ = "projects"
    __table_args__ = _TABLE

    id: Mapped[str] = mapped_column(primary_key=True)


class Quota(Base):
    """A project's own limit for one resource; -1 is no limit."""

    __tablename__ = "quotas"
    __table_args__ = _TABLE

    project_id: Mapped[str] = mapped_column(primary_key=True)
    resource: Mapped[str] = mapped_column(String(64), primary_key=True)
    hard_limit: Mapped[int]


class QuotaClass(Base):
    """A limit of a quota class (``default`` is the one in use) for one resource; -1 is no limit."""

    __tablename__ = "quota_class"
    __table_args__ = _TABLE

    class_name: Mapped[str] = mapped_column(primary_key=True)
    resource: Mapped[str] = mapped_column(String(64), primary_key=True)
    hard_limit: Mapped[int]


class Volume(Lockable, _SoftDelete, Base):
    """A volume of the catalogue.

    ``size`` is GiB, ``length`` bytes; the volume returns to ``previous_status`` when a backup
    of it ends; ``location`` is the provider's name of its place, ``storage_id`` of its storage (null
    if never recorded); ``changes_distrusted_at``: when its storage was found to say wrongly what is
    unchanged, null if never, or if it is trusted again; ``changes_trusted_at``: since when it is trusted
    again, so that no backup of before is compared by what the storage says, null if it was never
    distrusted; ``keeps_points``: its storage may keep something for the points of backups; ``backend`` is
    the name of its back end, ``host`` the host whose workers alone can open it, null if all that have the
    back end can; ``volume_type`` is the type's name, null if the volume was made before volumes had types;
    ``mirrored_at``: when a foreign catalogue described the volume last, null if the volume is ours;
    ``encryption_key_id``: with which key that catalogue encrypts it, null if it does not.
    """

    __tablename__ = "volumes"
    __table_args__ = (
        Index("ix_volumes_project_listing", "project_id", "deleted", "created_at", "id"),
        Index("ix_volumes_listing", "deleted", "created_at", "id"),
        Index("ix_volumes_host", "host"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str]
    user_id: Mapped[str | None]
    status: Mapped[str] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int]
    length: Mapped[int] = mapped_column(BigInteger)
    display_name: Mapped[str | None]
    display_description: Mapped[str | None]
    availability_zone: Mapped[str | None]
    volume_type: Mapped[str | None]
    snapshot_id: Mapped[str | None] = mapped_column(String(36))
    source_volid: Mapped[str | None] = mapped_column(String(36))
    bootable: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    location: Mapped[str | None] = mapped_column(Text)
    host: Mapped[str | None]
    backend: Mapped[str] = mapped_column(default="local", server_default="local")
    adopted: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    storage_id: Mapped[str | None]
    changes_distrusted_at: Mapped[datetime | None]
    changes_trusted_at: Mapped[datetime | None]
    mirrored_at: Mapped[datetime | None]
    encryption_key_id: Mapped[str | None] = mapped_column(String(36))
    keeps_points: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())


class VolumeMetadata(Base):
    """One key of a volume's metadata."""

    __tablename__ = "volume_metadata"
    __table_args__ = _TABLE

    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class VolumeImageMetadata(Base):
    """One key of the metadata of the image on a volume."""

    __tablename__ = "volume_image_metadata"
    __table_args__ = _TABLE

    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class VolumeType(Lockable, _Timestamps, Base):
    """A volume type.  Volumes have its name, so that placement rules and manifests can refer to it."""

    __tablename__ = "volume_types"
    __table_args__ = (Index("ix_volume_types_created_at", "created_at", "id"), _TABLE)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    description: Mapped[str | None]
    is_public: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())


class VolumeTypeExtraSpec(Base):
    """One key of a volume type's extra specs: data of clients, except for ``volume_backend_name``."""

    __tablename__ = "volume_type_extra_specs"
    __table_args__ = _TABLE

    volume_type_id: Mapped[str] = mapped_column(
        ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True
    )
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class VolumeTypeProject(Base):
    """A project that may use a private volume type."""

    __tablename__ = "volume_type_projects"
    __table_args__ = _TABLE

    volume_type_id: Mapped[str] = mapped_column(
        ForeignKey("volume_types.id", ondelete="CASCADE"), primary_key=True
    )
    project_id: Mapped[str] = mapped_column(primary_key=True)


class DefaultVolumeType(Base):
    """The type of a project's new volumes if the request names none."""

    __tablename__ = "default_volume_types"
    __table_args__ = (Index("ix_default_volume_types_volume_type_id", "volume_type_id"), _TABLE)

    project_id: Mapped[str] = mapped_column(primary_key=True)
    volume_type_id: Mapped[str] = mapped_column(ForeignKey("volume_types.id"))


class Transfer(Base):
    """A volume that its project offers; the row is deleted when the offer is accepted or withdrawn."""

    __tablename__ = "transfers"
    __table_args__ = (
        Index("ix_transfers_project_listing", "project_id", "created_at", "id"),
        Index("ix_transfers_created_at", "created_at", "id"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id"), unique=True)
    project_id: Mapped[str]
    display_name: Mapped[str | None]
    key_digest: Mapped[str] = mapped_column(String(64))
    no_snapshots: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    created_at: Mapped[datetime]


class Attachment(Base):
    """An attachment: a user of the volume."""

    __tablename__ = "attachments"
    __table_args__ = (Index("ix_attachments_volume_id", "volume_id"), _TABLE)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id", ondelete="CASCADE"))
    instance_uuid: Mapped[str | None] = mapped_column(String(36))
    host_name: Mapped[str | None]
    mountpoint: Mapped[str | None]
    attach_mode: Mapped[str | None] = mapped_column(String(36))
    attached_at: Mapped[datetime]


class Snapshot(Lockable, _SoftDelete, Base):
    """A snapshot of a volume; a ``temporary`` one belongs to a running backup and is hidden.

    ``mirrored_at`` as of a volume.
    """

    __tablename__ = "snapshots"
    __table_args__ = (
        Index("ix_snapshots_project_listing", "project_id", "deleted", "created_at", "id"),
        Index("ix_snapshots_listing", "deleted", "created_at", "id"),
        Index("ix_snapshots_volume_id", "volume_id"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    volume_id: Mapped[str] = mapped_column(ForeignKey("volumes.id"))
    project_id: Mapped[str]
    user_id: Mapped[str | None]
    status: Mapped[str] = mapped_column(String(64))
    previous_status: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int]
    length: Mapped[int] = mapped_column(BigInteger)
    display_name: Mapped[str | None]
    display_description: Mapped[str | None]
    location: Mapped[str | None] = mapped_column(Text)
    progress: Mapped[str | None] = mapped_column(String(16))
    temporary: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    mirrored_at: Mapped[datetime | None]


class SnapshotMetadata(Base):
    """One key of a snapshot's metadata."""

    __tablename__ = "snapshot_metadata"
    __table_args__ = _TABLE

    snapshot_id: Mapped[str] = mapped_column(ForeignKey("snapshots.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Backup(Lockable, _SoftDelete, Base):
    """A backup as users see it.

    The API shows ``parent_id``; the manifest's ``base_id`` says with which manifest it shares objects.
    ``completed``: it was available once (so it counts as a dependent of its parent).
    ``volume_id`` is no foreign key: an imported backup's volume may never have been here.
    ``volume_record`` has the properties of a new volume besides its data (``manager/records.py``), null
    if only the manifest has them.
    ``comparison``: how it found what changed, for people; ``read_bytes``: what its last attempt read from the
    volume; both null if not known.
    ``policy_id``: the backup policy whose run made it, and whose retention may delete it (unlike what users
    write into metadata, nobody can set it); no foreign key, because backups outlive their policy.
    ``verified_…``: what the last verification was (``full`` or ``quick``) and found (``ok`` or ``damaged``);
    ``fully_verified_at``: the time of the last full verification, with any result.
    ``restore_test…``: when it was last restored to nowhere, and whether that was ``ok`` or ``failed``;
    ``content_digest``: of its volume's content, as the first such restore found it.
    ``quiesced``: whether the volume was frozen when its point was taken; null: nobody asked for it, or nobody
    wrote to it; ``quiesce_reason``: why not, null if nothing is known.
    """

    __tablename__ = "backups"
    __table_args__ = (
        Index("ix_backups_project_listing", "project_id", "deleted", "created_at", "id"),
        Index("ix_backups_listing", "deleted", "created_at", "id"),
        Index("ix_backups_volume_id", "volume_id", "project_id"),
        Index("ix_backups_newest", "volume_id", "deleted", "status", "data_timestamp"),
        Index("ix_backups_parent_id", "parent_id"),
        Index("ix_backups_manifest_id", "manifest_id"),
        Index("ix_backups_temp_snapshot_id", "temp_snapshot_id"),
        Index("ix_backups_policy_id", "policy_id", "volume_id"),
        Index("ix_backups_restore_test", "restore_test_result", "deleted"),
        Index("ix_backups_status", "status", "deleted"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str | None]
    project_id: Mapped[str]
    volume_id: Mapped[str] = mapped_column(String(36))
    snapshot_id: Mapped[str | None] = mapped_column(String(36))
    host: Mapped[str | None]
    availability_zone: Mapped[str | None]
    container: Mapped[str | None]
    store: Mapped[str | None]
    service: Mapped[str | None]
    parent_id: Mapped[str | None] = mapped_column(String(36))
    is_incremental: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    completed: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    status: Mapped[str] = mapped_column(String(64))
    fail_reason: Mapped[str | None]
    size: Mapped[int] = mapped_column(Integer, default=0)
    length: Mapped[int | None] = mapped_column(BigInteger)
    display_name: Mapped[str | None]
    display_description: Mapped[str | None]
    service_metadata: Mapped[str | None] = mapped_column(String(1024))
    object_count: Mapped[int] = mapped_column(BigInteger, default=0)
    stored_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    referenced_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    progress_done: Mapped[int] = mapped_column(BigInteger, default=0)
    progress_total: Mapped[int] = mapped_column(BigInteger, default=0)
    temp_volume_id: Mapped[str | None] = mapped_column(String(36))
    temp_snapshot_id: Mapped[str | None] = mapped_column(String(36))
    restore_volume_id: Mapped[str | None] = mapped_column(String(36))
    encryption_key_id: Mapped[str | None] = mapped_column(String(36))
    data_timestamp: Mapped[datetime | None]
    volume_record: Mapped[dict[str, Any] | None]
    comparison: Mapped[str | None]
    read_bytes: Mapped[int | None] = mapped_column(BigInteger)
    verified_at: Mapped[datetime | None]
    verified_how: Mapped[str | None] = mapped_column(String(16))
    verified_result: Mapped[str | None] = mapped_column(String(16))
    fully_verified_at: Mapped[datetime | None]
    restore_tested_at: Mapped[datetime | None]
    restore_test_result: Mapped[str | None] = mapped_column(String(16))
    content_digest: Mapped[str | None] = mapped_column(String(64))
    quiesced: Mapped[bool | None]
    quiesce_reason: Mapped[str | None]
    manifest_id: Mapped[str | None] = mapped_column(ForeignKey("manifests.id"))
    policy_id: Mapped[str | None] = mapped_column(String(36))


class BackupCopy(Lockable, _Timestamps, Base):
    """A copy of a backup in another store than its own.

    ``manifest_id``: the row of the manifest there; null if the copy failed.
    """

    __tablename__ = "backup_copies"
    __table_args__ = (
        Index("ix_backup_copies_backup_id_store", "backup_id", "store", unique=True),
        Index("ix_backup_copies_manifest_id", "manifest_id"),
        Index("ix_backup_copies_status", "status"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    backup_id: Mapped[str] = mapped_column(ForeignKey("backups.id", ondelete="CASCADE"))
    store: Mapped[str]
    container: Mapped[str]
    status: Mapped[str] = mapped_column(String(64))
    fail_reason: Mapped[str | None]
    manifest_id: Mapped[str | None] = mapped_column(ForeignKey("manifests.id"))


class BackupPolicy(Lockable, _Timestamps, Base):
    """A backup policy: which volumes of a project are backed up, when, and how long the backups are kept.

    ``settings``: schedule, selection, retention and the rest, as the API shows them
    (``manager/policies/settings.py``).  ``next_run_at``: when the next runs are planned, null while the
    policy is paused; ``planned_at``: when that was computed: if it lies in the future, the clock went back,
    and it is computed again.  ``user_id`` made the policy, ``updated_by`` changed it last.  ``missed_runs``
    and ``failed_runs`` are totals: the runs themselves are deleted after a while.
    """

    __tablename__ = "backup_policies"
    __table_args__ = (
        Index("ix_backup_policies_project_listing", "project_id", "created_at", "id"),
        Index("ix_backup_policies_listing", "created_at", "id"),
        Index("ix_backup_policies_next_run_at", "next_run_at"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str]
    user_id: Mapped[str | None]
    updated_by: Mapped[str | None]
    display_name: Mapped[str | None]
    display_description: Mapped[str | None]
    enabled: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    settings: Mapped[dict[str, Any]]
    max_concurrent: Mapped[int | None]
    next_run_at: Mapped[datetime | None]
    planned_at: Mapped[datetime]
    missed_runs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    failed_runs: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


class PolicyRun(Lockable, Base):
    """A run of a backup policy for one volume at one scheduled time: one row, so one backup at most.

    ``begin_at``: when it may begin, or be tried again; ``begin_before`` and ``end_before``: the ends of its
    windows; ``taken_until``: until then the process that took it is beginning it.  ``backup_id`` is chosen
    before the backup is made, so whoever continues after a kill finds that backup.  ``tries``: how often it
    was begun and failed.  ``tidied``: what its end lets go was deleted.  ``quiesced``: as of its backup.
    """

    __tablename__ = "policy_runs"
    __table_args__ = (
        Index("ix_policy_runs_scheduled", "policy_id", "volume_id", "scheduled_at", unique=True),
        Index("ix_policy_runs_status", "status", "begin_at"),
        Index("ix_policy_runs_tidied", "tidied", "status"),
        Index("ix_policy_runs_listing", "policy_id", "created_at", "id"),
        Index("ix_policy_runs_created_at", "created_at"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    policy_id: Mapped[str] = mapped_column(ForeignKey("backup_policies.id", ondelete="CASCADE"))
    project_id: Mapped[str]
    volume_id: Mapped[str] = mapped_column(String(36))
    scheduled_at: Mapped[datetime]
    begin_at: Mapped[datetime]
    begin_before: Mapped[datetime]
    end_before: Mapped[datetime | None]
    status: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str | None]
    backup_id: Mapped[str | None] = mapped_column(String(36))
    tries: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    taken_until: Mapped[datetime | None]
    tidied: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    quiesced: Mapped[bool | None]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    created_at: Mapped[datetime]


class BackupMetadata(Base):
    """One key of a backup's metadata."""

    __tablename__ = "backup_metadata"
    __table_args__ = _TABLE

    backup_id: Mapped[str] = mapped_column(ForeignKey("backups.id", ondelete="CASCADE"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    value: Mapped[str] = mapped_column(Text)


class Manifest(Lockable, _Timestamps, Base):
    """A node of the lineage: one manifest in a store.

    ``key`` is null while the manifest is being written; ``key_digest`` (``digest.object_digest``) keeps
    (store, container, key) unique on databases that cannot index so long a text.
    ``base_id`` is an edge of the lineage tree and is rewritten when gone nodes are joined; a row with
    ``in_tree`` unset stays only so that its key stays known.  ``detached``: inserted by an import, its
    lineage is unknown.  A row in state ``announced`` is only a key, beside the row of the manifest that may
    be put there.  ``touched`` counts the children that were begun: the update for a child and
    a release of the same row exclude each other.  ``copied``: it is a copy of the manifest with this key in
    another store, so its key is known while it is being written, and objects below the prefixes of other
    backups were put for it; ``copy_step`` says how far the copy is (``lineage/manifests.py``).
    ``fully_verified_at``: when everything that it names was last read and verified, with any result.
    ``scrub_task_id``: the task that does that now; ``scrub_after``: the last one could not, and the next one
    is not before then.
    ``locked_until``: everything that it names, and itself, is locked in its store at least until then; while
    it is being written, everything that was put for it; null if that is not known.
    """

    __tablename__ = "manifests"
    __table_args__ = (
        Index("ix_manifests_volume_id_in_tree", "volume_id", "in_tree"),
        Index("ix_manifests_base_id", "base_id"),
        Index("ix_manifests_backup_id", "backup_id"),
        Index("ix_manifests_scrub_task_id", "scrub_task_id"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    store: Mapped[str]
    container: Mapped[str]
    key: Mapped[str | None] = mapped_column(String(1024))
    key_digest: Mapped[str | None] = mapped_column(String(64), unique=True)
    installation_id: Mapped[str] = mapped_column(String(36))
    project_id: Mapped[str]
    volume_id: Mapped[str] = mapped_column(String(36))
    backup_id: Mapped[str] = mapped_column(String(36))
    base_id: Mapped[str | None] = mapped_column(ForeignKey("manifests.id"))
    in_tree: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    detached: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    copied: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    copy_step: Mapped[str | None] = mapped_column(String(8))
    state: Mapped[str] = mapped_column(String(16))
    epoch: Mapped[int] = mapped_column(Integer, default=1)
    block_size: Mapped[int]
    segment_size: Mapped[int] = mapped_column(BigInteger)
    hash_mode: Mapped[str] = mapped_column(String(32))
    key_id: Mapped[str | None]
    mac_id: Mapped[str | None] = mapped_column(String(32))
    source_identity: Mapped[str | None] = mapped_column(Text)
    length: Mapped[int | None] = mapped_column(BigInteger)
    fully_verified_at: Mapped[datetime | None]
    scrub_task_id: Mapped[int | None] = mapped_column(BigInteger)
    scrub_after: Mapped[datetime | None]
    locked_until: Mapped[datetime | None]


class Segment(Base):
    """A finished segment of a manifest that is being written; deleted when it is committed."""

    __tablename__ = "segments"
    __table_args__ = _TABLE

    manifest_id: Mapped[str] = mapped_column(ForeignKey("manifests.id", ondelete="CASCADE"), primary_key=True)
    epoch: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seg_index: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    entry: Mapped[bytes]


class DamagedObject(Base):
    """An object that is missing or wrong; the next incremental backup stores its blocks again."""

    __tablename__ = "damaged_objects"
    __table_args__ = (Index("ix_damaged_objects_place", "store", "container"), _TABLE)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    store: Mapped[str]
    container: Mapped[str]
    key: Mapped[str] = mapped_column(String(1024))
    reason: Mapped[str]
    found_at: Mapped[datetime]


class DamageMark(Base):
    """A mark: a manifest names a damaged object, so every backup with this manifest is damaged."""

    __tablename__ = "damage_marks"
    __table_args__ = (Index("ix_damage_marks_digest", "digest"), _TABLE)

    manifest_id: Mapped[str] = mapped_column(ForeignKey("manifests.id", ondelete="CASCADE"), primary_key=True)
    digest: Mapped[str] = mapped_column(
        ForeignKey("damaged_objects.digest", ondelete="CASCADE"), primary_key=True
    )


class Sweep(Base):
    """A sweep deletes orphans of a volume in a container: until then no copy of the volume begins there.

    A sweep that ends deletes its row; one that died leaves it, and it runs out.
    """

    __tablename__ = "sweeps"
    __table_args__ = _TABLE

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    volume_id: Mapped[str] = mapped_column(String(36), primary_key=True)
    store: Mapped[str]
    container: Mapped[str]
    until: Mapped[datetime]


class ProjectKey(Lockable, Base):
    """A key of a project in the key store; never the key itself.

    ``state``: one key of a project is ``current``; ``retired`` ones still unwrap what they wrapped;
    ``destroying``: nothing may begin with it any more; ``destroyed``: the key store has confirmed it.
    """

    __tablename__ = "project_keys"
    __table_args__ = (Index("ix_project_keys_project_id", "project_id"), _TABLE)

    key_id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str]
    state: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]
    retired_at: Mapped[datetime | None]
    destroyed_at: Mapped[datetime | None]


class DataKey(Base):
    """A data key, wrapped by a project key; the same is in the store, beside the data."""

    __tablename__ = "data_keys"
    __table_args__ = (
        Index("ix_data_keys_volume_id", "volume_id"),
        Index("ix_data_keys_project_id_id", "project_id", "id"),
        Index("ix_data_keys_project_key_id", "project_key_id"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    mac_id: Mapped[str] = mapped_column(String(32))
    project_id: Mapped[str]
    volume_id: Mapped[str] = mapped_column(String(36))
    installation_id: Mapped[str] = mapped_column(String(36))
    store: Mapped[str]
    container: Mapped[str]
    algorithm: Mapped[str] = mapped_column(String(32))
    project_key_id: Mapped[str]
    wrapped: Mapped[bytes]
    created_at: Mapped[datetime]


class Task(Lockable, _Timestamps, Base):
    """One operation that is waiting or running.

    ``progressed``: the next attempt can continue from this one, so its loss does not count as a failure.
    ``zone``, ``store``, ``from_store``, ``volume_host``, ``backend``: its requirements; null for any.
    ``store_down``: it was given back because its store does not answer; ``locked``: because what it deletes
    is locked there until ``not_before``.
    ``queue_position``: the lowest runs first (``manager/queue/claims.py``); its column keeps its old name,
    ``turn``.  ``progress_…``: bytes, and bytes per second, as the running attempt last reported them
    (``manager/queue/progress.py``).
    """

    __tablename__ = "tasks"
    __table_args__ = (
        Index("ix_tasks_state", "state", "not_before"),
        Index("ix_tasks_queue", "state", "turn", "id"),
        Index("ix_tasks_project", "project_id", "turn"),
        Index("ix_tasks_resource_id", "resource_id"),
        Index("ix_tasks_source_id", "source_id"),
        {**_TABLE, "sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Drawn, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(36))
    source_id: Mapped[str | None] = mapped_column(String(36))
    project_id: Mapped[str]
    request_id: Mapped[str | None]
    payload: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))
    cancel: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    progressed: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    owner: Mapped[str | None]
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    failures: Mapped[int] = mapped_column(Integer, default=0)
    lease_until: Mapped[datetime | None]
    not_before: Mapped[datetime | None]
    checkpoint: Mapped[int] = mapped_column(BigInteger, default=0)
    fail_reason: Mapped[str | None]
    zone: Mapped[str | None]
    store: Mapped[str | None]
    from_store: Mapped[str | None]
    volume_host: Mapped[str | None]
    backend: Mapped[str | None]
    queue_position: Mapped[int] = mapped_column("turn", BigInteger, default=0, server_default="0")
    store_down: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    locked: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    progress_done: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    progress_total: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    progress_rate: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    progress_at: Mapped[datetime | None]


class OutboxEvent(Lockable, Base):
    """An event that is still to be sent (``manager/queue/outbox.py``); the table keeps its old name.

    ``way``: how it is sent: to the bus (null), or as an alert, e.g. by ``mail``.  ``taken_until``: until then
    the process that took it is sending it.
    """

    __tablename__ = "notices"
    __table_args__ = (Index("ix_notices_way_id", "way", "id"), {**_TABLE, "sqlite_autoincrement": True})

    id: Mapped[int] = mapped_column(_Drawn, primary_key=True, autoincrement=True)
    way: Mapped[str | None] = mapped_column(String(16))
    event: Mapped[str] = mapped_column(String(64))
    request_id: Mapped[str | None]
    payload: Mapped[dict[str, Any]]
    taken_until: Mapped[datetime | None]
    created_at: Mapped[datetime]


class Service(Lockable, Base):
    """The worker processes of a host.

    ``stores`` maps each store of one of them to its wire name, ``backends`` each volume back end to whether
    one of them can open volumes of other hosts, too (null: their release has no back ends, and
    ``every_volume`` says that of all volumes).  ``processes``: the abilities of each of them, and the time of
    its heartbeat.
    """

    __tablename__ = "services"
    __table_args__ = (Index("ix_services_host_binary", "host", "binary", unique=True), _TABLE)

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=True)
    host: Mapped[str]
    binary: Mapped[str] = mapped_column(String(64))
    availability_zone: Mapped[str | None]
    disabled: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    disabled_reason: Mapped[str | None]
    frozen: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    every_volume: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    stores: Mapped[dict[str, Any]]
    backends: Mapped[dict[str, Any] | None]
    processes: Mapped[dict[str, Any] | None]
    reported_at: Mapped[datetime]
    created_at: Mapped[datetime]


class ConsoleSession(Base):
    """Somebody who is logged in to the console; the browser has the secret, this row only its digest.

    ``sealed``: with what the caller has identified himself, encrypted with a key made of the secret;
    ``used_at``: about when the last page was asked for.
    """

    __tablename__ = "console_sessions"
    __table_args__ = (Index("ix_console_sessions_used_at", "used_at"), _TABLE)

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    sealed: Mapped[bytes]
    created_at: Mapped[datetime]
    used_at: Mapped[datetime]


class StoreUsage(Base):
    """What a project had in a store on a day; without a project: all of them.

    ``bytes`` and ``objects`` are about what is there: see ``manager/usecases/stores.py``.
    """

    __tablename__ = "store_usage"
    __table_args__ = (Index("ix_store_usage_day", "day"), _TABLE)

    store: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(primary_key=True)
    day: Mapped[str] = mapped_column(String(10), primary_key=True)
    backups: Mapped[int] = mapped_column(BigInteger)
    objects: Mapped[int] = mapped_column(BigInteger)
    bytes: Mapped[int] = mapped_column(BigInteger)
    recorded_at: Mapped[datetime]


class Message(Base):
    """A user message about an operation that failed after it was accepted."""

    __tablename__ = "messages"
    __table_args__ = (
        Index("ix_messages_project_listing", "project_id", "created_at", "id"),
        Index("ix_messages_created_at", "created_at", "id"),
        _TABLE,
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str]
    request_id: Mapped[str | None]
    resource_type: Mapped[str] = mapped_column(String(36))
    resource_uuid: Mapped[str] = mapped_column(String(36))
    action_id: Mapped[str] = mapped_column(String(10))
    detail_id: Mapped[str] = mapped_column(String(10))
    event_id: Mapped[str] = mapped_column(String(80))
    message_level: Mapped[str] = mapped_column(String(16))
    created_at: Mapped[datetime]


class Action(Base):
    """Something that somebody had done; ``resource_name`` is what it was called then.

    ``policy_id``: the backup policy that did it, in nobody's name.  ``volume_id``: of what it was done to; of
    a volume its own.
    """

    __tablename__ = "actions"
    __table_args__ = (
        Index("ix_actions_project", "project_id", "id"),
        Index("ix_actions_resource_id", "resource_id"),
        Index("ix_actions_volume_id", "volume_id"),
        Index("ix_actions_created_at", "created_at"),
        {**_TABLE, "sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(_Drawn, primary_key=True, autoincrement=True)
    kind: Mapped[str] = mapped_column(String(32))
    project_id: Mapped[str]
    user_id: Mapped[str | None]
    policy_id: Mapped[str | None] = mapped_column(String(36))
    resource_id: Mapped[str] = mapped_column(String(36))
    resource_name: Mapped[str | None]
    volume_id: Mapped[str | None] = mapped_column(String(36))
    detail: Mapped[str | None]
    request_id: Mapped[str | None]
    created_at: Mapped[datetime]
