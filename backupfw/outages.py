"""Outages: log once when repeated work in the background begins to fail, and once when it works again.

Without this, a database that is full or away would fill the log, because the service uses it many times a
minute.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from oslo_db.exception import DBConnectionError, DBDeadlock
from oslo_log import log

from backupfw.errors import DatabaseUnwritable

LOG = log.getLogger(__name__)

#: Errors of the database that can remain after ``Database.run`` has repeated the transaction.
DATABASE_TROUBLES = (DBConnectionError, DBDeadlock, DatabaseUnwritable)


def database_words(error: BaseException) -> str:
    """Return in one line what the database's client library said, without the statement and its values."""
    inner = getattr(error, "inner_exception", None) or error.__cause__ or error
    return " ".join(str(getattr(inner, "orig", None) or inner).split())


class Outages:
    """The activities of one process, or a part of it, that fail now.  Thread-safe.

    While the database fails, many activities may fail, again and again.  The log has one line when the first
    one fails, and one when all work again.  Any other error is logged with its traceback, once for each
    activity.
    """

    def __init__(self) -> None:
        self._failing: dict[str, type[BaseException]] = {}
        self._since = 0.0
        self._lock = threading.Lock()

    @contextmanager
    def guard(self, failure: str) -> Iterator[None]:
        """Keep errors of an activity from its caller, which does it again later.

        :param failure: what the log says when the activity fails, e.g. ``Tasks could not be claimed``; the
            same activity has the same words each time.
        """
        try:
            yield
        except Exception as error:  # noqa: BLE001  (each one is logged)
            self._failed(failure, error)
        else:
            self._worked(failure)

    def fails(self, failure: str) -> bool:
        """Return whether an activity failed when it was done last."""
        with self._lock:
            return failure in self._failing

    def _failed(self, failure: str, error: Exception) -> None:
        trouble = isinstance(error, DATABASE_TROUBLES)
        # All errors of the database are one outage, also if it is first away and then full.
        kind = DBConnectionError if trouble else type(error)
        with self._lock:
            known = kind in self._failing.values() if trouble else self._failing.get(failure) is kind
            if not self._failing:
                self._since = time.monotonic()
            self._failing[failure] = kind
        if known:
            LOG.debug("%s again: %s", failure, database_words(error))
        elif trouble:
            LOG.error("%s, trying again; the database failed: %s", failure, database_words(error))
        else:
            LOG.error("%s, trying again", failure, exc_info=error)

    def _worked(self, failure: str) -> None:
        with self._lock:
            if self._failing.pop(failure, None) is None or self._failing:
                return
            seconds = time.monotonic() - self._since
        LOG.warning("What failed for %.0f s works again", seconds)


class Turns:
    """Says which activities of a loop are due.

    One that failed is due again at once.  Otherwise what is done once an hour would be left for an hour, and
    the outage would last as long in the log.

    :param outages: what guards the activities.
    """

    def __init__(self, outages: Outages) -> None:
        self._outages = outages
        self._next: dict[str, float] = {}

    def is_due(self, failure: str, seconds: float) -> bool:
        """Return whether an activity is to be done now.

        :param failure: as of :meth:`Outages.guard`.
        :param seconds: from one time to the next.
        """
        moment = time.monotonic()
        if moment < self._next.get(failure, moment) and not self._outages.fails(failure):
            return False
        self._next[failure] = moment + seconds
        return True

    def hurry(self, failure: str) -> None:
        """Let an activity be due at once.  Any thread may call it."""
        self._next[failure] = time.monotonic()
