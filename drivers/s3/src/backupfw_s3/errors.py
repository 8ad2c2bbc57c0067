"""What S3's and the SDK's errors mean: the one translation, as tables.

The server's code decides, then the HTTP status, then the SDK's class:

======================================================  ================  =========
code or status                                          error             temporary
======================================================  ================  =========
NoSuchKey NoSuchBucket 404                              NotFound          no
PreconditionFailed 412                                  AlreadyExists     no
InvalidRange 416                                        RangeError        no
BadDigest, checksum mismatches, IncompleteBody          IntegrityError    yes
AccessDenied, wrong keys and signatures, 401 403        PermissionDenied  no
ExpiredToken, RequestTimeTooSkewed and the like         PermissionDenied  yes
QuotaExceeded, TooManyBuckets, 507                      NoSpace           no
KeyTooLongError InvalidBucketName                       InvalidName       no
NotImplemented 501                                      NotSupported      no
SlowDown, throttling, timeouts, conflicts, 408 429 5xx  Unavailable       yes
anything else                                           ChunkStoreError   no
======================================================  ================  =========

Expired credentials and clocks count as temporary: the next try is signed anew, with credentials that
the SDK may have renewed meanwhile.  Of a connection every fault is temporary but a certificate that is
not trusted.
"""

from __future__ import annotations

import email.utils
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import botocore.exceptions as sdk
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    InvalidName,
    NoSpace,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
    Unavailable,
)

_Meaning = tuple[type[ChunkStoreError], bool, str]

_DENIED: _Meaning = (PermissionDenied, False, "the store refuses the credentials or what they may do")
_EXPIRED: _Meaning = (PermissionDenied, True, "the credentials have expired")
_SKEWED: _Meaning = (PermissionDenied, True, "the clocks of this host and the store differ too much")
_MISSING: _Meaning = (NotFound, False, "no such object")
_EXISTS: _Meaning = (AlreadyExists, False, "an object is there")
_RANGE: _Meaning = (RangeError, False, "the range reaches past the object's end")
_DAMAGED: _Meaning = (IntegrityError, True, "the bytes were damaged on their way to the store")
_FULL: _Meaning = (NoSpace, False, "the store is full or a quota is reached")
_NAME: _Meaning = (InvalidName, False, "the store cannot take this name")
_LACKING: _Meaning = (NotSupported, False, "the store does not have this operation")
_BUSY: _Meaning = (Unavailable, True, "the store asks to slow down")
_FAILING: _Meaning = (Unavailable, True, "the store failed")
_CONFLICT: _Meaning = (Unavailable, True, "another request is changing the same thing")
_ELSEWHERE: _Meaning = (ChunkStoreError, False, "the container is in another region")

#: The server's code -> what it means.
CODES: dict[str, _Meaning] = {
    **dict.fromkeys(("NoSuchKey", "NotFound", "NoSuchObject", "NoSuchVersion"), _MISSING),
    "NoSuchBucket": (NotFound, False, "no such container"),
    "PreconditionFailed": _EXISTS,
    **dict.fromkeys(("InvalidRange", "RequestedRangeNotSatisfiable"), _RANGE),
    **dict.fromkeys(
        (
            "BadDigest",
            "IncompleteBody",
            "XAmzContentSHA256Mismatch",
            "XAmzContentChecksumMismatch",
            "ChecksumMismatch",
        ),
        _DAMAGED,
    ),
    **dict.fromkeys(
        (
            "AccessDenied",
            "AccountProblem",
            "AllAccessDisabled",
            "AuthorizationHeaderMalformed",
            "Forbidden",
            "InvalidAccessKeyId",
            "InvalidSecurity",
            "InvalidToken",
            "NotSignedUp",
            "SignatureDoesNotMatch",
            "Unauthorized",
            "UnauthorizedAccess",
            "UserSuspended",
        ),
        _DENIED,
    ),
    **dict.fromkeys(
        ("ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"), _EXPIRED
    ),
    "RequestTimeTooSkewed": _SKEWED,
    **dict.fromkeys(
        (
            "BucketQuotaExceeded",
            "InsufficientStorage",
            "QuotaExceeded",
            "ServiceQuotaExceeded",
            "StorageFull",
            "TooManyBuckets",
            "XMinioAdminBucketQuotaExceeded",
            "XMinioStorageFull",
        ),
        _FULL,
    ),
    **dict.fromkeys(
        (
            "InvalidBucketName",
            "InvalidObjectName",
            "InvalidURI",
            "KeyTooLong",
            "KeyTooLongError",
            "XMinioInvalidObjectName",
        ),
        _NAME,
    ),
    **dict.fromkeys(("NotImplemented", "XNotImplemented"), _LACKING),
    **dict.fromkeys(
        (
            "BandwidthLimitExceeded",
            "Busy",
            "RequestLimitExceeded",
            "RequestThrottled",
            "ServerBusy",
            "SlowDown",
            "Throttling",
            "ThrottlingException",
            "TooManyRequests",
        ),
        _BUSY,
    ),
    **dict.fromkeys(("InternalError", "RequestTimeout", "ServiceUnavailable"), _FAILING),
    **dict.fromkeys(("ConditionalRequestConflict", "OperationAborted"), _CONFLICT),
    **dict.fromkeys(("IllegalLocationConstraintException", "PermanentRedirect"), _ELSEWHERE),
    "TemporaryRedirect": (Unavailable, True, "the container is being moved"),
    "EntityTooLarge": (ChunkStoreError, False, "the object is larger than the store takes in one request"),
    "InvalidObjectState": (ChunkStoreError, False, "the object is archived and must be brought back first"),
    "BucketAlreadyExists": (PermissionDenied, False, "the container's name belongs to somebody else"),
    "InvalidLocationConstraint": (ChunkStoreError, False, "the store does not know the bucket_location"),
}

#: The HTTP status, where the code says nothing -> what it means.
STATUSES: dict[int, _Meaning] = {
    401: _DENIED,
    403: _DENIED,
    404: _MISSING,
    408: _FAILING,
    412: _EXISTS,
    416: _RANGE,
    429: _BUSY,
    501: _LACKING,
    507: _FULL,
}

#: The SDK's own errors, the first that fits.
CLASSES: tuple[tuple[tuple[type[BaseException], ...], _Meaning], ...] = (
    (
        (sdk.FlexibleChecksumError, sdk.ChecksumError),
        (IntegrityError, True, "the bytes do not match the checksum that came with them"),
    ),
    ((sdk.ConnectTimeoutError,), (Unavailable, True, "no connection to the store in time")),
    ((sdk.ReadTimeoutError,), (Unavailable, True, "the store does not answer in time")),
    ((sdk.ProxyConnectionError,), (Unavailable, True, "the proxy cannot be reached")),
    ((sdk.ConnectionError,), (Unavailable, True, "the store cannot be reached")),
    (
        (sdk.HTTPClientError, sdk.IncompleteReadError, HTTPError),
        (Unavailable, True, "the connection to the store broke"),
    ),
    ((ResponseParserError,), (Unavailable, True, "the answer is not S3's")),
    (
        (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.NoAuthTokenError),
        (PermissionDenied, False, "there are no credentials"),
    ),
    (
        (sdk.CredentialRetrievalError, sdk.MetadataRetrievalError, sdk.TokenRetrievalError, sdk.SSOError),
        (PermissionDenied, True, "the credentials cannot be renewed"),
    ),
    ((sdk.ParamValidationError, sdk.InvalidDNSNameError, sdk.InvalidHostLabelError), _NAME),
    ((OSError,), (Unavailable, True, "the connection to the store broke")),
)

#: What a permission is called in policies, by the SDK's name of the operation.
PERMISSIONS: Mapping[str, str] = {
    "CreateBucket": "s3:CreateBucket",
    "DeleteBucket": "s3:DeleteBucket",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjects": "s3:DeleteObject",
    "GetObject": "s3:GetObject",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
}

#: Everything the SDK lets out.
SDK_ERRORS = (sdk.BotoCoreError, sdk.ClientError, ResponseParserError, HTTPError, OSError)


def meaning(code: str, status: int) -> _Meaning:
    """Return kind, permanence and text for a server's error."""
    if code in CODES:
        return CODES[code]
    if status in STATUSES:
        return STATUSES[status]
    if status >= 500:
        return _FAILING
    return (ChunkStoreError, False, "the store refuses the request")


def translate(error: BaseException, store: str, container: str = "", key: str = "") -> ChunkStoreError:
    """Return the chunk store's error for one of the SDK; the caller raises it from ``error``.

    Its text holds neither addresses nor credentials; what the server said itself is in ``error``.
    """
    if isinstance(error, sdk.ClientError):
        return _of_server(error, store, container, key)
    kind, temporary, text = _of_sdk(error)
    return kind(text, store=store, container=container, key=key, temporary=temporary)


def of_key(code: str, operation: str, store: str, container: str, key: str) -> ChunkStoreError | None:
    """Return the error for one key of a bulk request, None when its object is gone."""
    kind, temporary, text = meaning(code, 0)
    if kind is NotFound:
        return None
    return kind(
        _with_hint(kind, text, code, operation),
        store=store,
        container=container,
        key=key,
        temporary=temporary,
    )


@contextmanager
def translated(store: str, container: str = "", key: str = "") -> Iterator[None]:
    """Translate every error of the SDK in the block."""
    try:
        yield
    except SDK_ERRORS as error:
        raise translate(error, store, container, key) from error


def _of_server(error: sdk.ClientError, store: str, container: str, key: str) -> ChunkStoreError:
    response: Any = error.response
    details = response.get("ResponseMetadata", {})
    code = str(response.get("Error", {}).get("Code", ""))
    kind, temporary, text = meaning(code, int(details.get("HTTPStatusCode", 0)))
    if kind is NotFound and not key:
        text = "no such container"
    return kind(
        _with_hint(kind, text, code, error.operation_name),
        store=store,
        container=container,
        key=key,
        temporary=temporary,
        retry_after=_retry_after(details.get("HTTPHeaders", {})),
    )


def _with_hint(kind: type[ChunkStoreError], text: str, code: str, operation: str) -> str:
    hint = f"{operation}: {code}" if code else operation
    if kind is PermissionDenied and operation in PERMISSIONS:
        hint += f"; needs {PERMISSIONS[operation]}"
    return f"{text} ({hint})"


def _of_sdk(error: BaseException) -> _Meaning:
    if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (ChunkStoreError, False, "the store's certificate is not trusted (ca_bundle, verify)")
    for classes, meant in CLASSES:
        if isinstance(error, classes):
            return meant
    return (ChunkStoreError, False, f"the SDK failed ({type(error).__name__})")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds of a Retry-After header: a number, or a date."""
    value = headers.get("retry-after")
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
