"""Making a manifest, for a backup or for the conversion of one: what the attempts of both record.

A manifest that is being written has a row in state ``writing``, which only the attempt that has the task
changes.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.session import now
from backupfw.errors import OutcomeUnknown, TaskCancelled, TaskLost
from backupfw.manager import rows
from backupfw.manager.lineage import manifests
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.base import Outcomes
from backupfw.manager.queue import tasks
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, project_keys

#: What the digests of blocks are: BLAKE3, with a secret key if the backup is encrypted.
HASH_MODE, KEYED_HASH_MODE = "blake3", "blake3-keyed"
#: Finished segments are read from the database in pages of this many.
_SEGMENTS = 1000


@dataclass(frozen=True, slots=True)
class BaseManifest:
    """The manifest whose data may be shared.

    :ivar id: its row's id.
    :ivar key: its key, in the same store and container as the new one.
    :ivar made_at: the moment whose data its backup has; None: it is not known.
    :ivar locked_until: everything that it names is locked at least until then, naive UTC; None: not known.
    """

    id: str
    key: str
    made_at: datetime | None = None
    locked_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where a data key belongs to: the backups of one volume in one container.

    :ivar held: whether the container holds something of this installation.
    """

    installation_id: str
    project_id: str
    volume_id: str
    store: str
    container: str
    held: bool


@dataclass(frozen=True, slots=True)
class KeyIds:
    """The ids of a data key, and of its key of the digests."""

    key_id: str
    mac_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MakingPlan:
    """The plan of one attempt to make a manifest.

    :ivar backup: the record, for the manifest's head.
    :ivar manifest_id: the row of the manifest that is being written.
    :ivar epoch: part of every key of this attempt; finished segments belong to one epoch.
    :ivar attempt: part of every key, too; the caller chooses the random half of the token.
    :ivar segment_size: bytes, as ``block_size``.
    :ivar key_id: the data key's id; None: the backup is not encrypted.
    :ivar source_identity: the source identity of this epoch's finished segments; None at first.
    :ivar base: the manifest whose objects can be shared; None: store everything again.
    :ivar announced: keys under which earlier attempts may have put this backup's manifest; settle each
        before anything else: commit it or give it up.
    :ivar locked_until: everything that was put for it is locked at least until then, naive UTC; None: not
        known.
    """

    backup: rows.Backup
    manifest_id: str
    installation_id: str
    store: str
    container: str
    epoch: int
    attempt: int
    block_size: int
    segment_size: int
    key_id: str | None
    source_identity: str | None
    base: BaseManifest | None
    announced: tuple[str, ...] = ()
    locked_until: datetime | None = None

    @property
    def trusts_base(self) -> bool:
        """Whether the source can be asked what is unchanged since the base."""
        return False


@dataclass(frozen=True, slots=True)
class CreateResult:
    """The result of a finished backup.

    :ivar key: the manifest's key.
    :ivar service: the store driver's wire name.
    :ivar host: the worker's host name.
    :ivar length: bytes of the source.
    :ivar object_count: objects this backup put, its manifest included.
    :ivar stored_bytes: their bytes.
    :ivar referenced_bytes: bytes of older objects that it uses.
    :ivar read_bytes: bytes read from the source; None: another attempt read it.
    :ivar base_lost: the base could not be read, so nothing is shared with it.
    :ivar trusting: it left out what the volume's storage said is unchanged.
    :ivar damaged: keys of objects on the list of damaged ones that it names.
    :ivar locked_until: everything that it names is locked at least until then, naive UTC; None: it is not.
    """

    key: str
    service: str
    host: str
    length: int
    object_count: int
    stored_bytes: int
    referenced_bytes: int
    read_bytes: int | None = None
    base_lost: bool = False
    trusting: bool = False
    damaged: frozenset[str] = frozenset()
    locked_until: datetime | None = None


class MakingTasks(Outcomes, abc.ABC):
    """Outcomes of tasks that make a manifest."""

    @abc.abstractmethod
    def to_encrypt(self, task: Task) -> KeyPlace | None:
        """Return where the data key belongs to that the first attempt of a backup needs; None: it needs none.

        A backup that has begun keeps what it has: its first attempt has decided.
        """

    @abc.abstractmethod
    def finish(self, task: Task, result: CreateResult) -> rows.Backup:
        """End the task: the manifest is live and the backup available.

        The manifest may be one that an earlier attempt announced.

        :raises TaskLost: another attempt owns the task, or the manifest was given up.
        """

    @abc.abstractmethod
    def _writing(self, session: Session, task: Task) -> tuple[models.Backup, models.Manifest]:
        """Return the task's backup, and the manifest that is being written, locked.

        :raises TaskLost: another attempt owns the task, or there is no such manifest.
        """

    def give_up_announced(self, task: Task, keys: Collection[str]) -> None:
        """Give up keys that an earlier attempt announced.

        :param keys: keys whose manifests are not in the store, or cannot be read there.
        :raises TaskLost: another attempt owns the task; nothing was given up.
        """

        def work(session: Session) -> None:
            _, manifest = self._writing(session, task)
            row = models.Manifest
            manifests.give_up(session, row.backup_id == manifest.backup_id, row.key.in_(keys))

        self._db.run(work)

    def give_up_manifest(self, task: Task, store: str, container: str, key: str) -> bool:
        """Give up the key that this attempt announced, unless it is committed or another attempt has the
        task.

        That attempt may be committing the manifest.

        :return: whether the object under the key can be deleted: see :func:`manifests.is_unneeded`.
        """
        digest = object_digest(store, container, key)

        def work(session: Session) -> bool:
            with contextlib.suppress(TaskLost, TaskCancelled):
                tasks.hold(session, task)
                manifests.give_up(session, models.Manifest.key_digest == digest)
            return manifests.is_unneeded(session, digest)

        return self._db.run(work)

    def is_unneeded(self, store: str, container: str, key: str) -> bool:
        """Return whether the object under a key that was announced can be deleted, as it is now."""
        digest = object_digest(store, container, key)
        with self._db.read() as session:
            return manifests.is_unneeded(session, digest)

    def finished_segments(self, manifest_id: str, epoch: int) -> Iterator[tuple[int, bytes]]:
        """Yield the finished segments of an epoch, ``(index, entry)`` by index, some at a time."""
        row = models.Segment
        last = -1
        while True:
            with self._db.read() as session:
                found = session.execute(
                    select(row.seg_index, row.entry)
                    .where(row.manifest_id == manifest_id, row.epoch == epoch, row.seg_index > last)
                    .order_by(row.seg_index)
                    .limit(_SEGMENTS)
                ).all()
            for index, entry in found:
                yield int(index), bytes(entry)
            if len(found) < _SEGMENTS:
                return
            last = found[-1][0]

    def record_segments(self, task: Task, entries: Sequence[tuple[int, bytes]]) -> None:
        """Record finished segments of the manifest's epoch; counts as progress of the attempt.

        An index that was recorded before is replaced.

        :raises TaskLost: another attempt owns the task; nothing was recorded.
        :raises OutcomeUnknown: another attempt owns the task, which was lost together with an answer.
        """
        if not entries:
            return

        def work(session: Session) -> None:
            tasks.hold(session, task, progressed=True)
            _, manifest = self._writing(session, task)
            row = models.Segment
            session.execute(
                delete(row).where(
                    row.manifest_id == manifest.id,
                    row.epoch == manifest.epoch,
                    row.seg_index.in_([index for index, _ in entries]),
                ),
                execution_options={"synchronize_session": False},
            )
            session.execute(
                insert(row),
                [
                    {
                        "manifest_id": manifest.id,
                        "epoch": manifest.epoch,
                        "seg_index": index,
                        "entry": entry,
                    }
                    for index, entry in entries
                ],
            )

        def unknown(session: Session) -> None:
            lost = tasks.lost(session, task)
            if isinstance(lost, TaskLost):
                # The journal cannot show what was committed: the other attempt may have ended and deleted it.
                raise OutcomeUnknown(str(lost))

        self._db.run(work, unknown)

    def announce_manifest(self, task: Task, key: str) -> None:
        """Announce a key: record that this attempt will put its manifest there.

        :raises TaskLost: another attempt owns the task; nothing was recorded.
        """

        def work(session: Session) -> None:
            _, manifest = self._writing(session, task)
            digest = object_digest(manifest.store, manifest.container, key)
            # A transaction whose answer was lost may have recorded it.
            if not manifests.is_announced(session, digest):
                manifests.announce(session, manifest, key, digest)

        self._db.run(work)

    def known_manifests(self, manifest_id: str) -> tuple[list[str], set[str]]:
        """Return the known keys of a manifest's volume, for the clean-up after its attempts.

        :return: keys of the live manifests that may name what they left, and of all that are known.
        """
        with self._db.read() as session:
            return manifests.keys_that_may_name(session, manifest_id), manifests.volume_keys(
                session, manifest_id
            )

    def _same_geometry(self, manifest: models.Manifest) -> bool:
        backup = self._conf.backup
        return (manifest.block_size, manifest.segment_size) == (backup.block_size, backup.segment_size)

    def _key_place(
        self, session: Session, backup: models.Backup, store: str | None, container: str | None
    ) -> KeyPlace:
        """Return where the data key belongs to of a backup in a container."""
        assert store is not None
        assert container is not None
        row = models.Manifest
        mine = installation_id(session)
        held = session.scalar(
            select(row.id)
            .where(
                row.installation_id == mine,
                row.store == store,
                row.container == container,
                row.key.is_not(None),
            )
            .limit(1)
        )
        return KeyPlace(mine, backup.project_id, backup.volume_id, store, container, held is not None)

    def _begin(
        self, session: Session, backup: models.Backup, manifest: models.Manifest, key: KeyIds | None
    ) -> None:
        """Choose what the first attempt chooses: geometry, hash mode, key and base.

        The base's row is updated before the child's is inserted or changed, so that of this transaction and a
        release of the base only one succeeds.
        """
        if key is not None:
            project_keys.require_usable(session, key.key_id)
        manifest.block_size = self._conf.backup.block_size
        manifest.segment_size = self._conf.backup.segment_size
        manifest.hash_mode = HASH_MODE if key is None else KEYED_HASH_MODE
        manifest.key_id = None if key is None else key.key_id
        manifest.mac_id = None if key is None else key.mac_id
        manifest.base_id = self._take_base(session, backup, manifest)

    def _commit(self, session: Session, manifest: models.Manifest, result: CreateResult) -> None:
        """Make the manifest live, and mark what it names of damaged objects.

        :raises TaskLost: its key was given up.
        """
        digest = object_digest(manifest.store, manifest.container, result.key)
        if not manifests.commit(session, manifest, result.key, digest, result.length):
            raise TaskLost(f"the manifest {result.key} was given up")
        manifest.updated_at = now(session)
        manifest.locked_until = result.locked_until
        session.flush()
        if result.base_lost:
            # It shares nothing with its base, so marks for the base's objects do not apply.
            damaged_objects.forget_marks(session, manifest.id)
        named = (object_digest(manifest.store, manifest.container, key) for key in result.damaged)
        damaged_objects.mark(session, manifest.id, named)
        session.execute(delete(models.Segment).where(models.Segment.manifest_id == manifest.id))

    def _take_base(self, session: Session, backup: models.Backup, child: models.Manifest) -> str | None:
        """Take the parent's manifest if the child can share with it, and return its id."""
        if backup.parent_id is None:
            return None
        parent = session.get(models.Backup, backup.parent_id)
        if parent is None or parent.deleted or parent.project_id != backup.project_id:
            return None
        base = backup_rows.manifest_of(session, parent)
        same = (
            "store",
            "container",
            "installation_id",
            "project_id",
            "volume_id",
            "block_size",
            "segment_size",
            "hash_mode",
            "mac_id",
        )
        if base is None or any(getattr(base, name) != getattr(child, name) for name in same):
            return None
        return base.id if manifests.take(session, base.id) else None

    def _bind(
        self,
        session: Session,
        backup: models.Backup,
        manifest: models.Manifest,
        source_identity: str,
        locked_until: datetime | None,
    ) -> None:
        """Record source identity and lock; a new epoch begins if the finished segments have another one.

        What earlier epochs put counts, too: a manifest of one of them may be committed later.
        """
        known: list[datetime | None] = [manifest.locked_until]
        if manifest.source_identity is None:
            known = [] if manifest.epoch == 1 else known
            manifest.source_identity = source_identity
        elif manifest.source_identity != source_identity:
            self._fresh_epoch(session, backup, manifest, source_identity)
        manifest.locked_until = manifests.earliest(*known, locked_until)

    def _fresh_epoch(
        self,
        session: Session,
        backup: models.Backup,
        manifest: models.Manifest,
        source_identity: str | None,
    ) -> None:
        session.execute(delete(models.Segment).where(models.Segment.manifest_id == manifest.id))
        manifest.epoch += 1
        manifest.source_identity = source_identity
        manifest.updated_at = now(session)
        if not self._same_geometry(manifest):
            old_base = manifest.base_id
            manifest.block_size = self._conf.backup.block_size
            manifest.segment_size = self._conf.backup.segment_size
            manifest.base_id = None
            session.flush()
            manifest.base_id = self._take_base(session, backup, manifest)
            session.flush()
            if manifest.base_id != old_base:
                backup_rows.let_go(session, old_base, backup.project_id, None)
        session.flush()


def base_of(session: Session, manifest: models.Manifest) -> BaseManifest | None:
    """Return the base of a manifest that is being written."""
    base = None if manifest.base_id is None else session.get(models.Manifest, manifest.base_id)
    if base is None or base.key is None:
        return None
    # What an import says of that moment is not known to be true.
    maker = None if base.detached else session.get(models.Backup, base.backup_id)
    made_at = None if maker is None else maker.data_timestamp
    return BaseManifest(base.id, base.key, made_at, base.locked_until)
