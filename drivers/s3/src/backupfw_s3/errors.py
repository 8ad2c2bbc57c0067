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
the SDK may have renewed meanwhile.  Every fault of a connection is temporary, except a certificate that is
not trusted and a file that cannot be read.

Where the server says what it expects (a region, its clock), the text says so; a permission is named only
where the credentials are good and lack one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

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
    causes,
    retry_after,
)


class Meaning(NamedTuple):
    """What an error means.

    :ivar kind: the contract's class.
    :ivar temporary: whether the same call may work later.
    :ivar text: for the operator.
    :ivar for_user: for users, where the kind does not say enough.
    """

    kind: type[ChunkStoreError]
    temporary: bool
    text: str
    for_user: str = ""


_DENIED = Meaning(PermissionDenied, False, "the store refuses the credentials or what they may do")
_EXPIRED = Meaning(
    PermissionDenied,
    True,
    "the credentials have expired",
    "The service's credentials for the store have expired.",
)
_SKEWED = Meaning(
    PermissionDenied,
    True,
    "the clocks of this host and the store differ too much",
    "The clocks of the service and the store differ too much.",
)
_MISSING = Meaning(NotFound, False, "no such object")
_EXISTS = Meaning(AlreadyExists, False, "an object is there")
_RANGE = Meaning(RangeError, False, "the range reaches past the object's end")
_DAMAGED = Meaning(IntegrityError, True, "the bytes were damaged on their way to the store")
_FULL = Meaning(NoSpace, False, "the store is full or a quota is reached")
_NAME = Meaning(InvalidName, False, "the store cannot take this name")
_LACKING = Meaning(NotSupported, False, "the store does not have this operation")
_BUSY = Meaning(Unavailable, True, "the store asks to slow down")
_FAILING = Meaning(Unavailable, True, "the store failed")
_CONFLICT = Meaning(Unavailable, True, "another request is changing the same thing")
_ELSEWHERE = Meaning(
    ChunkStoreError,
    False,
    "the container is in another region than the requests are signed for",
    "The service asks for the store in a wrong region.",
)
_UNTRUSTED = Meaning(
    ChunkStoreError,
    False,
    "the store's certificate is not trusted (ca_bundle, verify)",
    "The service does not trust the store's certificate.",
)
_NO_FILE = Meaning(
    ChunkStoreError,
    False,
    "the file of ca_bundle cannot be read, or is none with certificates",
    "The service cannot read the certificates that it needs for the store.",
)
_NO_CREDENTIALS = Meaning(
    PermissionDenied,
    False,
    "there are no credentials: neither access_key_id, nor a profile in the SDK's files, nor the environment, "
    "nor a role of this host gives any",
    "The service has no credentials for the store.",
)

#: The server's code -> what it means.
CODES: dict[str, Meaning] = {
    **dict.fromkeys(("NoSuchKey", "NotFound", "NoSuchObject", "NoSuchVersion"), _MISSING),
    "NoSuchBucket": Meaning(NotFound, False, "no such container"),
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
    **dict.fromkeys(
        (
            "AuthorizationHeaderMalformed",
            "AuthorizationQueryParametersError",
            "IllegalLocationConstraintException",
            "PermanentRedirect",
        ),
        _ELSEWHERE,
    ),
    "TemporaryRedirect": Meaning(Unavailable, True, "the container is being moved"),
    "EntityTooLarge": Meaning(
        ChunkStoreError, False, "the object is larger than the store takes in one request"
    ),
    "InvalidObjectState": Meaning(
        ChunkStoreError, False, "the object is archived and must be brought back first"
    ),
    "BucketAlreadyExists": Meaning(PermissionDenied, False, "the container's name belongs to somebody else"),
    "InvalidLocationConstraint": Meaning(
        ChunkStoreError, False, "the store does not know the bucket_location"
    ),
}

#: The HTTP status, where the code says nothing -> what it means.
STATUSES: dict[int, Meaning] = {
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
CLASSES: tuple[tuple[tuple[type[BaseException], ...], Meaning], ...] = (
    (
        (sdk.FlexibleChecksumError, sdk.ChecksumError),
        Meaning(IntegrityError, True, "the bytes do not match the checksum that came with them"),
    ),
    ((sdk.ConnectTimeoutError,), Meaning(Unavailable, True, "no connection to the store in time")),
    ((sdk.ReadTimeoutError,), Meaning(Unavailable, True, "the store does not answer in time")),
    ((sdk.ProxyConnectionError,), Meaning(Unavailable, True, "the proxy cannot be reached")),
    ((sdk.ConnectionError,), Meaning(Unavailable, True, "the store cannot be reached")),
    (
        (sdk.HTTPClientError, sdk.IncompleteReadError, HTTPError),
        Meaning(Unavailable, True, "the connection to the store broke"),
    ),
    ((ResponseParserError,), Meaning(Unavailable, True, "the answer is not S3's")),
    (
        (sdk.NoCredentialsError, sdk.PartialCredentialsError, sdk.NoAuthTokenError),
        _NO_CREDENTIALS,
    ),
    (
        (sdk.CredentialRetrievalError, sdk.MetadataRetrievalError, sdk.TokenRetrievalError, sdk.SSOError),
        Meaning(PermissionDenied, True, "the credentials cannot be renewed"),
    ),
    ((sdk.ParamValidationError, sdk.InvalidDNSNameError, sdk.InvalidHostLabelError), _NAME),
    ((OSError,), Meaning(Unavailable, True, "the connection to the store broke")),
)

#: What a permission is called in policies, by the SDK's name of the operation.
PERMISSIONS: Mapping[str, str] = {
    "CreateBucket": "s3:CreateBucket",
    "DeleteBucket": "s3:DeleteBucket",
    "DeleteObject": "s3:DeleteObject",
    "DeleteObjectVersion": "s3:DeleteObjectVersion",
    "DeleteObjects": "s3:DeleteObject",
    "GetBucketVersioning": "s3:GetBucketVersioning",
    "GetObject": "s3:GetObject",
    "GetObjectLockConfiguration": "s3:GetBucketObjectLockConfiguration",
    "GetObjectRetention": "s3:GetObjectRetention",
    "ListBuckets": "s3:ListAllMyBuckets",
    "ListObjectVersions": "s3:ListBucketVersions",
    "ListObjectsV2": "s3:ListBucket",
    "PutObject": "s3:PutObject",
    "PutObjectRetention": "s3:PutObjectRetention",
}

#: Codes of a refusal that a permission would end: not those of keys and signatures that are wrong.
_LACKS_PERMISSION = frozenset(
    ("", "403", "AccessDenied", "AllAccessDisabled", "Forbidden", "UnauthorizedAccess")
)
#: Where servers name the region they expect in their own words only.
_EXPECTED_REGION = re.compile(r"expect(?:ed|ing):? '?([a-z0-9-]+)")

#: Every error that the SDK raises.
SDK_ERRORS = (sdk.BotoCoreError, sdk.ClientError, ResponseParserError, HTTPError, OSError)


def meaning(code: str, status: int) -> Meaning:
    """Return kind, permanence and text for a server's error."""
    if code in CODES:
        return CODES[code]
    if status in STATUSES:
        return STATUSES[status]
    if status >= 500:
        return _FAILING
    return Meaning(ChunkStoreError, False, "the store refuses the request")


def translate(error: BaseException, store: str, container: str = "", key: str = "") -> ChunkStoreError:
    """Return the chunk store's error for one of the SDK; the caller raises it from ``error``.

    Its text holds neither addresses nor credentials; what the server said itself is in ``error``.
    """
    if isinstance(error, sdk.ClientError):
        return _of_server(error, store, container, key)
    kind, temporary, text, for_user = _of_sdk(error)
    return kind(text, store=store, container=container, key=key, temporary=temporary, for_user=for_user)


def of_key(code: str, operation: str, store: str, container: str, key: str) -> ChunkStoreError | None:
    """Return the error for one key of a bulk request, None when its object is gone."""
    kind, temporary, text, for_user = meaning(code, 0)
    if kind is NotFound:
        return None
    return kind(
        _with_hint(kind, text, code, operation),
        store=store,
        container=container,
        key=key,
        temporary=temporary,
        for_user=for_user,
    )


def code_of(error: ChunkStoreError) -> tuple[str, int]:
    """Return the server's code and the HTTP status of a translated error, empty and 0 if it has none."""
    cause = error.__cause__
    if not isinstance(cause, sdk.ClientError):
        return "", 0
    response: Any = cause.response
    return (
        str(response.get("Error", {}).get("Code", "")),
        int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)),
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
    meant = meaning(code, int(details.get("HTTPStatusCode", 0)))
    if code.startswith("Authorization") and not _region_of(response):
        # The signature is wrong in another way.
        meant = _DENIED
    kind, temporary, text, for_user = meant
    if kind is NotFound and not key:
        text = "no such container"
    elif meant is _ELSEWHERE:
        text += f": set region{_region_of(response)}"
    elif meant is _SKEWED:
        text += _clocks_of(response)
    return kind(
        _with_hint(kind, text, code, error.operation_name),
        store=store,
        container=container,
        key=key,
        temporary=temporary,
        retry_after=retry_after(details.get("HTTPHeaders", {})),
        for_user=for_user,
    )


def _region_of(response: Any) -> str:
    """Return ``= REGION`` with the region that the server expects, nothing if it does not tell."""
    told = response.get("Error", {})
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = told.get("Region") or headers.get("x-amz-bucket-region")
    if not region and (match := _EXPECTED_REGION.search(str(told.get("Message", "")))):
        region = match[1]
    return f" = {region}" if region else ""


def _clocks_of(response: Any) -> str:
    """Say what the server's clock shows and what this host's does."""
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    theirs = response.get("Error", {}).get("ServerTime") or headers.get("date")
    ours = datetime.datetime.now(datetime.UTC)
    return f": the store's shows {theirs}, this host's {ours:%Y-%m-%dT%H:%M:%SZ}" if theirs else ""


def _with_hint(kind: type[ChunkStoreError], text: str, code: str, operation: str) -> str:
    hint = f"{operation}: {code}" if code else operation
    if kind is PermissionDenied and code in _LACKS_PERMISSION and operation in PERMISSIONS:
        hint += f"; needs {PERMISSIONS[operation]}"
    return f"{text} ({hint})"


def _of_sdk(error: BaseException) -> Meaning:
    if isinstance(error, sdk.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return _UNTRUSTED
    unreadable = any(
        isinstance(cause, (FileNotFoundError, IsADirectoryError, PermissionError)) for cause in causes(error)
    )
    if unreadable or (isinstance(error, sdk.SSLError) and "[X509" in str(error)):
        # Of all files only that one is read with a request.
        return _NO_FILE
    for classes, meant in CLASSES:
        if isinstance(error, classes):
            return meant
    return Meaning(ChunkStoreError, False, f"the SDK failed ({type(error).__name__})")
