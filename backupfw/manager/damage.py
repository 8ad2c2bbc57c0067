"""Objects that were found damaged: what the next incremental must store anew."""

from __future__ import annotations

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from backupfw.db import models
from backupfw.db.digest import object_digest
from backupfw.db.locks import put
from backupfw.db.session import now
from backupfw.manager.outcome import Outcomes


class Damage(Outcomes):
    """The list of damaged objects."""

    def damaged_keys(self, store: str, container: str, prefix: str = "") -> frozenset[str]:
        """Return the keys of damaged objects that start with ``prefix``."""
        row = models.DamagedObject
        with self._db.read() as session:
            found = session.scalars(
                select(row.key).where(
                    row.store == store,
                    row.container == container,
                    row.key.startswith(prefix, autoescape=True),
                )
            )
            return frozenset(found)

    def record_damage(self, store: str, container: str, key: str, reason: str) -> None:
        """Enter an object, or its newest reason.

        :param reason: what is wrong; cut to 255 characters.
        """

        def work(session: Session) -> None:
            found = {
                "digest": object_digest(store, container, key),
                "store": store,
                "container": container,
                "key": key,
                "reason": reason[: models.TEXT_LENGTH],
                "found_at": now(session),
            }
            put(session, models.DamagedObject, [found])

        self._db.run(work)

    def clear_damage(self, store: str, container: str, key: str) -> None:
        """Take an object off the list: it was found whole, or it is deleted; idempotent."""

        def work(session: Session) -> None:
            row = models.DamagedObject
            session.execute(delete(row).where(row.digest == object_digest(store, container, key)))

        self._db.run(work)

    def clear_damage_below(self, store: str, container: str, prefix: str) -> None:
        """Take all objects below a prefix off the list: they are deleted."""

        def work(session: Session) -> None:
            row = models.DamagedObject
            session.execute(
                delete(row).where(
                    row.store == store,
                    row.container == container,
                    row.key.startswith(prefix, autoescape=True),
                ),
                execution_options={"synchronize_session": False},
            )

        self._db.run(work)
