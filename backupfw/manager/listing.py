"""What a caller asks of a listing, and what of it he may see: the same for everything that is listed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, TypeVar

from sqlalchemy import ColumnElement
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import queries
from backupfw.db.models import Backup, Message, Snapshot, SnapshotMetadata, Transfer, Volume, VolumeMetadata
from backupfw.manager.metadata import matches

Row = TypeVar("Row", Backup, Volume, Snapshot, Message, Transfer)

#: Tables whose pairs a filter ``metadata`` asks for.
_METADATA: dict[Any, Any] = {Volume: VolumeMetadata, Snapshot: SnapshotMetadata}


class Paging(TypedDict, total=False):
    """What a caller may ask for; see :func:`backupfw.db.queries.page`.

    ``all_tenants`` means every project's, and is heard only from administrators.
    """

    filters: Mapping[str, str] | None
    all_tenants: bool
    limit: int | None
    marker: str | None
    offset: int
    sort: Sequence[tuple[str, str]]
    with_count: bool


@dataclass(frozen=True, slots=True)
class Scope:
    """Which rows are meant, as :func:`backupfw.db.queries.conditions` takes it."""

    project_id: str | None
    filters: Mapping[str, str]
    where: Sequence[ColumnElement[bool]]


def scope(
    model: type[Row],
    ctx: RequestContext,
    filters: Mapping[str, str] | None,
    all_tenants: bool,
    where: Sequence[ColumnElement[bool]] = (),
) -> Scope:
    """Return which rows a caller means, of those that are there for him.

    :param where: further conditions.
    """
    chosen, conditions = dict(filters or {}), list(where)
    if model in _METADATA and (pairs := chosen.pop("metadata", None)) is not None:
        conditions.append(matches(_METADATA[model], model.id, pairs))
    return Scope(None if all_tenants and ctx.is_admin else ctx.project_id, chosen, conditions)


def page(
    session: Session,
    model: type[Row],
    ctx: RequestContext,
    paging: Paging,
    where: Sequence[ColumnElement[bool]] = (),
    columns: Sequence[ColumnElement[Any]] = (),
) -> tuple[Sequence[Any], int | None]:
    """Return one page of the rows a caller means, and how many there are in all if he asks.

    :param where: further conditions.
    :param columns: what the page has of each row; see :func:`backupfw.db.queries.page`.
    :raises InvalidInput: a sort key or direction is unknown.
    :raises MarkerNotFound: the marker is nothing that this caller can see.
    """
    meant = scope(model, ctx, paging.get("filters"), paging.get("all_tenants", False), where)
    return queries.page(
        session,
        model,
        project_id=meant.project_id,
        filters=meant.filters,
        sort=paging.get("sort", ()),
        limit=paging.get("limit"),
        marker=paging.get("marker"),
        offset=paging.get("offset", 0),
        with_count=paging.get("with_count", False),
        where=meant.where,
        reachable=where,
        columns=columns,
    )
