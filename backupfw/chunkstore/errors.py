"""The errors of chunk stores: kind x {permanent, temporary}, drawn as one tree.

::

    ChunkStoreError            kind OTHER, permanent unless told otherwise
     +- NotFound               no such object or container
     +- AlreadyExists          put with if_absent met an object
     +- RangeError             a range reaches past the object's end
     +- IntegrityError         bytes are not what was declared or promised
     +- PermissionDenied       credentials are wrong or not sufficient
     |   +- Retained           a lock or retention period of the store still keeps the object
     +- NoSpace                the store is full or a quota is reached
     +- InvalidName            a key or container name this store cannot take
     +- NotSupported           a capability the store does not declare
     +- Unavailable            the store does not answer, or not in time: temporary
     +- DeleteFailed           some keys of a bulk delete remain; lists each with its error

``temporary`` is set where the error is made, and no layer changes it.  It decides whether the retry layer
repeats the call, and whether the task as a whole is tried again later (``may_pass``).  A driver has one
function that turns its SDK's errors into these, always with ``raise … from cause``.  A message names store,
container and key, never a credential.  Users read ``for_user``.

Two functions help a driver to translate: :func:`causes` and :func:`retry_after`.
"""

from __future__ import annotations

import email.utils
import math
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from backupfw.errors import BackupfwError


class ChunkStoreError(BackupfwError):
    """An operation on a chunk store failed.

    :param reason: what went wrong, without credentials.
    :param store: the configured store's name.
    :param container: the container, if one is concerned.
    :param key: the object's key, if one is concerned.
    :param temporary: whether the same call may work later; None takes the class's default.
    :param retry_after: seconds the store asked to wait, if it did.
    :param for_user: a sentence that says what went wrong to a user, where the error's kind does not say
        enough: no host, path, bucket, option's value or credential.
    """

    default_temporary = False

    def __init__(
        self,
        reason: str,
        *,
        store: str = "",
        container: str = "",
        key: str = "",
        temporary: bool | None = None,
        retry_after: float | None = None,
        for_user: str = "",
    ) -> None:
        where = ", ".join(
            f"{label} {value}"
            for label, value in (("store", store), ("container", container), ("key", key))
            if value
        )
        super().__init__(f"{where}: {reason}" if where else reason)
        self.reason = reason
        self.store = store
        self.container = container
        self.key = key
        self.temporary = self.default_temporary if temporary is None else temporary
        self.may_pass = self.temporary or type(self).may_pass
        self.retry_after = retry_after
        self.for_user = for_user


class NotFound(ChunkStoreError):
    """The object or container is not there."""


class AlreadyExists(ChunkStoreError):
    """An object is there already and ``if_absent`` was asked for."""


class RangeError(ChunkStoreError):
    """The range asked for reaches past the object's end."""


class IntegrityError(ChunkStoreError):
    """Bytes differ from what was declared (put) or from what the store promised (get).

    On a get over a network it is temporary: a second read may tell a fault of the wire from one of the
    stored bytes.
    """


class PermissionDenied(ChunkStoreError):
    """The store refuses these credentials, or they lack a permission."""


class Retained(PermissionDenied):
    """An object lock, a hold or a retention period keeps the object until it runs out.

    :param until: when that is, with a time zone; None if it is not known.
    """

    def __init__(self, reason: str, *, until: datetime | None = None, **where: Any) -> None:
        super().__init__(reason, **where)
        self.until = until


class NoSpace(ChunkStoreError):
    """The store is full, or a quota on it is reached.

    The same call fails again at once, so it is permanent; but there may be space before the next attempt.
    """

    may_pass = True


class InvalidName(ChunkStoreError):
    """The store cannot take this key or container name."""


class NotSupported(ChunkStoreError):
    """The call needs a capability that the store does not declare."""


class Unavailable(ChunkStoreError):
    """The store does not answer, not in time, or says that it is overloaded."""

    default_temporary = True


class DeleteFailed(ChunkStoreError):
    """Some keys of a delete remain.

    Temporary when every error in it is.  Another attempt deletes what remains, whatever kept it.

    :param errors: each remaining key with its error.
    :param count: how many keys remain, if not all of them are named.
    """

    may_pass = True

    def __init__(
        self,
        errors: Mapping[str, ChunkStoreError],
        *,
        store: str = "",
        container: str = "",
        count: int | None = None,
    ) -> None:
        key, first = next(iter(errors.items()))
        self.count = count or len(errors)
        super().__init__(
            f"{self.count} object(s) could not be deleted, the first: {first.reason}",
            store=store,
            container=container,
            key=key,
            temporary=all(error.temporary for error in errors.values()),
            for_user=first.for_user,
        )
        self.errors = dict(errors)


def locked_until(error: BaseException) -> datetime | None:
    """Return when a delete that failed can succeed, if nothing but locks with a known end was in its way."""
    each = error.errors.values() if isinstance(error, DeleteFailed) else (error,)
    ends = [one.until if isinstance(one, Retained) else None for one in each]
    return max((end for end in ends if end is not None), default=None) if None not in ends else None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and every exception that it was made of, each once, in no particular order.

    Looks at ``__cause__`` and ``__context__``, and where libraries keep the error that they met: in ``args``
    (requests, urllib3), in ``reason`` (urllib3) and in ``kwargs`` (botocore).  A library's outermost class
    often does not tell a certificate that is not trusted from a connection that broke; the error inside does.
    """
    todo: list[object] = [error]
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if not isinstance(each, BaseException) or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        kept = getattr(each, "kwargs", None)
        todo += [each.__cause__, each.__context__, getattr(each, "reason", None), *each.args]
        todo += kept.values() if isinstance(kept, Mapping) else ()


def retry_after(headers: Mapping[str, str] | None) -> float | None:
    """Return the seconds that an answer's ``Retry-After`` header asks to wait; never negative.

    Understands both forms of HTTP: a number of seconds, and a date, which is compared with this host's clock.

    :param headers: the answer's, their names in any case; None for no answer.
    :returns: None if there is no such header, or if it cannot be understood.
    """
    text = next((value for name, value in (headers or {}).items() if name.lower() == "retry-after"), "")
    if not text.isascii():
        # Python reads the digits of every script as a number.
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = email.utils.parsedate_to_datetime(text)
            # A date of HTTP is in UTC, whether or not it says so.
            seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
