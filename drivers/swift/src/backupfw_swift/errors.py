"""What the server's answers and the libraries' errors mean: the one translation, as one table.

====================================================  ================  =========
HTTP status                                           error             temporary
====================================================  ================  =========
401 403                                               PermissionDenied  no
404 410                                               NotFound          no
405 501                                               NotSupported      no
408 409 425 429 498 499, 5xx but those named          Unavailable       yes
412                                                   InvalidName       no
413 507                                               NoSpace           no
416                                                   RangeError        no
422                                                   IntegrityError    yes
other 3xx and 4xx                                     ChunkStoreError   no
====================================================  ================  =========

=======================================================  ================  =========
without an answer, or with half of one                   error             temporary
=======================================================  ================  =========
the answer ended early                                   IntegrityError    yes
the server's certificate is not trusted                  ChunkStoreError   no
a certificate file cannot be read                        ChunkStoreError   no
a URL that cannot be                                     ChunkStoreError   no
Keystone: credentials refused                            PermissionDenied  no
Keystone: catalogue lacks the service                    ChunkStoreError   no
no connection, broken connection, time-out, other TLS    Unavailable       yes
an answer that cannot be understood                      Unavailable       yes
=======================================================  ================  =========

401 comes here only when a new token was refused too.  429 and 503 carry what Retry-After asked for.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import keystoneauth1.exceptions as keystone
import requests.exceptions
import urllib3.exceptions

from backupfw.chunkstore.errors import (
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

#: Status -> kind and reason.
_STATUSES: dict[int, tuple[type[ChunkStoreError], str]] = {
    401: (PermissionDenied, "the server refuses the credentials (401)"),
    403: (PermissionDenied, "the user's roles or the container's ACLs do not allow it (403)"),
    404: (NotFound, "no such object or container"),
    405: (NotSupported, "the server does not allow this method (405)"),
    408: (Unavailable, "the server waited too long for the request (408)"),
    409: (Unavailable, "another request on the same name is under way (409)"),
    410: (NotFound, "no such object or container (410)"),
    412: (InvalidName, "the server cannot take this name (412)"),
    413: (NoSpace, "the object would exceed a quota or the server's largest size (413)"),
    416: (RangeError, "the range reaches past the object's end"),
    422: (IntegrityError, "the bytes that reached the server are not those that were sent (422)"),
    425: (Unavailable, "the server asks to come later (425)"),
    429: (Unavailable, "the server asks for fewer requests (429)"),
    498: (Unavailable, "the server asks for fewer requests (498)"),
    499: (Unavailable, "the server lost the connection (499)"),
    501: (NotSupported, "the server has not implemented this (501)"),
    507: (NoSpace, "the server is full (507)"),
}

_UNTRUSTED = "the server's certificate is not trusted: see cacert"
_KEYSTONE_UNTRUSTED = "Keystone's certificate is not trusted: see cacert"
_NO_FILE = "a certificate file cannot be read: see cacert, cert and cert_key"
#: What users read where the error's kind does not say enough.
_FOR_USERS = {
    _UNTRUSTED: "The service does not trust the store's certificate.",
    _KEYSTONE_UNTRUSTED: "The service does not trust the certificate of the store's identity service.",
    _NO_FILE: "The service cannot read the certificates that it needs for the store.",
}


class Refused(Exception):
    """The server answered with a status outside 200 to 299.

    :ivar status: the answer's.
    :ivar words: what the server says beside the status.
    :ivar headers: the answer's.
    """

    def __init__(self, status: int, words: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"the server answered {status}")
        self.status = status
        self.words = words
        self.headers = headers or {}


#: Everything that a request raises; OSError is the base of requests' errors too.
ERRORS = (
    Refused,
    keystone.ClientException,
    urllib3.exceptions.HTTPError,
    http.client.HTTPException,
    OSError,
    ValueError,
)


def translate(error: Exception, store: str, container: str = "", key: str = "") -> ChunkStoreError:
    """Return the chunk store's error for one of the libraries; the caller raises it from ``error``.

    Its text holds neither address nor token.
    """
    kind, reason, temporary = _judge(error)
    for_user = _FOR_USERS.get(reason, "")
    if kind is NotFound and not key:
        reason = "no such container"
    return kind(
        reason,
        store=store,
        container=container,
        key=key,
        temporary=temporary,
        retry_after=retry_after(_headers(error)),
        for_user=for_user,
    )


@contextmanager
def translated(store: str, container: str = "", key: str = "") -> Iterator[None]:
    """Translate every error of a request in the block."""
    try:
        yield
    except ERRORS as error:
        raise translate(error, store, container, key) from error


def status_error(status: int, reason: str, store: str, container: str, key: str) -> ChunkStoreError:
    """Return the error for one line of a bulk answer.

    :param status: the HTTP status the server gives for this object.
    :param reason: its words for it.
    """
    return translate(Refused(status, reason), store, container, key)


def _judge(error: Exception) -> tuple[type[ChunkStoreError], str, bool | None]:
    """Return kind, reason and temporary (None for the kind's own)."""
    if isinstance(error, Refused):
        return _judge_status(error.status, error.words)
    if isinstance(error, keystone.ClientException):
        return _judge_keystone(error)
    inside = list(causes(error))
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in inside):
        return ChunkStoreError, _UNTRUSTED, None
    if any(isinstance(cause, http.client.IncompleteRead) for cause in inside):
        return IntegrityError, "the answer ended early", True
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return Unavailable, "the server does not answer in time", None
    if isinstance(error, requests.exceptions.ConnectionError):
        return Unavailable, "the connection cannot be made or broke", None
    # Both are ValueErrors: first what cannot be asked, then what cannot be understood.
    if isinstance(
        error,
        (
            requests.exceptions.InvalidURL,
            requests.exceptions.MissingSchema,
            requests.exceptions.InvalidSchema,
            urllib3.exceptions.LocationValueError,
        ),
    ):
        return ChunkStoreError, "the store's URL is none that can be asked", None
    if isinstance(error, requests.exceptions.JSONDecodeError):
        return Unavailable, "the answer cannot be understood", None
    if isinstance(error, (requests.exceptions.RequestException, urllib3.exceptions.HTTPError)):
        return Unavailable, "the connection broke in mid-answer", None
    if isinstance(error, (http.client.HTTPException, ValueError)):
        return Unavailable, "the answer cannot be understood", None
    if isinstance(error, ConnectionError):
        return Unavailable, "the connection broke", None
    # What is left is a plain OSError: requests raises one for certificate files.
    return ChunkStoreError, _NO_FILE, None


def _judge_status(status: int, words: str) -> tuple[type[ChunkStoreError], str, bool | None]:
    if status in _STATUSES:
        kind, reason = _STATUSES[status]
        return kind, reason, True if kind is IntegrityError else None
    reason = f"the server answered {status} {words[:60]}".rstrip()
    return (Unavailable if status >= 500 else ChunkStoreError), reason, None


def _judge_keystone(error: keystone.ClientException) -> tuple[type[ChunkStoreError], str, bool | None]:
    if isinstance(error, keystone.Unauthorized):
        return PermissionDenied, "Keystone refuses the credentials or the project (401)", None
    if isinstance(error, (keystone.EndpointNotFound, keystone.CatalogException)):
        return ChunkStoreError, "the catalogue has no such service, region and interface", None
    if isinstance(error, keystone.HttpError) and error.http_status:
        kind, reason, temporary = _judge_status(int(error.http_status), "")
        if kind is NotFound:
            return ChunkStoreError, "there is no Keystone v3 at auth_url (404)", None
        return kind, f"Keystone: {reason}", temporary
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)):
        return ChunkStoreError, _KEYSTONE_UNTRUSTED, None
    if isinstance(error, keystone.ConnectionError):
        return Unavailable, "Keystone does not answer", None
    return Unavailable, "Keystone's answer cannot be understood", None


def _headers(error: Exception) -> Mapping[str, str] | None:
    if isinstance(error, Refused):
        return error.headers
    if isinstance(error, keystone.HttpError) and error.response is not None:
        return error.response.headers
    return None
