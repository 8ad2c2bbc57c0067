"""Reads stored objects; a missing or wrong object is always the same error: ``Damaged``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from oslo_log import log

from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import IntegrityError, NotFound, RangeError, Unavailable
from backupfw.engine.format.binary import BadBytes
from backupfw.errors import Damaged

LOG = log.getLogger(__name__)

T = TypeVar("T")


def damaged(container: Container, key: str, reason: str) -> Damaged:
    """Return the error that names the object by store, container and key."""
    return Damaged(container.store.name, container.name, key, reason)


def read(container: Container, key: str, offset: int | None = None, length: int | None = None) -> bytes:
    """Get an object, or a range of it, that must be there.

    Thread-safe.  A store that does not answer or denies access is no damage: its errors pass through.

    :raises Damaged: it is missing, too short, or the store itself finds it changed.
    """
    try:
        data = container.get(key, offset, length)
        if length is not None and len(data) != length:
            raise IntegrityError(f"{length} bytes were asked for, {len(data)} came")
    except NotFound as error:
        prove_container(container, key)
        raise damaged(container, key, "it is missing") from error
    except RangeError as error:
        raise damaged(container, key, "it is shorter than promised") from error
    except IntegrityError as error:
        raise damaged(container, key, f"the store's answer is not what was put: {error.reason}") from error
    return data


def read_checked(container: Container, key: str, offset: int, length: int, check: Callable[[bytes], T]) -> T:
    """Get a range and return what ``check`` makes of it; get it once more if it is found wrong.

    Drivers compare whole objects with the store's checksum, but a range has none.  So a bit that changed on
    the way is found here first.  Only an object that is wrong in the store is damaged, so two reads must find
    it wrong.

    :param check: raises BadBytes if the bytes are wrong.
    :raises BadBytes: they are, twice.
    :raises Damaged: as :func:`read` does.
    """
    try:
        return check(read(container, key, offset, length))
    except BadBytes as error:
        read_again(container, key, error)
        return check(read(container, key, offset, length))


def read_again(container: Container, key: str, error: BadBytes) -> None:
    """Tell the log that bytes of an object were found wrong and are read once more."""
    LOG.warning(
        "store %s, container %s, key %s: %s; reading it once more",
        container.store.name,
        container.name,
        key,
        error,
    )


def is_missing(container: Container, key: str) -> bool:
    """Say whether an object is not there.

    :raises Unavailable: the container is missing.
    :raises ChunkStoreError: the store did not answer.
    """
    try:
        container.get(key, 0, 1)
    except NotFound:
        prove_container(container, key)
        return True
    except RangeError:
        return False
    return False


def prove_container(container: Container, key: str) -> None:
    """Make sure that the container is there, before anything is concluded from an object's absence.

    A container that is missing with all its objects is a share that is not mounted, or a bucket under
    another account: the store is not what it should be, and its objects are not lost.

    :raises Unavailable: the container is missing.
    """
    try:
        next(iter(container.list(key)), None)
    except NotFound as error:
        raise Unavailable(
            "the container is missing", store=container.store.name, container=container.name
        ) from error
