"""Importing a backup that a record describes: where its data may be, and how the check ends.

A record is not trusted.  The stored data decides: length, volume, format and owner come from the manifest;
only harmless values come from the record (name, description, times, metadata).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oslo_db.exception import DBDuplicateEntry
from sqlalchemy.orm import Session

from backupfw import naming
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.session import now
from backupfw.errors import InvalidInput, TaskLost
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.lifecycle import BackupMoves
from backupfw.manager.messages import Detail
from backupfw.manager.outcomes import damaged_objects
from backupfw.manager.outcomes.base import Outcomes, backup_of
from backupfw.manager.queue import tasks
from backupfw.manager.records import Record, same_service
from backupfw.manager.rows import Task
from backupfw.manager.rules import backup_rows, failures, project_keys, quota
from backupfw.manager.rules.found_manifests import (
    MAX_LENGTH,
    ManifestFacts,
    columns,
    hold_manifest,
    refuse_the_dead,
)


@dataclass(frozen=True, slots=True)
class ImportPlan:
    """Where the data of an imported backup may be.

    :ivar stores: configured names of the stores to look in, the likeliest first; never empty.
    :ivar container: a container name that core allows (a store may still refuse it).
    :ivar key: an object key that core allows; the engine finds out whether a manifest is there.
    """

    backup: rows.Backup
    record: Record
    stores: tuple[str, ...]
    container: str
    key: str


class ImportTasks(Outcomes):
    """Outcomes of ``backup.import``."""

    def start(self, task: Task, wire_names: Mapping[str, str]) -> ImportPlan:
        """Begin an attempt.

        :param wire_names: the wire name of every store this worker has, by configured name.
        :raises InvalidInput: no store here is of the record's service, the record names no object, or
            the object is known as deleted.
        """

        def work(session: Session) -> ImportPlan:
            tasks.hold(session, task)
            backup = backup_of(session, task)
            record = backup_rows.record_from_json(task.payload["record"])
            service = task.payload["service"]
            stores = [name for name, wire in wire_names.items() if same_service(wire, service)]
            if not stores:
                raise InvalidInput("No enabled store is of the backup record's service.")
            # The record's hint only decides which store is tried first: the name can mean another store here.
            stores.sort(key=lambda name: name != record.store)
            container, key = _place(record)
            for store in stores:
                if len(stores) == 1:
                    refuse_the_dead(session, object_digest(store, container, key))
            return ImportPlan(
                backup=rows.backup(session, backup),
                record=record,
                stores=tuple(stores),
                container=container,
                key=key,
            )

        return self._db.run(work)

    def finish(self, task: Task, facts: ManifestFacts) -> rows.Backup:
        """End the task: the backup is available and points to the manifest.

        :raises InvalidInput: the manifest was deleted here, or belongs to another project and the importer is
            no administrator; the task does not end (:meth:`fail` ends it).
        :raises DataKeyMissing: the keys of its project are being destroyed.
        :raises QuotaExceeded: the data is larger than the record said, and the project has no room.
        """
        try:
            return self._db.run(lambda session: self._finish_import(session, task, facts))
        except DBDuplicateEntry:
            # Another import of the same manifest has inserted its row.
            return self._db.run(lambda session: self._finish_import(session, task, facts))

    def _finish_import(self, session: Session, task: Task, facts: ManifestFacts) -> rows.Backup:
        tasks.end(session, task)
        backup = backup_of(session, task)
        record = backup_rows.record_from_json(task.payload["record"])
        check_claim(task, backup.project_id, facts.project_id, facts.length)
        size = facts.size
        if size > backup.size:
            # The row is already counted with the record's size.
            quota.check(session, self._conf, backup.project_id, {"backup_gigabytes": size - backup.size})
        manifest_id = hold_manifest(session, facts)
        if facts.installation_id == installation_id(session):
            project_keys.record(session, facts.data_keys)
        named = (object_digest(facts.store, facts.container, key) for key in facts.damaged)
        damaged_objects.mark(session, manifest_id, named)
        moment = now(session)
        backup_rows.set_metadata(session, backup.id, record.metadata)
        moved = lifecycle.move(
            session,
            models.Backup,
            backup.id,
            BackupMoves.created,
            manifest_id=manifest_id,
            completed=True,
            fail_reason=None,
            verified_at=moment,
            verified_how=damaged_objects.QUICK,
            verified_result=damaged_objects.OK,
            fully_verified_at=None,
            **columns(backup.id, record, facts, moment, backup.created_at),
        )
        if not moved:
            raise TaskLost(f"backup {backup.id} is not being imported any more")
        return rows.backup(session, backup_of(session, task))

    def fail(self, task: Task, reason: str) -> None:
        """End the task: the backup is in ``error``; deleting it removes the record only."""

        def work(session: Session) -> None:
            tasks.end(session, task, "failed")
            failed(session, task, reason)

        self._db.run(work)

    def find_link(self, store: str, backup_id: str) -> tuple[str, str] | None:
        """Return container and key of a link of Cinder's format that is known, by its backup's id there."""
        with self._db.read() as session:
            found = manifests.find_link(session, store, backup_id)
            return None if found is None else (found.container, str(found.key))


def failed(session: Session, task: Task, reason: str, detail: Detail | None = None) -> None:
    """Refuse an import, in the transaction that ends its task."""
    # These names come from the record and are not checked.  They only help people who read the list.
    record = backup_rows.record_from_json(task.payload["record"])
    failures.failed(
        session,
        task,
        reason,
        detail,
        display_name=record.display_name,
        display_description=record.display_description,
        service=task.payload["service"],
    )


def check_claim(task: Task, importer: str, owner: str | None, length: int) -> None:
    """Check the head of a manifest; this can be done before the rest is read.

    :param importer: the project that imports; an administrator may import any project's.
    :param owner: the project whose data it is, as the manifest's key says; None: nothing says it.
    :param length: bytes of its volume.
    :raises InvalidInput: the import is refused.
    """
    if owner != importer and not task.payload["admin"]:
        raise InvalidInput("The backup's data belongs to another project.")
    if length > MAX_LENGTH:
        raise InvalidInput(f"The backup's volume would be longer than {MAX_LENGTH >> 40} TiB.")


def _place(record: Record) -> tuple[str, str]:
    """Return container and key a record names.

    :raises InvalidInput: it names none that could be ours.
    """
    # A container of Cinder's may be a path; ours is its first part, the others begin the key.
    container, *below = (record.container or "").split("/")
    key = "/".join([*below, record.service_metadata or ""])
    if not record.service_metadata or naming.container_problem(container) or naming.key_problem(key):
        raise InvalidInput("The backup record names no data that a store could have.")
    return container, key
