"""``backup.import``: find the manifest that a record names, and prove that it is whole."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

from oslo_log import log

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError, InvalidName, NotFound
from backupfw.engine import verify
from backupfw.engine.cinder_format import names
from backupfw.engine.cinder_format.chain import Place
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestHead, read_head
from backupfw.engine.format.sealing import CLEAR
from backupfw.errors import Damaged, DataKeyMissing, InvalidInput, QuotaExceeded, UnsupportedFormat
from backupfw.manager import records, rows
from backupfw.manager.outcomes.importing import ImportPlan, check_claim
from backupfw.manager.rows import Task
from backupfw.manager.rules.found_manifests import ManifestFacts, check_names
from backupfw.manager.rules.volume_rules import may_be_id
from backupfw.worker import links
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.base import Handler, encryption, restored_volume

LOG = log.getLogger(__name__)

#: An import ends when it has found more damaged objects than this.
MOST_DAMAGED = 1000

_KEY_ID = re.compile("[0-9a-f]{32}")


class BackupImport(Handler):
    """Takes over a backup that a record describes, or says why not."""

    # They say what is wrong with the record, or with the data that it names.
    refusals = (InvalidInput, QuotaExceeded, Damaged, UnsupportedFormat, DataKeyMissing)

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        crash_points.reach("import.begun")
        plan = tools.backups.importing.start(task, tools.stores.wire_names)
        crash_points.reach("import.planned")
        parsed = keys.parse(plan.key)
        if parsed is not None and parsed.kind == "manifest":
            store, container = self._find(plan, plan.key)
            crash_points.reach("import.found")
            facts = self._facts(task, plan, store, container, control)
        else:
            _store, container = self._find(plan, names.metadata_key(plan.key))
            crash_points.reach("import.found")
            facts = self._link(task, plan, container, control)
        crash_points.reach("import.verified")
        tools.backups.importing.finish(task, facts)
        crash_points.reach("import.committed")

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.importing.fail(task, reason)

    def _find(self, plan: ImportPlan, key: str) -> tuple[str, Container]:
        """Return the one store that has the object that completes the backup.

        It is the store that the record names, if that has the object; else exactly one store must have it.
        """
        found: list[tuple[str, Container]] = []
        silent: ChunkStoreError | None = None
        for name in plan.stores:
            try:
                container = self._tools.stores.container(name, plan.container)
                container.get(key, 0, 1)
            except (NotFound, InvalidName):
                continue
            except ChunkStoreError as error:
                silent = error
                continue
            if name == plan.record.store:
                return name, container
            found.append((name, container))
        if silent is not None:
            # The store that does not answer may have it too.
            raise silent
        if not found:
            raise InvalidInput("No enabled store has the data that the backup record names.")
        if len(found) > 1:
            raise InvalidInput("More than one enabled store has the data that the backup record names.")
        return found[0]

    def _link(
        self, task: Task, plan: ImportPlan, container: Container, control: TaskControl
    ) -> ManifestFacts:
        """Read a backup of Cinder's format and all that it needs."""
        importing = self._tools.backups.importing

        def container_of(name: str) -> Container:
            return self._tools.stores.container(container.store.name, name)

        def find(backup_id: str) -> Place | None:
            known = importing.find_link(container.store.name, backup_id)
            return None if known is None else Place(container_of(known[0]), known[1])

        with closing(links.read_chain(Place(container, plan.key), find, container_of, control)) as chain:
            check_claim(task, plan.backup.project_id, links.owner(chain.head), chain.length)
            return links.facts(chain, task.payload["service"], plan.backup.project_id, control)

    def _facts(
        self, task: Task, plan: ImportPlan, store: str, container: Container, control: TaskControl
    ) -> ManifestFacts:
        find_key = self._tools.data_keys.finder(container, plan.key)
        head = read_head(container, plan.key, find_key)
        _check_encryption(plan.record, head)
        origin = head.origin
        check_claim(task, plan.backup.project_id, origin.project, head.geometry.length)
        check_names(origin.installation, origin.project, origin.volume, origin.backup)
        listed = self._tools.backups.damaged_objects.keys(
            store, plan.container, keys.volume_prefix_of(plan.key)
        )
        found = verify.look(plan.key, listed, container, control, _DamagedKeys(), find_key)
        if found.damaged:
            raise InvalidInput(f"{found.damaged} of the backup's objects are missing or damaged.")
        return manifest_facts(
            head,
            container,
            self._tools.stores.wire_names[store],
            found.object_count,
            found.stored_bytes,
            found.referenced_bytes,
            found.known_damaged,
            self._tools.data_keys.of_lineage(container, head),
        )


def manifest_facts(
    head: ManifestHead,
    container: Container,
    service: str,
    object_count: int,
    stored_bytes: int,
    referenced_bytes: int,
    damaged: frozenset[str] = frozenset(),
    data_keys: tuple[rows.DataKey, ...] = (),
) -> ManifestFacts:
    """Return what the database keeps of a manifest; the arguments are those of :class:`ManifestFacts`.

    :param container: where it is.
    :raises InvalidInput: its names do not fit into the database.
    """
    origin = head.origin
    check_names(origin.installation, origin.project, origin.volume, origin.backup)
    if head.mac_id is not None and not _KEY_ID.fullmatch(head.mac_id):
        # Without the key nothing else proves it.
        raise InvalidInput("The backup's data has the id of no key.")
    return ManifestFacts(
        store=container.store.name,
        service=service,
        container=container.name,
        key=head.key,
        installation_id=origin.installation,
        project_id=origin.project,
        volume_id=origin.volume,
        backup_id=origin.backup,
        epoch=origin.epoch,
        length=head.geometry.length,
        block_size=head.geometry.block_size,
        segment_size=head.geometry.segment_size,
        hash_mode=head.hash_mode,
        key_id=head.key_id,
        mac_id=head.mac_id,
        damaged=damaged,
        data_keys=data_keys,
        object_count=object_count,
        stored_bytes=stored_bytes,
        referenced_bytes=referenced_bytes,
        volume_key_id=_volume_key_id(head.record),
        volume_record=_volume_record(head.record),
    )


def unreadable_facts(origin: keys.Origin, container: Container, service: str) -> ManifestFacts:
    """Return what is known of a manifest that is damaged: what its key says.

    :raises InvalidInput: its names do not fit into the database.
    """
    check_names(origin.installation, origin.project, origin.volume, origin.backup)
    return ManifestFacts(
        store=container.store.name,
        service=service,
        container=container.name,
        key=keys.manifest_key(str(origin)),
        installation_id=origin.installation,
        project_id=origin.project,
        volume_id=origin.volume,
        backup_id=origin.backup,
        epoch=origin.epoch,
        length=0,
        block_size=0,
        segment_size=0,
        hash_mode=CLEAR.hash_mode,
        key_id=None,
        mac_id=None,
        object_count=0,
        stored_bytes=0,
        referenced_bytes=0,
    )


class _DamagedKeys:
    """Counts damaged objects, up to a bound: a hostile manifest can name any number of missing objects."""

    def __init__(self) -> None:
        self._left = MOST_DAMAGED

    def __call__(self, _key: str, _reason: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise InvalidInput(f"More than {MOST_DAMAGED} of the backup's objects are missing or damaged.")


def _check_encryption(record: records.Record, head: ManifestHead) -> None:
    """Make sure that the data is encrypted as it was when a record was made; older records do not say it.

    :raises InvalidInput: it is not.
    """
    if record.key_id is None or (record.key_id, record.mac_id) == (head.key_id, head.mac_id):
        return
    found = "not encrypted" if head.key_id is None else f"encrypted with data key {head.key_id}"
    raise InvalidInput(
        f"The backup record is of data that is encrypted with data key {record.key_id}; what the store has is"
        f" {found}. Somebody has replaced it."
    )


def _volume_key_id(record: Any) -> str | None:
    found = encryption(record)
    return found.key_id if found is not None and may_be_id(found.key_id) else None


def _volume_record(record: Any) -> dict[str, Any] | None:
    volume = restored_volume(record)
    if volume is None or volume.image_metadata is None:
        return None
    return records.volume_record(volume.volume_type, volume.bootable, volume.image_metadata)
