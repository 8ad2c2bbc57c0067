"""Locks: everything that a manifest names is locked at least as long as the manifest itself.

Objects are locked when they are put.  What a new manifest shares with older ones is renewed, if its lock is
too short, before the manifest is put.  To know that without a request for each object, the database has a
date for each manifest: everything that it names is locked at least until then.  So an incremental backup
whose base has a date that is late enough renews nothing, and gets the same date; only one of many backups in
a row (``LockRule``) renews all that it shares, with a request for each object.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from datetime import datetime

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound
from backupfw.engine import objects
from backupfw.engine.format import keys
from backupfw.engine.format.manifest import ManifestReader
from backupfw.engine.ports import Control

#: Requests under way at once.
WORKERS = 8


@contextmanager
def renewing(container: Container, until: datetime, control: Control) -> Iterator[Callable[[str], None]]:
    """Yield a function that locks an object; when the block ends without an error, all are locked.

    :raises Damaged: one is missing.
    :raises ChunkStoreError: the store does not do it.
    :raises TaskStopped: the task must end.
    """
    with ThreadPoolExecutor(WORKERS, "lock") as pool:
        waiting: deque[Future[None]] = deque()

        def add(key: str) -> None:
            control.check()
            if len(waiting) >= 4 * WORKERS:
                waiting.popleft().result()
            waiting.append(pool.submit(copy_context().run, _lock, container, key, until))

        try:
            yield add
            while waiting:
                control.check()
                waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _lock(container: Container, key: str, until: datetime) -> None:
    try:
        container.lock(key, until)
    except NotFound as error:
        objects.prove_container(container, key)
        raise objects.damaged(container, key, "it is missing") from error


def data_keys(container: Container, volume_prefix: str) -> Iterator[str]:
    """Yield the keys of a volume's wrapped data keys: what is encrypted needs them as long as it lives."""
    listed = container.list(keys.data_keys_prefix(volume_prefix))
    return (one.key for one in listed if keys.is_data_key(one.key))


def renew(manifest_key: str, container: Container, until: datetime, control: Control) -> None:
    """Lock everything that a manifest in the store names, then the manifest.

    :raises Exception: as :func:`renewing`.
    """
    reader = ManifestReader(container, manifest_key)
    with renewing(container, until, control) as lock:
        for entry in reader.segments():
            for key in entry.object_keys():
                lock(key)
        if reader.head.key_id is not None:
            for key in data_keys(container, reader.volume_prefix):
                lock(key)
    _lock(container, manifest_key, until)
