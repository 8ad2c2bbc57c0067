"""What the service's answers and the libraries' errors mean: the one translation, as one table.

===========================================================  =================  =========
answer or exception                                          error              temporary
===========================================================  =================  =========
400 that speaks of a checksum                                IntegrityError     yes
401                                                          PermissionDenied   no
403 for a rate or quota of requests                          Unavailable        yes
403 for a hold or retention                                  Retained           no
403                                                          PermissionDenied   no
404                                                          NotFound           no
409 (somebody changes the same thing)                        Unavailable        yes
412                                                          AlreadyExists      no
416                                                          RangeError         no
501                                                          NotSupported       no
507                                                          NoSpace            no
408 429 499, every other 5xx                                 Unavailable        yes
every other status                                           ChunkStoreError    no
no or unusable credentials, refused by the token server      PermissionDenied   no
token server does not answer or says it may later            Unavailable        yes
a certificate that is not trusted, a file that is missing    ChunkStoreError    no
a malformed address or option of a request                   ChunkStoreError    no
connection refused, reset, cut or timed out                  Unavailable        yes
an answer that cannot be understood                          Unavailable        yes
===========================================================  =================  =========

A message holds what the service says of the matter, never an address, a header or a credential.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import requests
import urllib3
from google.auth import exceptions as auth

from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    NoSpace,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
    Retained,
    Unavailable,
    causes,
    retry_after,
)


class Refused(Exception):
    """The service answered with a status outside 200 to 299.

    :ivar status: the answer's.
    :ivar headers: the answer's.
    :ivar body: the answer's; it may quote the request, so it is no part of the text.
    """

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        super().__init__(f"the server answered {status}")
        self.status = status
        self.headers = headers
        self.body = body


#: Everything that a request raises; ValueError: an answer that is no JSON or not the expected one; OSError:
#: the file of ca_bundle, which is read with the first request.
ERRORS = (
    Refused,
    auth.GoogleAuthError,
    requests.exceptions.RequestException,
    urllib3.exceptions.HTTPError,
    ValueError,
    OSError,
)

_STATUS: dict[int, type[ChunkStoreError]] = {
    401: PermissionDenied,
    403: PermissionDenied,
    404: NotFound,
    408: Unavailable,
    409: Unavailable,
    412: AlreadyExists,
    416: RangeError,
    429: Unavailable,
    499: Unavailable,
    501: NotSupported,
    507: NoSpace,
}
#: Reasons of a 403 that passes.
_RATES = frozenset(("rateLimitExceeded", "userRateLimitExceeded", "quotaExceeded"))
#: Reasons of a 403 that a lock of the bucket's or the object's gives.
_LOCKS = frozenset(("retentionPolicyNotMet", "objectUnderActiveHold"))
_CHECKSUM_WORDS = ("crc32c", "md5", "hash", "checksum")
#: Longest text taken from an answer, characters.
_TEXT = 200

_MALFORMED = (
    requests.exceptions.InvalidURL,
    requests.exceptions.InvalidSchema,
    requests.exceptions.MissingSchema,
    requests.exceptions.InvalidHeader,
    requests.exceptions.InvalidProxyURL,
)


def translate(
    error: Exception, store: str, container: str = "", key: str = "", needs: str = ""
) -> ChunkStoreError:
    """Return the chunk store's error for one of :data:`ERRORS`; the caller raises it from ``error``.

    :param needs: the permission that the request takes; named when it is refused.
    """
    if isinstance(error, Refused):
        return _answer(error, store, container, key, needs)
    kind, reason, for_user = _kind(error)
    return kind(reason, store=store, container=container, key=key, for_user=for_user)


def _kind(error: Exception) -> tuple[type[ChunkStoreError], str, str]:
    """Return kind, reason, and what users read where the kind does not say enough."""
    if isinstance(error, auth.GoogleAuthError):
        if isinstance(error, auth.TransportError) or error.retryable:
            return Unavailable, "no token could be got: the token server does not answer", ""
        if isinstance(error, auth.DefaultCredentialsError):
            reason = "there are no credentials: set service_account_file, or ambient ones"
            return PermissionDenied, reason, "The service has no credentials for the store."
        if isinstance(error, auth.RefreshError):
            return PermissionDenied, f"the credentials are refused{_said(error)}", ""
        return PermissionDenied, f"the credentials cannot be used ({type(error).__name__})", ""
    if isinstance(error, requests.exceptions.SSLError) and _untrusted(error):
        reason = "the server's certificate is not trusted (ca_bundle)"
        return ChunkStoreError, reason, "The service does not trust the store's certificate."
    if isinstance(error, _MALFORMED):
        reason = f"the request cannot be made ({type(error).__name__}): look at the options"
        return ChunkStoreError, reason, ""
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)):
        return Unavailable, "the server does not answer in time", ""
    if isinstance(error, (requests.exceptions.JSONDecodeError, ValueError)):
        return Unavailable, "the server's answer cannot be understood", ""
    if _unreadable(error):
        return (
            ChunkStoreError,
            "the file of ca_bundle cannot be read, or is none with certificates",
            "The service cannot read the certificates that it needs for the store.",
        )
    return Unavailable, f"the connection failed ({type(error).__name__})", ""


def _unreadable(error: Exception) -> bool:
    """Say whether the file of ca_bundle is missing, or has no certificates."""
    if isinstance(error, requests.exceptions.SSLError):
        return "[X509" in str(error)
    return isinstance(error, OSError) and not isinstance(
        error, (requests.exceptions.RequestException, ConnectionError, TimeoutError)
    )


def _said(error: auth.RefreshError) -> str:
    """Return what the token server said, in its own short words (``invalid_grant``)."""
    answer = error.args[1] if len(error.args) > 1 else None
    if not isinstance(answer, dict):
        return ""
    words = [
        str(answer[name]) for name in ("error", "error_description") if isinstance(answer.get(name), str)
    ]
    return f": {': '.join(words)[:_TEXT]}" if words else ""


def _untrusted(error: BaseException) -> bool:
    return any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error))


def _answer(error: Refused, store: str, container: str, key: str, needs: str) -> ChunkStoreError:
    status = error.status
    text, reasons = _content(error)
    kind = _STATUS.get(status, Unavailable if status >= 500 else ChunkStoreError)
    temporary: bool | None = None
    if status == 400 and any(word in text.lower() for word in _CHECKSUM_WORDS):
        # The body was right when it was read: it was changed on the way.
        kind, temporary = IntegrityError, True
    elif status == 403 and reasons & _RATES:
        kind = Unavailable
    elif status == 403 and reasons & _LOCKS:
        kind = Retained
    if kind is NotFound:
        reason = "no such object or container" if key else "no such container"
    elif kind is AlreadyExists:
        reason = "an object is there"
    else:
        reason = f"the server answered {status}" + (f": {text}" if text else "")
    if status == 403 and kind is PermissionDenied and needs:
        reason += f" (needs {needs})"
    return kind(
        reason,
        store=store,
        container=container,
        key=key,
        temporary=temporary,
        retry_after=retry_after(error.headers),
    )


def _content(error: Refused) -> tuple[str, set[str]]:
    """Return the text and the reasons that the answer's body gives."""
    try:
        content = json.loads(error.body)["error"]
        if isinstance(content, str):  # a token server's form
            return content[:_TEXT], set()
        reasons = {str(each.get("reason", "")) for each in content.get("errors", ())}
        return str(content.get("message") or "")[:_TEXT], reasons
    except (AttributeError, KeyError, TypeError, ValueError):
        return "", set()


@contextmanager
def translated(store: str, container: str = "", key: str = "", needs: str = "") -> Iterator[None]:
    """Translate every error of a request in the block."""
    try:
        yield
    except ERRORS as error:
        raise translate(error, store, container, key, needs) from error
