"""Listings: filtered, sorted and paged; the same for all resources.

A page begins after its marker by comparing sort values with the marker's own (keyset), so every page costs
the same, and rows that appear or disappear before it do not shift it.  ``created_at`` and ``id``
are appended as tie-breaks, which makes every order total.  NULL sorts as the smallest value, on every
database.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from sqlalchemy import Boolean, ColumnElement, Integer, Select, String, and_, case, false, func, or_, select
from sqlalchemy.orm import Session

from backupfw import moments
from backupfw.db.models import (
    Backup,
    BackupPolicy,
    Message,
    PolicyRun,
    Snapshot,
    Transfer,
    Volume,
    VolumeType,
)
from backupfw.db.types import UtcDateTime
from backupfw.errors import InvalidInput, MarkerNotFound

Row = TypeVar("Row", Backup, Volume, Snapshot, Message, VolumeType, Transfer, BackupPolicy, PolicyRun)
#: A row of any of them.
AnyRow = Backup | Volume | Snapshot | Message | VolumeType | Transfer | BackupPolicy | PolicyRun

#: The API's words for columns, beside the columns' own names.
_WORDS = {"name": "display_name", "description": "display_description"}
#: Columns by which listings neither filter nor sort: they are internal.
_PRIVATE = frozenset({"location", "previous_status", "deleted", "deleted_at", "settings"})
_TRUE = frozenset({"1", "t", "true", "on", "y", "yes"})
_FALSE = frozenset({"0", "f", "false", "off", "n", "no"})
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)


def page(
    session: Session,
    model: type[Row],
    *,
    project_id: str | None,
    filters: Mapping[str, str],
    sort: Sequence[tuple[str, str]],
    limit: int | None,
    marker: str | None = None,
    offset: int = 0,
    with_count: bool = False,
    where: Sequence[ColumnElement[bool]] = (),
    reachable: Sequence[ColumnElement[bool]] = (),
    columns: Sequence[ColumnElement[Any]] = (),
) -> tuple[Sequence[Any], int | None]:
    """Return one page of rows that are not deleted, and their total number if asked for.

    :param project_id: only this project's; None for all.
    :param filters: column (or ``name``, ``description``) to value as text; a key that ends in ``~``
        asks for a part of the text.  A column the model does not have, or a value that the column
        cannot hold, matches nothing.
    :param sort: ``(column, "asc" | "desc")``, most significant first; empty: newest first.
    :param limit: at most so many rows; None for all.
    :param marker: id of the row before the page.
    :param offset: rows to skip after the marker.
    :param where: further conditions.
    :param reachable: further conditions on the marker, which may be deleted by now.
    :param columns: the columns of each row, as tuples; empty: mapped objects, which cost several times as
        much.
    :raises InvalidInput: a sort key or direction is unknown.
    :raises MarkerNotFound: the marker is no row (of this project).
    """
    keys = _keys(model, sort)
    chosen = conditions(model, project_id=project_id, filters=filters, where=where)
    total = None
    if with_count:
        total = session.scalar(select(func.count()).select_from(model).where(*chosen))
    query: Select[Any] = select(*columns) if columns else select(model)
    query = query.where(*chosen)
    if marker is not None:
        # Changes of the row since the previous page, or its deletion, do not change the place of the page.
        visible = conditions(model, project_id=project_id, filters={}, where=reachable, deleted=True)
        before = session.scalar(select(model).where(model.id == marker, *visible))
        if before is None:
            raise MarkerNotFound(marker)
        query = query.where(_after(before, keys))
    for column, descending in keys:
        if column.nullable:
            present = case((column.is_(None), 0), else_=1)
            query = query.order_by(present.desc() if descending else present.asc())
        query = query.order_by(column.desc() if descending else column.asc())
    if limit is not None:
        query = query.limit(limit)
    if offset:
        if limit is None:
            # MariaDB knows no OFFSET without LIMIT.
            query = query.limit((1 << 63) - 1)
        query = query.offset(offset)
    return (session.connection().execute(query) if columns else session.scalars(query)).all(), total


def conditions(
    model: type[Row],
    *,
    project_id: str | None,
    filters: Mapping[str, str],
    where: Sequence[ColumnElement[bool]] = (),
    deleted: bool = False,
) -> list[ColumnElement[bool]]:
    """Return the conditions of a listing's rows; parameters as of :func:`page`.

    :param deleted: include deleted rows.
    """
    found: list[ColumnElement[bool]] = [*where]
    if not deleted and issubclass(model, Backup | Volume | Snapshot):
        # Not IS: MariaDB uses no index for that.
        found.append(model.deleted == false())
    if project_id is not None and not issubclass(model, VolumeType):
        found.append(model.project_id == project_id)
    return [*found, *(_condition(model, name, text) for name, text in filters.items())]


def column_of(model: type[AnyRow], name: str) -> Any:
    """Return the column of a name in the API, or None."""
    if name not in model.__table__.columns:
        name = _WORDS.get(name, name)
    if name in _PRIVATE or name not in model.__table__.columns:
        return None
    return getattr(model, name)


def _keys(model: type[Row], sort: Sequence[tuple[str, str]]) -> list[tuple[Any, bool]]:
    wanted = [(name, direction) for name, direction in sort]
    default = wanted[0][1] if wanted else "desc"
    wanted.extend((name, default) for name in ("created_at", "id"))
    keys: dict[str, tuple[Any, bool]] = {}
    for name, direction in wanted:
        column = column_of(model, name)
        if column is None:
            raise InvalidInput("Sort key supplied was not valid.")
        if direction not in ("asc", "desc"):
            raise InvalidInput("Unknown sort direction, must be 'desc' or 'asc'.")
        keys.setdefault(column.key, (column, direction == "desc"))
    return list(keys.values())


def _after(before: AnyRow, keys: Sequence[tuple[Any, bool]]) -> ColumnElement[bool]:
    """Rows that come after ``before``: equal in the first keys and beyond it in the next, for some n."""
    choices = []
    equal: list[ColumnElement[bool]] = []
    for column, descending in keys:
        value = getattr(before, column.key)
        choices.append(and_(*equal, _beyond(column, value, descending)))
        equal.append(column.is_(None) if value is None else column == value)
    column, descending = keys[0]
    value = getattr(before, column.key)
    if column.nullable or isinstance(value, bool):
        return or_(*choices)
    # This follows from the alternatives, but no database sees that.  It lets an index scan begin at the row.
    return and_(column <= value if descending else column >= value, or_(*choices))


def _beyond(column: Any, value: Any, descending: bool) -> ColumnElement[bool]:
    result: ColumnElement[bool]
    if value is None:
        result = false() if descending else column.is_not(None)
    elif isinstance(value, bool):
        result = column.is_(not value) if value is descending else false()
    elif descending:
        result = or_(column < value, column.is_(None)) if column.nullable else column < value
    else:
        result = column > value
    return result


def _condition(model: type[Row], name: str, text: str) -> ColumnElement[bool]:
    """Return the condition of one filter."""
    part = name.endswith("~")
    column = column_of(model, name.removesuffix("~"))
    result: ColumnElement[bool] = false()
    if column is None:
        return result
    kind = column.type
    if isinstance(kind, String):
        result = column.contains(text, autoescape=True) if part else column == text
    elif part:
        pass
    elif isinstance(kind, Boolean):
        word = text.strip().lower()
        if word in _TRUE | _FALSE:
            result = column.is_(word in _TRUE)
    elif isinstance(kind, Integer):
        if _INTEGER.fullmatch(text):
            result = column == int(text)
    elif isinstance(kind, UtcDateTime):
        with suppress(ValueError):
            result = column == moments.parse(text)
    return result
