"""What the file system's errors mean: the one translation, as one table.

========================================================  ================  =========
errno                                                     error             temporary
========================================================  ================  =========
ENOENT                                                    NotFound          no
ENOSPC EDQUOT EFBIG                                       NoSpace           no
EACCES EPERM EROFS                                        PermissionDenied  no
ENAMETOOLONG EILSEQ                                       InvalidName       no
ENOTDIR ELOOP EISDIR where an object is read              IntegrityError    no
ESTALE EIO ETIMEDOUT EAGAIN EBUSY EINTR ENOMEM ENOBUFS    Unavailable       yes
EMFILE ENFILE ENOTCONN ECONNRESET ECONNREFUSED            Unavailable       yes
EHOSTDOWN EHOSTUNREACH ENETDOWN ENETUNREACH EREMOTEIO     Unavailable       yes
ESHUTDOWN ENOLCK                                          Unavailable       yes
anything else                                             ChunkStoreError   no
========================================================  ================  =========
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from backupfw.chunkstore.errors import (
    ChunkStoreError,
    IntegrityError,
    InvalidName,
    NoSpace,
    NotFound,
    PermissionDenied,
    Unavailable,
)

_KINDS: dict[int, type[ChunkStoreError]] = {
    errno.ENOENT: NotFound,
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), NoSpace),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), PermissionDenied),
    **dict.fromkeys((errno.ENAMETOOLONG, errno.EILSEQ), InvalidName),
    **dict.fromkeys(
        (
            errno.ESTALE,
            errno.EIO,
            errno.ETIMEDOUT,
            errno.EAGAIN,
            errno.EBUSY,
            errno.EINTR,
            errno.ENOMEM,
            errno.ENOBUFS,
            errno.EMFILE,
            errno.ENFILE,
            errno.ENOTCONN,
            errno.ECONNRESET,
            errno.ECONNREFUSED,
            errno.EHOSTDOWN,
            errno.EHOSTUNREACH,
            errno.ENETDOWN,
            errno.ENETUNREACH,
            errno.EREMOTEIO,
            errno.ESHUTDOWN,
            errno.ENOLCK,
        ),
        Unavailable,
    ),
}

_REASONS = {
    errno.ENOENT: "no such object",
    errno.ENOTDIR: "something that is no directory stands where the store keeps a directory",
    errno.ELOOP: "a symbolic link stands where the store keeps an object",
    errno.EISDIR: "a directory stands where the store keeps an object",
}
#: What is found in an object's place, or in that of a directory above it, is not what was put there.
_TAKEN_PLACE = frozenset((errno.ENOTDIR, errno.ELOOP, errno.EISDIR))


def translate(error: OSError, store: str, container: str = "", key: str = "") -> ChunkStoreError:
    """Return the chunk store's error for one of the file system; the caller raises it from ``error``.

    Its text holds no path.
    """
    number = error.errno or 0
    reason = _REASONS.get(number) or os.strerror(number)
    if number == errno.ENOENT and not key:
        reason = "no such container"
    return _KINDS.get(number, ChunkStoreError)(reason, store=store, container=container, key=key)


@contextmanager
def reading(store: str, container: str, key: str) -> Iterator[None]:
    """Translate for a block that reads an object: anything else in its place counts as a damaged object."""
    try:
        yield
    except OSError as error:
        if error.errno not in _TAKEN_PLACE:
            raise
        raise IntegrityError(_REASONS[error.errno], store=store, container=container, key=key) from error


@contextmanager
def translated(store: str, container: str = "", key: str = "") -> Iterator[None]:
    """Translate every OSError of the block."""
    try:
        yield
    except OSError as error:
        raise translate(error, store, container, key) from error
