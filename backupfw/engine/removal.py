"""The gate that every deletion passes, and the deletion itself.

:func:`spare` is the gate.  It takes out of the candidates every object that a manifest names.  The
manifests include each unknown manifest below the volume's prefix: if an operator restored an older copy of
the database, it does not know the backups that were made since, but the store has them.  All of these were
put before this process began; if listings lag, :func:`check_settled` raises until they show them.  Only
what came through the gate is :data:`Doomed`, and only that can be deleted here.  (Two deletions do not
pass: an attempt deletes objects whose keys it never recorded, and a manifest that it cannot commit.)

Objects are deleted in bulk, with a few requests at once.  No error is hidden.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import datetime
from itertools import islice
from typing import NewType

from oslo_log import log

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NotFound,
    locked_until,
)
from backupfw.engine import objects
from backupfw.engine.candidates import Candidate, Spool, subtract
from backupfw.engine.format.key_object import read_key
from backupfw.engine.format.manifest import read_head
from backupfw.engine.listing import manifest_keys
from backupfw.engine.ports import Control, KnownManifests
from backupfw.errors import Damaged, DataKeyMissing, ListingBehind, UnsupportedFormat

LOG = log.getLogger(__name__)

#: Requests under way at once.
WORKERS = 4
#: Seconds between two looks whether a task that waits must end.
_NAP = 0.5
#: Keys that may fail before the rest is not tried any more.
MAX_FAILED = 1000

#: Candidates that no manifest names; :func:`spare` makes them.
Doomed = NewType("Doomed", Spool)


def check_settled(container: Container) -> None:
    """Make sure that a listing shows everything that was put before this process began.

    Operators stop every process before they restore an older copy of the database, so no unknown manifest is
    younger than this process.

    :raises ListingBehind: it does not yet; the error says when it will.
    """
    left = _unsettled_seconds(container)
    if left > 0:
        raise ListingBehind(left)


def is_absent(container: Container, key: str) -> bool:
    """Say whether an object that a read did not find is not in the listing either.

    A read alone proves nothing: a server that asks its nearest copy only does not find what is elsewhere.

    :raises ListingBehind: a listing proves nothing yet.
    :raises Unavailable: the container is missing.
    :raises ChunkStoreError: the store did not answer.
    """
    check_settled(container)
    objects.prove_container(container, key)
    return all(info.key != key for info in container.list(key))


def is_proven(error: Damaged, container: Container) -> bool:
    """Say whether the object itself is damaged or missing, and not only what one answer said of it.

    An answer can be cut short on its way.  Bytes that came whole and are wrong were read twice: see
    :func:`objects.read_checked`.

    :raises Exception: as :func:`is_absent`, for an object that is said to be missing.
    """
    if isinstance(error.__cause__, NotFound):
        return is_absent(container, error.key)
    return not isinstance(error.__cause__, IntegrityError)


def settle(container: Container, control: Control) -> None:
    """Wait until :func:`check_settled` passes, in a process that has nothing else to do.

    :raises TaskStopped: the task must end.
    """
    while (left := _unsettled_seconds(container)) > 0:
        control.check()
        time.sleep(min(left, _NAP))


def _unsettled_seconds(container: Container) -> float:
    return container.settled_at - time.monotonic() if container.capabilities.listing_lag else 0.0


def unknown_manifests(
    volume_prefix: str, manifests: KnownManifests, container: Container, control: Control
) -> list[str]:
    """Find manifests that the database does not know.

    :param volume_prefix: the prefix of the volume whose objects are in question.
    :return: their keys, as far as the listing shows them.
    :raises ChunkStoreError: the listing failed: nothing may be deleted without it.
    """
    try:
        listed = manifest_keys(container, volume_prefix, control)
        return [key for key in listed if key not in manifests.keys and key not in manifests.asked]
    except NotFound:
        # Objects that are to go were seen in it: now it is away, and all that it holds with it.
        objects.prove_container(container, volume_prefix)
        raise


def spare(
    spool: Spool,
    asked: Collection[str],
    unknown: Collection[str],
    container: Container,
    control: Control,
    origins: set[str] | None = None,
) -> Doomed:
    """Take out every candidate that one of the manifests names, and the unknown manifests themselves.

    When this returns, all of them were read and verified to the end (see :func:`candidates.subtract`).

    :param spool: candidates in order; closed by this call, whatever happens.
    :param asked: keys of manifests that are known and have to be there.
    :param unknown: keys of all manifests of the volume that the database does not know.  One that went
        since it was listed, or goes while it is read, names nothing any more.
    :param origins: origins of all candidates, where known.
    :return: what is left, in order; the caller closes it.
    :raises Damaged: a manifest is damaged, or one of ``asked`` missing: what it names is not known.
    :raises UnsupportedFormat: a manifest is of a version not known here.
    :raises ChunkStoreError: the store did not answer.
    """
    left = subtract(spool, [*asked, *unknown], container, control, origins, may_go=unknown)
    if not unknown:
        return Doomed(left)
    # A manifest is named by nothing, and is itself a candidate where all of a prefix is.
    kept = frozenset(unknown)
    with left:
        result = Spool()
        result.extend(one for one in left if one.key not in kept)
    return Doomed(result)


def unneeded_data_keys(
    data_keys: Collection[str], mac_ids: Collection[str], unknown: Collection[str], container: Container
) -> set[str]:
    """Return those of a volume's wrapped data keys that no backup needs.

    Backups share with each other if their digests are made with the same key.  So a data key is needed as
    long as a manifest has the same key of the digests as it.

    :param data_keys: the objects' keys, listed before the database was read.
    :param mac_ids: ids of the keys of the digests that the database has for this volume.
    :param unknown: keys of all manifests of the volume that the database does not know.
    :raises Damaged: one of them is damaged.
    :raises UnsupportedFormat: one of them is of a version not known here.
    :raises ChunkStoreError: the store did not answer.
    """
    used: set[str | None] = set(mac_ids)
    for key in unknown if data_keys else ():
        try:
            used.add(read_head(container, key).mac_id)
        except Damaged:
            if not objects.is_missing(container, key):
                raise
    if not used - {None}:
        return set(data_keys)
    unneeded = set()
    for key in data_keys:
        # Of one that cannot be read it is not known who needs it.
        with suppress(Damaged, DataKeyMissing, UnsupportedFormat):
            if read_key(container, key).mac_id not in used:
                unneeded.add(key)
    return unneeded


def delete_all(
    doomed: Doomed,
    container: Container,
    control: Control,
    before: Callable[[], None] = lambda: None,
) -> None:
    """Delete the objects; what is missing already counts as deleted.

    One request takes as many keys as the store's capabilities say.  A key that cannot be deleted does
    not keep the others from being tried.

    :param doomed: the objects; progress is reported in their bytes.
    :param before: called right before each request, from any thread; what it raises ends the work.
    :raises DeleteFailed: some objects remain; all others are gone, unless very many failed.  Those that a
        lock keeps (:func:`~backupfw.chunkstore.errors.locked_until`) do not end it; the error names the first
        of them only.
    :raises ChunkStoreError: the store does not answer; some objects are gone.
    :raises TaskStopped: the task must end; some objects are gone.
    """
    failed: dict[str, ChunkStoreError] = {}
    done = other = remain = 0
    with ThreadPoolExecutor(WORKERS, "delete") as pool:
        waiting: deque[Future[dict[str, ChunkStoreError]]] = deque()

        def collect() -> None:
            nonlocal other, remain
            for key, error in waiting.popleft().result().items():
                remain += 1
                locked = locked_until(error) is not None
                other += not locked
                if not locked or len(failed) < MAX_FAILED:
                    failed[key] = error

        try:
            for batch in _batches(doomed, max(1, container.capabilities.bulk_delete)):
                control.check()
                if len(waiting) >= 2 * WORKERS:
                    collect()
                if other >= MAX_FAILED:
                    break
                waiting.append(
                    pool.submit(copy_context().run, _delete, container, [one.key for one in batch], before)
                )
                done += sum(one.size for one in batch)
                control.progress(done, doomed.size)
            while waiting:
                collect()
        finally:
            for future in waiting:
                future.cancel()
    if failed:
        raise DeleteFailed(failed, store=container.store.name, container=container.name, count=remain)


@contextmanager
def left_if_locked(container: Container, what: str, backup_id: str) -> Iterator[None]:
    """Leave to a later sweep what cannot be deleted in the block because of locks, and tell the log so.

    For objects that nothing needs and nobody waits for.

    :param what: what was put, for the log.
    """
    try:
        yield
    except ChunkStoreError as error:
        until = locked_until(error)
        if until is None:
            raise
        say_left(container, what, backup_id, until)


def say_left(container: Container, what: str, backup_id: str, until: datetime) -> None:
    """Tell the log what is left to a later sweep."""
    LOG.warning(
        "Store %s, container %s: %s of backup %s are locked until %s UTC; a sweep after that deletes them",
        container.store.name,
        container.name,
        what,
        backup_id,
        f"{until:%Y-%m-%d %H:%M}",
    )


def _batches(candidates: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    rest = iter(candidates)
    while batch := list(islice(rest, size)):
        yield batch


def _delete(container: Container, keys: list[str], before: Callable[[], None]) -> dict[str, ChunkStoreError]:
    before()
    try:
        container.delete(keys)
    except DeleteFailed as error:
        return error.errors
    crash_points.reach("delete.some-deleted")
    return {}
