"""Deleting many objects: in bulk, a few requests at once, and nothing swallowed."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from itertools import islice

from backupfw import steps
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import ChunkStoreError, DeleteFailed
from backupfw.engine.candidates import Candidate, Spool
from backupfw.engine.ports import Control

#: Requests under way at once.
WORKERS = 4
#: Keys that may fail before the rest is not tried any more.
MAX_FAILED = 1000


def delete_all(doomed: Spool, container: Container, control: Control) -> None:
    """Delete the objects; what is missing already counts as deleted.

    One request takes as many keys as the store's capabilities say.  A key that cannot be deleted does
    not keep the others from being tried.

    :param doomed: the objects; progress is told in their bytes.
    :raises DeleteFailed: some objects remain; all others are gone, unless very many failed.
    :raises ChunkStoreError: the store does not answer; some objects are gone.
    :raises TaskStopped: the task must end; some objects are gone.
    """
    failed: dict[str, ChunkStoreError] = {}
    done = 0
    with ThreadPoolExecutor(WORKERS, "delete") as pool:
        waiting: deque[Future[dict[str, ChunkStoreError]]] = deque()

        def collect() -> None:
            failed.update(waiting.popleft().result())

        try:
            for batch in _batches(doomed, max(1, container.capabilities.bulk_delete)):
                control.check()
                if len(waiting) >= 2 * WORKERS:
                    collect()
                if len(failed) >= MAX_FAILED:
                    break
                waiting.append(
                    pool.submit(copy_context().run, _delete, container, [one.key for one in batch])
                )
                done += sum(one.size for one in batch)
                control.progress(done, doomed.size)
            while waiting:
                collect()
        finally:
            for future in waiting:
                future.cancel()
    if failed:
        raise DeleteFailed(failed, store=container.store.name, container=container.name)


def _batches(candidates: Iterable[Candidate], size: int) -> Iterator[list[Candidate]]:
    rest = iter(candidates)
    while batch := list(islice(rest, size)):
        yield batch


def _delete(container: Container, keys: list[str]) -> dict[str, ChunkStoreError]:
    try:
        container.delete(keys)
    except DeleteFailed as error:
        return error.errors
    steps.reach("delete.some-deleted")
    return {}
