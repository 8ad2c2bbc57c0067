"""``backupfw cinder export``: backups as objects that Cinder's own backup service reads."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore.container import Container
from backupfw.cmd.progress import counted
from backupfw.engine import difference, restore
from backupfw.engine.cinder_format import removal
from backupfw.engine.cinder_format.writing import BLOCK_BYTES, CHUNK_BYTES, BlockHashes, LinkWriter
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.format.sealing import FindKey
from backupfw.engine.ports import Checkpoint, Control
from backupfw.errors import Damaged, EngineError, InvalidBackup
from backupfw.manager import records, rows
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.target import LocalTarget

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.catalogue import StoredManifest
    from backupfw.cmd.progress import Progress
    from backupfw.db.session import Database
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stores import Stores


def export(
    conf: cfg.ConfigOpts,
    db: Database,
    backup_ids: Sequence[str],
    to: str,
    container: str | None,
    *,
    compression: str,
    decrypt: bool,
    progress: Progress,
) -> list[dict[str, str]]:
    """Write backups in Cinder's format, each block verified on the way; return their export records.

    The first is a full one, each other one an incremental one upon the one before.  Each is read from the
    first of its places that has it whole, and what is damaged in one is repaired from another.  What was
    written is removed again if that fails.

    :param backup_ids: of one volume.
    :param to: the store; ``container`` is made if it is not there, None is the store's own.
    :param decrypt: write a backup that is encrypted as it is without.
    :raises BackupNotFound: there is no such backup.
    :raises InvalidBackup: it has no data in a store, or is encrypted, or has Cinder's format already.
    :raises Damaged: an object is missing or wrong.
    :raises ChunkStoreError: a store could not be read, or written.
    :raises DataKeyMissing, KeyStoreError: it is encrypted, and its key cannot be found.
    """
    from backupfw.cmd import catalogue
    from backupfw.conf.stores import default_container
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.manager.usecases.keys import KeyManager
    from backupfw.worker.copies import Copies
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stores import Stores

    chosen = []
    for backup_id in backup_ids:
        manifest = catalogue.manifest_of(db, backup_id)
        if manifest.links:
            raise InvalidBackup(
                f"Backup {backup_id} has Cinder's format already: its export record is enough."
            )
        if manifest.encrypted and not decrypt:
            raise InvalidBackup(
                f"Backup {backup_id} is encrypted, and Cinder's format has no encryption; --decrypt writes it"
                " as it is without."
            )
        with db.read() as session:
            backup = rows.backup_by_id(rows.fetching(session), backup_id)
            moment = db.now(session)
        assert backup is not None
        chosen.append((backup, manifest))
    control = progress.control()
    made: list[dict[str, str]] = []
    with (
        contextlib.closing(Stores(conf)) as stores,
        contextlib.closing(DataKeys.of(conf, KeyManager(db))) as data_keys,
        contextlib.ExitStack() as files,
    ):
        target = stores.container(to, container or default_container(conf, to))
        target.ensure()
        begun: list[str] = []
        parent: _Written | None = None
        try:
            for number, (backup, manifest) in enumerate(chosen):
                begun.append(f"volume_{backup.volume_id}_{moment:%Y%m%d%H%M%S}_backup_{backup.id}")
                write = partial(
                    _write_from, stores, data_keys, conf.backup.streams, control, target, begun[-1],
                    compression, backup, manifest, parent,
                )  # fmt: skip
                places = catalogue.places_of(db, conf, backup.id)
                copies = Copies(
                    BackupTasks(db, conf), stores, data_keys, manifest.key, places, conf.backup.streams
                )
                written = copies.read(write, control)
                files.callback(written.hashes.close)
                parent_id = None if parent is None else parent.backup_id
                exported = replace(
                    backup,
                    container=target.name,
                    service=stores.wire_names[to],
                    service_metadata=begun[-1],
                    object_count=written.objects,
                    store=None,
                    volume_record=None,
                    parent_id=parent_id,
                    is_incremental=parent_id is not None,
                    num_dependent_backups=int(number + 1 < len(chosen)),
                    snapshot_id=None,
                    data_timestamp=backup.data_timestamp or backup.created_at,
                )
                made.append({"backup_service": str(exported.service), "backup_url": records.encode(exported)})
                parent = written
        except BaseException:
            progress.abandon()
            for prefix in reversed(begun):
                _remove(target, prefix, control)
            raise
    progress.finish(counted(len(chosen), "backup"))
    return made


@dataclass(frozen=True, slots=True)
class _Written:
    """A link that was written.

    :ivar reader: of the manifest, in the place from which it was read.
    :ivar hashes: of its blocks.
    :ivar objects: how many objects of data it has.
    """

    backup_id: str
    reader: ManifestReader
    hashes: BlockHashes
    objects: int


def _write_from(
    stores: Stores,
    data_keys: DataKeys,
    streams: int,
    control: Control,
    target: Container,
    prefix: str,
    compression: str,
    backup: rows.Backup,
    manifest: StoredManifest,
    parent: _Written | None,
    place: rows.Place,
) -> _Written:
    """Write a link from one place of its backup; what was written is removed again if that fails.

    :param parent: the link upon which it is an increment; None: it is a full one.
    :raises EngineError: what is damaged is not of this place.
    """
    source = stores.container(place.store, place.container)
    # Written anew if another place is read, or this one was repaired.
    hashes = BlockHashes() if parent is None else parent.hashes.copy()
    parent_id = None if parent is None else parent.backup_id
    try:
        find_key = data_keys.finder(source, manifest.key)
        reader = ManifestReader(source, manifest.key, find_key, encrypted=manifest.encrypted)
        writer = LinkWriter(target, prefix, _head(backup), compression, hashes, parent_id)
        with contextlib.closing(writer):
            _write(reader, None if parent is None else parent.reader, find_key, writer, control, streams)
            writer.finish(reader.head.geometry.length, _volume_meta(backup, reader.head.record))
        return _Written(backup.id, reader, hashes, writer.object_count)
    except BaseException as error:
        hashes.close()
        _remove(target, prefix, control)
        if isinstance(error, Damaged) and (error.store, error.container) != (place.store, place.container):
            raise EngineError(str(error)) from error
        raise


def _write(
    reader: ManifestReader,
    parent: ManifestReader | None,
    find_key: FindKey,
    writer: LinkWriter,
    control: Control,
    streams: int,
) -> None:
    """Restore to a temporary file, and write each chunk that is whole; its space is given back then.

    Of an incremental backup only what its parent has otherwise is read.
    """
    geometry = reader.head.geometry
    length = geometry.length
    # Ranges that are to be written; those that are being restored are noted here by the restore, in order.
    waiting: deque[tuple[int, int]] = deque()

    def note() -> Iterator[tuple[int, int]]:
        for first, last in () if parent is None else _changed(parent, reader, control):
            waiting.append((first, last))
            while first < last:
                end = min(last, first - first % geometry.segment_size + geometry.segment_size)
                yield first, end
                first = end

    changed = note()

    with tempfile.TemporaryFile(prefix="backupfw-export-") as file:
        os.ftruncate(file.fileno(), length)
        # A file is new, so it reads as zeros; but what is given back is restored only once.
        target = LocalTarget(Descriptor(os.dup(file.fileno())), length, reads_zero=True, is_device=False)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, length)))
        done = 0

        def write(start: int, end: int) -> None:
            target.read_into(start, buffer[: end - start])
            writer.add(start, buffer[: end - start])
            target.zero(start, end - start)

        def take(checkpoint: int) -> None:
            nonlocal done
            position = min(checkpoint * geometry.segment_size, length)
            if position == length:
                # The last ones may be zeros, which nobody has to restore.
                for _ in changed:
                    pass
            while done < position and (position == length or done + CHUNK_BYTES <= position):
                control.check()
                end = min(done + CHUNK_BYTES, length)
                if parent is None:
                    write(done, end)
                while waiting and waiting[0][0] < end:
                    first, last = waiting.popleft()
                    write(first, min(last, end))
                    if last > end:
                        waiting.appendleft((end, last))
                done = end

        with contextlib.closing(target):
            restore.run(
                reader.key,
                reader.container,
                target,
                control,
                Checkpoint(0, take),
                streams=streams,
                find_key=find_key,
                encrypted=reader.head.seal is not None,
                only=None if parent is None else changed,
            )


def _changed(parent: ManifestReader, reader: ManifestReader, control: Control) -> Iterator[tuple[int, int]]:
    """Yield the ranges that differ, ascending, as whole blocks of Cinder's format: ours may be smaller."""
    length = reader.head.geometry.length
    ranges = difference.changed(parent, reader, control)
    if parent.head.geometry.length != length:
        # The last block may have become longer or shorter without another byte.
        ranges = chain(ranges, ((length - 1, length),))
    done = 0
    for first, last in ranges:
        first = max(done, first - first % BLOCK_BYTES)
        done = max(done, min(-(-last // BLOCK_BYTES) * BLOCK_BYTES, length))
        if first < done:
            yield first, done


def _remove(container: Container, prefix: str, control: Control) -> None:
    """Remove what an export that failed has written; a kill leaves it, without metadata."""
    from backupfw.chunkstore.errors import ChunkStoreError
    from backupfw.errors import TaskStopped

    with contextlib.suppress(ChunkStoreError, TaskStopped):
        removal.run(container, prefix, control)


def _head(backup: rows.Backup) -> dict[str, Any]:
    return {
        "backup_id": backup.id,
        "volume_id": backup.volume_id,
        "backup_name": backup.display_name,
        "backup_description": backup.display_description,
        "created_at": f"{backup.created_at.isoformat(' ')}+00:00",
    }


def _volume_meta(backup: rows.Backup, record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the description of the volume, as Cinder's driver of backup metadata writes it."""
    found = record.get("volume")
    volume: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    base = {
        "id": backup.volume_id,
        "project_id": backup.project_id,
        "user_id": backup.user_id,
        "size": backup.size,
        "display_name": volume.get("name"),
        "display_description": volume.get("description"),
        "bootable": volume.get("bootable") is True,
        "encryption_key_id": backup.encryption_key_id,
        # Types have other ids there; a type that is asked for decides about encryption only.
        "volume_type_id": None,
    }
    parts = {
        "volume-base-metadata": base,
        "volume-metadata": volume.get("metadata"),
        "volume-glance-metadata": volume.get("image_metadata"),
    }
    return {"version": 2, **{name: part for name, part in parts.items() if part}}
