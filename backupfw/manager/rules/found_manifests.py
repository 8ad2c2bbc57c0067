"""Rows of backups whose manifest was found in a store: by an import, or by a recovery.

The texts come from records and manifests, which may be hostile; :mod:`backupfw.manager.records` checks them.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import String, select, update
from sqlalchemy.orm import Session

from backupfw import naming
from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.installation import installation_id
from backupfw.db.session import now
from backupfw.errors import InvalidInput
from backupfw.manager import rows
from backupfw.manager.lineage import lifecycle, manifests
from backupfw.manager.lineage.manifests import CINDER
from backupfw.manager.records import Record
from backupfw.manager.rules.volume_rules import size_of

#: Longest volume whose backup can be imported, bytes: four times the largest volume of usual block storage,
#: but short enough that a walk over its segments takes only minutes.
MAX_LENGTH = 1 << 50


@dataclass(frozen=True, slots=True)
class ManifestFacts:
    """The content of the verified manifest, and its place.

    :ivar store: the store it was found in, by configured name; ``service`` is its driver's wire name.
    :ivar installation_id: with ``project_id``, ``volume_id`` and ``backup_id`` its maker, as both its key
        and its head say.
    :ivar length: bytes of the volume.
    :ivar volume_key_id: id of the key with which a foreign catalogue encrypts the volume; None: it does not.
    :ivar volume_record: as ``records.volume_record`` makes it; None if the manifest has none.
    :ivar base: of Cinder's format: the link of the parent; None: it is a full backup, or of our format.
    :ivar damaged: keys of objects on the list of damaged ones that it names.
    :ivar data_keys: the data keys of its lineage; none if it is not encrypted.
    :ivar object_count: objects its maker put; with ``stored_bytes`` and ``referenced_bytes`` as in
        :class:`~backupfw.manager.outcomes.making.CreateResult`.
    """

    store: str
    service: str
    container: str
    key: str
    installation_id: str
    project_id: str
    volume_id: str
    backup_id: str
    epoch: int
    length: int
    block_size: int
    segment_size: int
    hash_mode: str
    key_id: str | None
    mac_id: str | None
    object_count: int
    stored_bytes: int
    referenced_bytes: int
    volume_key_id: str | None = None
    volume_record: dict[str, Any] | None = None
    damaged: frozenset[str] = frozenset()
    data_keys: tuple[rows.DataKey, ...] = ()
    base: ManifestFacts | None = None

    @property
    def is_link(self) -> bool:
        """Whether it is of Cinder's format."""
        return self.installation_id == CINDER

    @property
    def size(self) -> int:
        """GiB of the volume."""
        return max(1, size_of(self.length, self.volume_key_id))


def columns(
    backup_id: str, record: Record, facts: ManifestFacts, moment: datetime, created_at: datetime
) -> dict[str, Any]:
    """Return the columns of a backup that its record and its manifest decide.

    :param moment: now; what the record dates later is not believed.
    :param created_at: when the backup was made, if the record does not say it.
    """
    created_at = _past(record.created_at, moment) or created_at
    container, key, parent_id = facts.container, facts.key, record.parent_id
    if facts.is_link:
        # As Cinder spells the place, so that an export is what was imported.
        container, key = record.container or container, record.service_metadata or key
        parent_id = None if facts.base is None else facts.base.backup_id
    return {
        "volume_id": facts.volume_id,
        "snapshot_id": record.snapshot_id,
        "availability_zone": record.availability_zone,
        "store": facts.store,
        "container": container,
        "service": facts.service,
        "service_metadata": key,
        "parent_id": None if parent_id == backup_id else parent_id,
        "is_incremental": parent_id is not None,
        "size": facts.size,
        "length": facts.length,
        "display_name": record.display_name,
        "display_description": record.display_description,
        "object_count": facts.object_count,
        "stored_bytes": facts.stored_bytes,
        "referenced_bytes": facts.referenced_bytes,
        "encryption_key_id": facts.volume_key_id or record.encryption_key_id,
        "volume_record": facts.volume_record,
        "created_at": created_at,
        "data_timestamp": _past(record.data_timestamp, moment) or created_at,
    }


def add_manifest(
    session: Session,
    facts: ManifestFacts,
    own_id: str,
    *,
    base_id: str | None = None,
    detached: bool = True,
) -> str:
    """Insert the row of a live manifest that was found in a store; return its id.

    This installation only reads the manifest of another one, so that is in no lineage here.

    :param own_id: this installation's id.
    :param base_id: its neighbour in the lineage, or the link that it needs, which the caller has taken
        (:func:`manifests.take`).
    :param detached: its lineage is not known.
    """
    ours = facts.installation_id == own_id
    moment = now(session)
    manifest = models.Manifest(
        id=str(uuid.uuid4()),
        store=facts.store,
        container=facts.container,
        key=facts.key,
        key_digest=object_digest(facts.store, facts.container, facts.key),
        installation_id=facts.installation_id,
        project_id=facts.project_id,
        volume_id=facts.volume_id,
        backup_id=facts.backup_id,
        base_id=base_id if ours or facts.is_link else None,
        in_tree=ours,
        detached=ours and detached,
        state=lifecycle.LIVE,
        epoch=facts.epoch,
        block_size=facts.block_size,
        segment_size=facts.segment_size,
        hash_mode=facts.hash_mode,
        key_id=facts.key_id,
        mac_id=facts.mac_id,
        length=facts.length,
        touched=0,
        created_at=moment,
        updated_at=moment,
    )
    session.add(manifest)
    session.flush()
    return manifest.id


def hold_manifest(session: Session, facts: ManifestFacts) -> str:
    """Return the id of the manifest's row, taken for the backup that will use it in this transaction.

    If it needs other manifests, these are taken first.

    :raises InvalidInput: one of them was deleted, or never completed.
    """
    chain = [facts]
    while (base := chain[-1].base) is not None:
        chain.append(base)
    held: str | None = None
    for one in reversed(chain):
        held = _hold_one(session, one, held)
    assert held is not None
    return held


def _hold_one(session: Session, facts: ManifestFacts, base_id: str | None) -> str:
    """Return the id of one manifest's row, taken.

    A known manifest must be live; the row of an unknown one is inserted.  If it is of our own installation it
    is detached, because its lineage is not known.
    """
    row = models.Manifest
    digest = object_digest(facts.store, facts.container, facts.key)
    # This update comes before or after a release of the manifest, or the deletion of a foreign one's row:
    # never at the same time.
    session.execute(
        update(row)
        .where(row.key_digest == digest, row.state == lifecycle.LIVE)
        .values(touched=row.touched + 1),
        execution_options={"synchronize_session": False},
    )
    known = session.scalar(
        select(row).where(row.key_digest == digest).execution_options(populate_existing=True)
    )
    refuse_the_dead(session, digest)
    if known is not None and known.state == lifecycle.LIVE:
        return known.id
    manifests.forget_announced(session, digest)
    return add_manifest(session, facts, installation_id(session), base_id=base_id)


def refuse_the_dead(session: Session, digest: str) -> None:
    """Refuse a known manifest that is not live.

    :raises InvalidInput: it was released, an attempt gave it up, or its backup is being made.
    """
    if manifests.is_given_up(session, digest):
        raise InvalidInput("The backup's data was never completed.")
    row = models.Manifest
    state, backup_id = session.execute(
        select(row.state, row.backup_id).where(row.key_digest == digest)
    ).one_or_none() or (None, None)
    if state == lifecycle.ANNOUNCED:
        making = select(row.id).where(row.backup_id == backup_id, row.state == lifecycle.WRITING)
        if session.scalar(making) is not None:
            raise InvalidInput("The backup is being made.")
    elif state not in (None, lifecycle.LIVE):
        raise InvalidInput("The backup's data was deleted.")


def check_names(installation: str, project: str, volume: str, backup: str) -> None:
    """Check that a manifest's names fit into the database: names from stored bytes can be any texts.

    :raises InvalidInput: one is longer than the names of this service, or has characters that databases
        refuse.
    """
    if installation == CINDER:
        raise InvalidInput("The backup's data has names that no installation gives.")
    row = models.Manifest.__table__.c
    for name, column in (
        (installation, row.installation_id),
        (project, row.project_id),
        (volume, row.volume_id),
        (backup, row.backup_id),
    ):
        assert isinstance(column.type, String)
        if len(name) > (column.type.length or 0) or naming.text_problem(name) is not None:
            raise InvalidInput("The backup's data has names that this service gives none.")


def _past(moment: datetime | None, present: datetime) -> datetime | None:
    """Return a time from a record, or None if it is in the future."""
    return None if moment is None or moment > present else moment
