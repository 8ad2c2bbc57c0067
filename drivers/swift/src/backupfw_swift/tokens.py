"""Keeps one token for all threads of a store and renews it before it expires or when it is refused.

keystoneauth1 gets the tokens, but its plug-ins do not renew them as a backup needs it: they trust this host's
clock, every thread waits while a good token is renewed, a token of less than two minutes is renewed with each
request, and they fail while Keystone is away although the token is good.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from backupfw.chunkstore.errors import ChunkStoreError

_LOG = logging.getLogger(__name__)

#: The first part of a token's life, in which it is not renewed, whatever the options say.
_FRESH = 0.25
#: Seconds between two tries to renew a token that is still good.
_PAUSE = 5.0
#: Seconds for which :meth:`Tokens.doubt` does not renew a new token.
_YOUNG = 60.0


@dataclass(frozen=True, slots=True)
class Grant:
    """What the authentication service gave.

    :ivar url: the account's URL.
    :ivar token: the secret to send with each request.
    :ivar lifetime: seconds from now for which it is good, by the service's own clock; None if unknown.
    """

    url: str
    token: str = field(repr=False)
    lifetime: float | None = None


class Tokens:
    """One grant, shared.  Thread-safe; at most one thread authenticates at a time.

    :param authenticate: gets a new grant; raises ChunkStoreError.
    :param renew_before: seconds before the end of its life at which a grant is renewed.
    """

    def __init__(
        self,
        authenticate: Callable[[], Grant],
        renew_before: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._authenticate = authenticate
        self._renew_before = renew_before
        self._clock = clock
        self._lock = threading.Lock()
        self._grant: Grant | None = None
        # By the local monotonic clock; wall clocks of client and server need not agree.
        self._since = 0.0
        self._renew_at = 0.0
        self._ends_at = 0.0

    def current(self) -> Grant:
        """Return a grant that should be good, renewing it where it is time.

        While one thread renews a token that is still good, others go on with it; so does everybody when
        the authentication service cannot be reached.

        :raises ChunkStoreError: there is no good grant, and none to be had.
        """
        grant = self._grant
        if grant is not None and self._clock() < self._renew_at:
            return grant
        if not self._lock.acquire(blocking=not self._good()):
            # Do not wait while the grant is good.  If the server refuses it, the caller asks again.
            return grant if grant is not None else self.current()
        try:
            if self._grant is None or self._clock() >= self._renew_at:
                self._renew()
            assert self._grant is not None
            return self._grant
        finally:
            self._lock.release()

    def after(self, refused: Grant) -> Grant:
        """Return another grant than one that the server refused.

        :raises ChunkStoreError: none is to be had.
        """
        with self._lock:
            if self._grant is refused:
                self._grant = None
            if self._grant is None:
                self._renew()
            assert self._grant is not None
            return self._grant

    def doubt(self) -> None:
        """Renew the grant at the next call, unless it is young: it may have been the reason of a fault.

        Some servers refuse a token by breaking the connection before the body has come.
        """
        with self._lock:
            if self._clock() >= self._since + _YOUNG:
                self._renew_at = self._clock()

    def _good(self) -> bool:
        return self._grant is not None and self._clock() < self._ends_at

    def _renew(self) -> None:
        start = self._clock()
        try:
            grant = self._authenticate()
        except ChunkStoreError as error:
            if not self._good():
                raise
            _LOG.warning("a token that expires soon cannot be renewed yet: %s", error)
            self._renew_at = self._clock() + _PAUSE
            return
        if grant.lifetime is None:
            self._renew_at = self._ends_at = float("inf")
        else:
            self._ends_at = start + grant.lifetime
            self._renew_at = max(self._ends_at - self._renew_before, start + _FRESH * grant.lifetime)
        self._grant, self._since = grant, start
