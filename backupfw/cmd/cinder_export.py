"""``backupfw cinder export``: a backup as objects that Cinder's own backup service reads."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore.container import Container
from backupfw.engine.cinder_format import removal
from backupfw.engine.cinder_format.writing import CHUNK_BYTES, LinkWriter
from backupfw.engine.ports import Checkpoint, Control
from backupfw.errors import InvalidBackup
from backupfw.manager import records, rows
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.target import LocalTarget
from backupfw.worker import stored

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.progress import Progress
    from backupfw.db.session import Database


def export(
    conf: cfg.ConfigOpts,
    db: Database,
    backup_id: str,
    to: str,
    container: str | None,
    *,
    compression: str,
    decrypt: bool,
    progress: Progress,
) -> dict[str, str]:
    """Write a backup in Cinder's format, whole and verified on the way; return its export record.

    What was written is removed again if that fails.

    :param to: the store; ``container`` is made if it is not there, None is the store's own.
    :param decrypt: write a backup that is encrypted as it is without.
    :raises BackupNotFound: there is no such backup.
    :raises InvalidBackup: it has no data in a store, or is encrypted, or has Cinder's format already.
    :raises Damaged: an object is missing or wrong.
    :raises ChunkStoreError: a store could not be read, or written.
    :raises DataKeyMissing, KeyStoreError: it is encrypted, and its key cannot be found.
    """
    from backupfw.amounts import human_size
    from backupfw.cmd import catalogue
    from backupfw.conf.stores import default_container
    from backupfw.manager.usecases.keys import KeyManager
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stores import Stores

    manifest = catalogue.manifest_of(db, backup_id)
    if manifest.links:
        raise InvalidBackup(f"Backup {backup_id} has Cinder's format already: its export record is enough.")
    if manifest.encrypted and not decrypt:
        raise InvalidBackup(
            f"Backup {backup_id} is encrypted, and Cinder's format has no encryption; --decrypt writes it as"
            " it is without."
        )
    with db.read() as session:
        backup = rows.backup_by_id(rows.fetching(session), backup_id)
        moment = db.now(session)
    assert backup is not None
    control = progress.control()
    with (
        contextlib.closing(Stores(conf)) as stores,
        contextlib.closing(DataKeys.of(conf, KeyManager(db))) as data_keys,
        stored.opened(stores, data_keys, manifest, control) as data,
    ):
        target = stores.container(to, container or default_container(conf, to))
        prefix = f"volume_{backup.volume_id}_{moment:%Y%m%d%H%M%S}_backup_{backup.id}"
        length, record = data.describe()
        target.ensure()
        writer = LinkWriter(target, prefix, _head(backup), compression)
        try:
            with contextlib.closing(writer):
                _write(data, length, writer, control, conf.backup.streams)
                writer.finish(None, _volume_meta(backup, record))
        except BaseException:
            progress.abandon()
            _remove(target, prefix, control)
            raise
        progress.finish(human_size(length))
        exported = replace(
            backup,
            container=target.name,
            service=stores.wire_names[to],
            service_metadata=prefix,
            object_count=writer.object_count,
            store=None,
            volume_record=None,
            parent_id=None,
            is_incremental=False,
            num_dependent_backups=0,
            snapshot_id=None,
            data_timestamp=backup.data_timestamp or backup.created_at,
        )
    return {"backup_service": str(exported.service), "backup_url": records.encode(exported)}


def _write(data: stored.Stored, length: int, writer: LinkWriter, control: Control, streams: int) -> None:
    """Restore to a temporary file, and write each chunk that is whole; its space is given back then."""
    with tempfile.TemporaryFile(prefix="backupfw-export-") as file:
        os.ftruncate(file.fileno(), length)
        # A file is new, so it reads as zeros; but what is given back is restored only once.
        target = LocalTarget(Descriptor(os.dup(file.fileno())), length, reads_zero=True, is_device=False)
        buffer = memoryview(bytearray(min(CHUNK_BYTES, length)))
        done = 0

        def take(checkpoint: int) -> None:
            nonlocal done
            position = min(data.position(checkpoint), length)
            while done < position and (position == length or done + CHUNK_BYTES <= position):
                control.check()
                size = min(CHUNK_BYTES, length - done)
                target.read_into(done, buffer[:size])
                writer.add(buffer[:size])
                target.zero(done, size)
                done += size

        with contextlib.closing(target):
            data.restore(target, control, Checkpoint(0, take), streams=streams)


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
