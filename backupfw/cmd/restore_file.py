"""``backupfw backup restore --to FILE``: a backup as an image, from the database and the store alone."""

from __future__ import annotations

import os
import secrets
import signal
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import select

from backupfw.db import models
from backupfw.errors import Damaged, InvalidBackup, InvalidInput, TargetError
from backupfw.volume.base import BlockTarget
from backupfw.volume.local import files
from backupfw.volume.local.descriptor import Descriptor
from backupfw.volume.local.image import new_image
from backupfw.volume.local.target import LocalTarget

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.catalogue import StoredManifest
    from backupfw.cmd.progress import Progress
    from backupfw.db.session import Database
    from backupfw.engine.ports import Control
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stored import Stored
    from backupfw.worker.stores import Stores

T = TypeVar("T")


def restore(
    conf: cfg.ConfigOpts,
    db: Database,
    backup_id: str,
    path: str,
    progress: Progress,
    *,
    overwrite: bool,
    disk_format: str = "raw",
) -> None:
    """Write a backup to a file, sparse and with its volume's length; no service need run.

    A qcow2 image has whole sectors, so it may be some bytes longer.

    The file stands under its name only when all of it is verified and durable.

    :param overwrite: replace a file that is there.
    :param disk_format: ``raw`` or ``qcow2``.
    :raises ConfigError: QEMU's programs or libnbd are needed for qcow2, and are not installed.
    :raises BackupNotFound: there is no such backup.
    :raises InvalidBackup: it has no data in a store, or was deleted meanwhile.
    :raises InvalidInput: the file must not be written.
    :raises Damaged: an object is missing or wrong; that is recorded, as a verification does it.
    :raises TargetError: the file could not be written.
    :raises ChunkStoreError: the store could not be read.
    :raises DataKeyMissing, KeyStoreError: it is encrypted, and its key cannot be found.
    """
    from backupfw.cmd import catalogue
    from backupfw.manager.usecases.keys import KeyManager
    from backupfw.worker.data_keys import DataKeys
    from backupfw.worker.stores import Stores

    final = _judged(conf, db, path, overwrite)
    manifest = catalogue.manifest_of(db, backup_id)
    data_keys = DataKeys.of(conf, KeyManager(db))
    stores = Stores(conf)
    try:
        with new_file(final, overwrite=overwrite) as fd:
            written = _write(conf, db, backup_id, manifest, stores, data_keys, fd, progress, disk_format)
    except TargetError as error:
        raise TargetError(f"{path} could not be written: {error.__cause__ or error}") from error
    finally:
        # So that the next message begins on a line of its own.
        progress.abandon()
        stores.close()
        data_keys.close()
    progress.finish(written)


def _write(
    conf: cfg.ConfigOpts,
    db: Database,
    backup_id: str,
    manifest: StoredManifest,
    stores: Stores,
    data_keys: DataKeys,
    fd: int,
    progress: Progress,
    disk_format: str,
) -> str:
    """Write all bytes; returns how many there are, for people."""
    from backupfw.amounts import human_size

    control = progress.control()

    def write(data: Stored) -> int:
        length, _record = data.describe()
        # It may have a part of it, from another store.
        os.ftruncate(fd, 0)
        target: BlockTarget
        if disk_format == "raw":
            os.ftruncate(fd, length)
            target = LocalTarget(Descriptor(os.dup(fd)), length, reads_zero=True, is_device=False)
        else:
            target = new_image(Descriptor(os.dup(fd)), disk_format, length)
        try:
            data.restore(target, control, streams=conf.backup.streams)
        finally:
            target.close()
        return length

    return human_size(read(conf, db, backup_id, manifest, stores, data_keys, control, write))


def read(
    conf: cfg.ConfigOpts,
    db: Database,
    backup_id: str,
    manifest: StoredManifest,
    stores: Stores,
    data_keys: DataKeys,
    control: Control,
    work: Callable[[Stored], T],
) -> T:
    """Do something that reads a backup, in the first of its places where that succeeds.

    :param work: is called for each place, and again when something was repaired there.
    :raises InvalidBackup: the backup was deleted meanwhile.
    :raises Damaged, ChunkStoreError, DataKeyMissing, KeyStoreError: as :func:`restore`.
    """
    from backupfw.cmd import catalogue
    from backupfw.manager.outcomes.backups import BackupTasks
    from backupfw.worker.copies import Copies, Opened

    places = catalogue.places_of(db, conf, backup_id)
    copies = Copies(BackupTasks(db, conf), stores, data_keys, manifest.key, places, conf.backup.streams)
    with Opened(stores, data_keys, manifest, control) as data:
        try:
            return copies.read(lambda place: work(data.at(place)), control)
        except Damaged as error:
            if not catalogue.is_live(db, manifest.id):
                raise InvalidBackup(f"backup {backup_id} was deleted meanwhile") from error
            raise


def _judged(conf: cfg.ConfigOpts, db: Database, path: str, overwrite: bool) -> str:
    """Return the absolute path of the file to write, links resolved.

    :raises InvalidInput: it is there and must not be replaced, or belongs to the service.
    """
    from backupfw.cmd.volume import own_files

    final = os.path.realpath(path)
    for own in map(os.path.realpath, own_files(conf)):
        if final == own or final.startswith(own.rstrip("/") + "/"):
            raise InvalidInput(f"{path} belongs to this service: it is among its own files.")
    row = models.Volume
    with db.read() as session:
        owner = session.scalar(select(row.id).where(row.location == final, row.deleted.is_(False)).limit(1))
    if owner is not None:
        raise InvalidInput(f"{path} is volume {owner}: restore to that volume instead.")
    try:
        found = os.stat(final)
    except FileNotFoundError:
        directory = os.path.dirname(final)
        if not os.path.isdir(directory):
            raise InvalidInput(f"{path} cannot be made: there is no directory {directory}.") from None
        return final
    if not overwrite:
        raise InvalidInput(f"{path} is there already; --overwrite replaces it.")
    if not stat.S_ISREG(found.st_mode):
        raise InvalidInput(
            f"{path} is no regular file. To write to a device, adopt it and restore to that volume."
        )
    return final


@contextmanager
def new_file(final: str, *, overwrite: bool = False) -> Iterator[int]:
    """Lend a new, empty file; when the block ends well it stands, durable, under its final name.

    Until then it lies beside it under a name of its own, and goes when the block fails, also by SIGTERM or
    SIGHUP.

    :raises InvalidInput: another file has the final name by then, and must not be replaced.
    """
    directory, name = os.path.split(final)
    part = os.path.join(directory, f"{name}.{secrets.token_hex(8)}.part")
    with _terminated_as_interrupted():
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            yield fd
            os.fsync(fd)
            if overwrite:
                os.replace(part, final)
            elif not files.publish(part, final):
                raise InvalidInput(f"{final} is there by now; it was left as it is.")
        finally:
            os.close(fd)
            files.unlink(part)
        files.sync_directory(directory)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM, and SIGHUP of a terminal that went, do what Ctrl-C does: nothing half written is left."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number, handler in before.items():
        # nohup lets a command go on when its terminal goes.
        if handler is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
