"""Listings: which rows a caller asks for, which of them he may see, and which are too old for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, TypeVar

from sqlalchemy import ColumnElement, and_, delete, or_, select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import queries
from backupfw.db.models import (
    Action,
    Backup,
    BackupPolicy,
    Message,
    PolicyRun,
    Snapshot,
    SnapshotMetadata,
    Transfer,
    Volume,
    VolumeMetadata,
)
from backupfw.db.session import Database
from backupfw.manager.metadata import matches

Row = TypeVar("Row", Backup, Volume, Snapshot, Message, Transfer, BackupPolicy, PolicyRun)

#: Tables with the pairs that a filter ``metadata`` compares.
_METADATA: dict[Any, Any] = {Volume: VolumeMetadata, Snapshot: SnapshotMetadata}

#: The host of a volume that all hosts can open.
EVERY_HOST = "*"

#: How many rows one transaction of a purge deletes.
_BATCH = 1000


class Paging(TypedDict, total=False):
    """The parameters of a listing; see :func:`backupfw.db.queries.page`.

    ``all_tenants`` asks for resources of all projects; it is ignored unless the caller is an administrator.
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
    """The filters, as :func:`backupfw.db.queries.conditions` takes them."""

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
    """Return the conditions for the rows that a caller asks for and may see.

    :param where: further conditions.
    """
    chosen, conditions = dict(filters or {}), list(where)
    if model is Volume and (host := chosen.pop("host", None)) is not None:
        conditions.append(_is_at(host))
    if issubclass(model, Volume | Snapshot):
        # Who wants volumes of a foreign catalogue asks that catalogue.
        conditions.append(model.mirrored_at.is_(None))
    if model in _METADATA and (pairs := chosen.pop("metadata", None)) is not None:
        conditions.append(matches(_METADATA[model], model.id, pairs))
    return Scope(None if all_tenants and ctx.is_admin else ctx.project_id, chosen, conditions)


def _is_at(text: str) -> ColumnElement[bool]:
    """The condition that a volume is at a host: ``HOST``, ``HOST@BACKEND`` or ``HOST@BACKEND#BACKEND``.

    A volume that all hosts can open is at :data:`EVERY_HOST`.
    """
    host, mark, place = text.rpartition("@")
    backend, _, pool = place.partition("#")
    if not mark or pool not in ("", backend):
        return Volume.host == text
    there = Volume.host.is_(None) if host == EVERY_HOST else Volume.host == host
    # A host's name may have an "@" itself.
    return or_(Volume.host == text, and_(there, Volume.backend == backend))


def page(
    session: Session,
    model: type[Row],
    ctx: RequestContext,
    paging: Paging,
    where: Sequence[ColumnElement[bool]] = (),
    columns: Sequence[ColumnElement[Any]] = (),
) -> tuple[Sequence[Any], int | None]:
    """Return one page of the rows that a caller asks for, and their total number if he asks for it.

    :param where: further conditions.
    :param columns: what the page has of each row; see :func:`backupfw.db.queries.page`.
    :raises InvalidInput: a sort key or direction is unknown.
    :raises MarkerNotFound: the marker is no resource that this caller can see.
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


def purge(db: Database, model: type[Message | Action], oldest: Callable[[Session], datetime]) -> int:
    """Delete the rows of a table that are too old to be shown; return how many there were.

    Any process may do it, at any time.

    :param oldest: returns the moment, naive UTC, after which the rows were made that stay.
    """
    purged = 0
    while True:
        # A read takes no write lock, and nearly always there is nothing to delete.
        with db.read() as session:
            old = select(model.id).where(model.created_at <= oldest(session))
            found = session.scalars(old.order_by(model.created_at).limit(_BATCH)).all()
        if not found:
            return purged
        deletion = delete(model).where(model.id.in_(found))
        db.run(lambda session, deletion=deletion: session.execute(deletion))  # type: ignore[misc]
        purged += len(found)
