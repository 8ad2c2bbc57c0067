"""What a user reads about a failure: never a host, path, endpoint or credential.

Users read ``fail_reason``; the cause with all its details goes to the log.
"""

from __future__ import annotations

import errno

from oslo_db.exception import DBConnectionError, DBDeadlock, DBError

from backupfw import errors
from backupfw.chunkstore import errors as store_errors
from backupfw.keys.errors import KeyStoreError
from backupfw.manager.messages import Detail
from backupfw.outages import DATABASE_TROUBLES

#: The column's width (the API's limit for text fields).
MAX_LENGTH = 255

_STORE_TEXTS: tuple[tuple[type[store_errors.ChunkStoreError], str], ...] = (
    (store_errors.Unavailable, "The store does not answer."),
    (
        store_errors.Retained,
        "The store keeps some objects until their lock or retention ends; they are deleted after that.",
    ),
    (store_errors.PermissionDenied, "The store refused the service's credentials or permissions."),
    (store_errors.NoSpace, "The store is full or its quota is used up."),
    (store_errors.IntegrityError, "The store returned or received damaged data."),
    (store_errors.InvalidName, "The store cannot take this container name."),
    (store_errors.NotFound, "An object or container is missing in the store."),
    (store_errors.DeleteFailed, "Some objects could not be deleted from the store."),
)


def user_reason(error: BaseException, request_id: str | None) -> str:
    """Return the text for ``fail_reason``.

    :param error: what ended the task.
    :param request_id: named where only the log has more.
    """
    return _text(error, request_id)[:MAX_LENGTH]


def _text(error: BaseException, request_id: str | None) -> str:
    if isinstance(error, errors.Damaged):
        # Without installation and project: an import may point to another one's data.
        return f"The stored object {error.key.split('/', 2)[-1]} is missing or damaged."
    if isinstance(error, errors.UnsupportedFormat):
        return "The backup's data is of a format that this release of the service cannot read."
    if isinstance(error, errors.ConfigError):
        # It names options, and paths among their values.
        return f"The service's configuration is wrong; the log says more under {request_id}."
    if isinstance(error, store_errors.ChunkStoreError):
        if error.for_user:
            return error.for_user
        if isinstance(error, store_errors.DeleteFailed) and all(
            isinstance(one, store_errors.Retained) for one in error.errors.values()
        ):
            error = next(iter(error.errors.values()))
        for kind, text in _STORE_TEXTS:
            if isinstance(error, kind):
                return text
        return f"The store failed; the log says more under {request_id}."
    if isinstance(error, KeyStoreError):
        return error.for_user
    if isinstance(error, errors.JournalLost):
        return "The service's database lost a part of what was recorded of this backup."
    if isinstance(error, errors.SourceMoved):
        return "The volume kept changing while it was copied, and its storage has no atomic snapshots."
    if isinstance(error, errors.TargetError):
        return "The target volume could not be opened or written."
    if isinstance(error, errors.BackupfwError):
        return str(error)
    if isinstance(error, DBConnectionError | DBDeadlock):
        return "The service's database was away or too busy for too long."
    if isinstance(error, DBError):
        return f"The service's database failed; the log says more under {request_id}."
    if isinstance(error, OSError):
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return "No space is left on the volume's storage."
        return f"An input/output error ({errno.errorcode.get(error.errno or 0, 'unknown')}) occurred."
    return f"An unexpected error occurred; the log says more under {request_id}."


def message_detail(error: BaseException) -> Detail | None:
    """Return what a user message says of a failed creation or restore; None: nothing more exact."""
    if isinstance(error, errors.TargetError | errors.StorageChanged):
        return Detail.ATTACH
    if isinstance(error, errors.VolumeNotFound | errors.SnapshotNotFound | errors.InvalidVolume):
        return Detail.VOLUME_STATE
    if isinstance(error, errors.SourceMoved | errors.SourceUnreadable | OSError):
        return Detail.DEVICE
    return None


def may_pass(error: BaseException) -> bool:
    """Say whether another attempt may succeed where this one failed.

    The error itself says so.  Those of the database's library and of the operating system cannot: the
    database may be back soon, and a volume or disk that is full may have room later.  The number of attempts
    ends such a task.
    """
    if isinstance(error, errors.BackupfwError):
        return error.may_pass
    return isinstance(error, (OSError, *DATABASE_TROUBLES))
