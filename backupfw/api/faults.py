"""The table of errors: the status, key and message of each.  No other module turns errors into statuses.

An answer to an error is always ``{"<key>": {"code": N, "message": "…"}}``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import webob
import webob.exc
from oslo_db.exception import DBConnectionError, DBDeadlock

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.outages import DATABASE_TROUBLES, database_words

#: Key of the request's id in the WSGI environment.
REQUEST_ID = "openstack.request_id"
#: Key of the id that the caller gave the operation of which this request is a part; often missing.
GLOBAL_REQUEST_ID = "openstack.global_request_id"

LOG = logging.getLogger(__name__)

#: Status -> key of the answer's body; every other status has ``computeFault``.
KEYS = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    501: "notImplemented",
    503: "serviceUnavailable",
}

#: Error class -> (status, prefix of the message).  The most specific class of an error counts.
TABLE: Mapping[type[Exception], tuple[int, str]] = {
    api_errors.BadRequest: (400, ""),
    api_errors.Unauthorized: (401, ""),
    api_errors.WrongScope: (403, ""),
    api_errors.UnknownRoute: (404, ""),
    api_errors.UnsupportedVersion: (406, ""),
    api_errors.BodyTooLarge: (413, ""),
    api_errors.UnsupportedMediaType: (415, ""),
    api_errors.OverQuota: (413, ""),
    errors.InvalidInput: (400, "Invalid input received: "),
    errors.InvalidBackup: (400, "Invalid backup: "),
    errors.InvalidVolume: (400, "Invalid volume: "),
    errors.InvalidSnapshot: (400, "Invalid snapshot: "),
    errors.Forbidden: (403, ""),
    errors.NotFound: (404, ""),
    errors.Conflict: (409, ""),
    errors.OperationNotSupported: (405, "Operation not supported: "),
    errors.QuotaExceeded: (413, ""),
    errors.ServiceUnavailable: (503, ""),
}

#: Clients of the Block Storage API recognise these refusals by a name before the text.
QUOTA_PREFIXES = {
    "backups": "BackupLimitExceeded: ",
    "backup_gigabytes": "VolumeBackupSizeExceedsAvailableQuota: ",
    "volumes": "VolumeLimitExceeded: ",
    "snapshots": "SnapshotLimitExceeded: ",
    "gigabytes": "VolumeSizeExceedsAvailableQuota: ",
    "per_volume_gigabytes": "VolumeSizeExceedsLimit: ",
}

UNEXPECTED = "An unexpected error occurred; the log has more under the request id of this answer."

#: The message while the database does not answer; it does not say where the database is.
DATABASE_AWAY = "The service's database is temporarily unavailable."

#: Errors of a database that remain after its transaction was repeated.
_DATABASE_BUSY = (DBConnectionError, DBDeadlock)

#: Seconds after which a client shall ask again while the database is away.
RETRY_AFTER = "5"

#: Longer messages (they may quote a value of the request) are cut.
MAX_MESSAGE = 4096


@dataclass(frozen=True, slots=True)
class Fault:
    """An error as HTTP: status, message, extra fields of the body and extra headers."""

    status: int
    message: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The one key of the answer's body."""
        return KEYS.get(self.status, "computeFault")

    def body(self) -> dict[str, Any]:
        """Return the answer's body."""
        message = self.message if len(self.message) <= MAX_MESSAGE else self.message[:MAX_MESSAGE] + "…"
        return {self.key: {"code": self.status, "message": message, **self.extra}}


def _quota_prefix(error: errors.QuotaExceeded) -> str:
    return QUOTA_PREFIXES.get(error.resource, "")


def fault_of(error: BaseException) -> Fault:
    """Look up an error in the table; any other error is a 500 that does not tell its cause."""
    if isinstance(error, webob.exc.HTTPException):
        # Pecan's own errors: only "no such path" can occur, because our checks come before Pecan's.
        status = error.code if error.code in KEYS else 404
        return Fault(
            status, str(error.detail or error.explanation).strip() or "The resource could not be found."
        )
    if isinstance(error, _DATABASE_BUSY):
        return Fault(503, DATABASE_AWAY, headers={"Retry-After": RETRY_AFTER})
    for cls in type(error).__mro__:
        if cls in TABLE:
            status, prefix = TABLE[cls]
            break
    else:
        return Fault(500, UNEXPECTED)
    if isinstance(error, errors.QuotaExceeded):
        prefix = _quota_prefix(error)
    text = str(error)
    message = text if prefix and text.startswith(prefix) else prefix + text
    if status == 413:
        return Fault(413, message, extra={"retryAfter": "0"}, headers={"Retry-After": "0"})
    headers = {"Retry-After": RETRY_AFTER} if isinstance(error, errors.DatabaseUnwritable) else {}
    return Fault(status, message, headers=headers)


def response_of(error: BaseException, environ: Mapping[str, Any]) -> webob.Response:
    """Return the answer to an error; unexpected ones are logged with a traceback, a database's in one line.

    :param environ: the WSGI environment of the request, for the log line.
    """
    fault = fault_of(error)
    request = (
        environ.get(REQUEST_ID, "a request without an id"),
        environ.get(GLOBAL_REQUEST_ID, "nothing"),
        environ.get("REQUEST_METHOD"),
        environ.get("PATH_INFO"),
    )
    if isinstance(error, DATABASE_TROUBLES):
        LOG.error("The database failed %s, part of %s (%s %r): %s", *request, database_words(error))
    elif fault.status >= 500 and not isinstance(error, tuple(TABLE)):
        LOG.error("Unexpected error while answering %s, part of %s (%s %r)", *request, exc_info=error)
    response = webob.Response(
        status=fault.status,
        content_type="application/json",
        charset="UTF-8",
        body=json.dumps(fault.body()).encode("utf-8"),
    )
    response.headers.update(fault.headers)
    return response
