"""Row locks for decisions: one statement locks the rows, the next one reads them.

A statement that locks and reads at once is wrong in two ways.  Under READ COMMITTED, a statement that waited
sees the newest version of the rows for which it waited, but no rows that were inserted meanwhile.  And on a
Galera cluster a lock exists on its own node only: only a change of the row takes part in certification, which
lets one of two nodes win.  So :func:`lock` changes the row where that matters, and returns only keys; the
caller reads after it what its decision depends on.  A test checks that no other code of the service locks
rows, or reads a row to choose between insert and update.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Update, insert, inspect, select, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session

from backupfw.db.models import Lockable

#: How many rows one statement names at most.
_BATCH = 500


def lock(
    session: Session,
    model: type[Lockable],
    *where: ColumnElement[bool],
    limit: int | None = None,
    skip_locked: bool = False,
) -> list[Any]:
    """Lock rows until the transaction ends; return their primary keys in ascending order.

    Rows are locked in that order.  The session reads their values again at the next use.  On SQLite there is
    only one write transaction at a time anyway.

    :param model: a table whose primary key is one column.
    :param where: which rows.
    :param limit: how many at most, those with the lowest keys.
    :param skip_locked: leave out the rows that another transaction holds, instead of waiting for them.
    """
    session.flush()
    (key,) = inspect(model).primary_key
    backend = session.get_bind().dialect.name
    query = select(key).where(*where).order_by(key)
    if limit is not None:
        query = query.limit(limit)
    if backend != "sqlite":
        query = query.with_for_update(skip_locked=skip_locked)
    found = list(session.scalars(query))
    if backend in ("mysql", "mariadb"):
        for start in range(0, len(found), _BATCH):
            session.execute(
                _touch(model).where(key.in_(found[start : start + _BATCH])),
                execution_options={"synchronize_session": False},
            )
    held = set(found)
    for known in session.identity_map.values():
        if isinstance(known, model) and inspect(known).identity[0] in held:
            session.expire(known)
    return found


def _touch(model: type[Lockable]) -> Update:
    return update(model).values(touched=model.touched + 1)


def insert_if_absent(session: Session, model: type[DeclarativeBase]) -> Any:
    """Return an INSERT that does nothing if the row exists already."""
    backend = session.get_bind().dialect.name
    if backend == "postgresql":
        return postgresql.insert(model).on_conflict_do_nothing()
    if backend == "sqlite":
        return sqlite.insert(model).on_conflict_do_nothing()
    return insert(model).prefix_with("IGNORE")


def put(session: Session, model: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or overwrite existing ones, in one statement each.

    :param rows: the same columns in each, the primary key's among them.
    """
    if not rows:
        return
    keys = [column.name for column in inspect(model).primary_key]
    others = [name for name in rows[0] if name not in keys]
    backend = session.get_bind().dialect.name
    statement: Any
    if backend in ("mysql", "mariadb"):
        statement = mysql.insert(model)
        statement = statement.on_duplicate_key_update({name: statement.inserted[name] for name in others})
    else:
        statement = postgresql.insert(model) if backend == "postgresql" else sqlite.insert(model)
        statement = statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in others}
        )
    # Always in the same order, so that two transactions do not wait for each other.
    session.execute(statement, sorted(rows, key=lambda row: [row[key] for key in keys]))
    for known in session.identity_map.values():
        if isinstance(known, model):
            session.expire(known)
