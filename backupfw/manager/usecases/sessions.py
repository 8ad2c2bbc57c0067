"""Sessions of the console, in the database: any process of the API knows them, and they outlive a restart.

A row has neither the secret of a browser's cookie nor, in the clear, what its user identified himself with.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from sqlalchemy import bindparam, delete, or_, select, update
from sqlalchemy.orm import Session

from backupfw.db.models import ConsoleSession
from backupfw.db.session import now

if TYPE_CHECKING:
    from backupfw.db.session import Database

#: A session ends so long after its last page.
IDLE = timedelta(minutes=15)
#: It ends so long after its beginning, whatever its user does.
LONGEST = timedelta(hours=12)
#: The time of the last page is recorded as exactly as this, so that few pages write.
_EXACT = timedelta(minutes=1)


class SessionManager:
    """The sessions of all users.  Thread-safe."""

    def __init__(self, db: Database) -> None:
        self._db = db
        row = ConsoleSession
        # It is made once, and the clock comes with the row: every page and every refresh asks.
        wanted = select(row.sealed, row.used_at, row.created_at, db.clock().label("moment"))
        self._wanted = wanted.where(row.digest == bindparam("digest"))

    def begin(self, digest: str, sealed: bytes) -> None:
        """Begin a session, and forget those that are over.

        :param digest: of its secret.
        :param sealed: what :meth:`find` returns.
        """

        def work(session: Session) -> None:
            moment = now(session)
            row = ConsoleSession
            over = or_(row.used_at <= moment - IDLE, row.created_at <= moment - LONGEST)
            session.execute(delete(row).where(over))
            if session.get(row, digest) is None:
                session.add(row(digest=digest, sealed=sealed, created_at=moment, used_at=moment))

        self._db.run(work)

    def find(self, digest: str, *, uses: bool) -> bytes | None:
        """Return what a session was begun with; None: there is none, or it is over.

        :param uses: whether its user does something, so that it lasts longer.
        """
        row = ConsoleSession
        rows = self._db.fetch(self._wanted, {"digest": digest})
        found = rows[0] if rows else None
        if found is None or min(found.used_at + IDLE, found.created_at + LONGEST) <= found.moment:
            return None
        moment: datetime = found.moment
        if uses and found.used_at < moment - _EXACT:
            self._db.run(
                lambda session: session.execute(
                    update(row).where(row.digest == digest).values(used_at=moment),
                    execution_options={"synchronize_session": False},
                )
            )
        sealed: bytes = found.sealed
        return sealed

    def end(self, digest: str) -> None:
        """End a session; one that is over already stays so."""
        self._db.run(
            lambda session: session.execute(delete(ConsoleSession).where(ConsoleSession.digest == digest))
        )
