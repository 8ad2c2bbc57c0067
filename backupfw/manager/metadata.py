"""Metadata of volumes and snapshots: pairs of texts, changed under the owner's lock."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import ColumnElement, and_, delete, false, select
from sqlalchemy.orm import Session

from backupfw import naming
from backupfw.db.locks import put
from backupfw.db.models import SnapshotMetadata, VolumeImageMetadata, VolumeMetadata
from backupfw.db.session import now
from backupfw.errors import InvalidInput, KeyNotFound

if TYPE_CHECKING:
    from backupfw.context import RequestContext
    from backupfw.db.models import Snapshot, Volume
    from backupfw.db.session import Database

Model = type[VolumeMetadata] | type[SnapshotMetadata] | type[VolumeImageMetadata]


def _owner(model: Model) -> Any:
    return model.snapshot_id if issubclass(model, SnapshotMetadata) else model.volume_id


def pairs(session: Session, model: Model, owner_id: str) -> dict[str, str]:
    """Return the owner's metadata."""
    found = session.execute(select(model.key, model.value).where(_owner(model) == owner_id))
    return {row.key: row.value for row in found}


def add(session: Session, model: Model, owner_id: str, metadata: Mapping[str, str]) -> None:
    """Add and overwrite keys.  The caller has locked the owner's row."""
    column = _owner(model).key
    put(session, model, [{column: owner_id, "key": key, "value": value} for key, value in metadata.items()])


def replace(session: Session, model: Model, owner_id: str, metadata: Mapping[str, str]) -> None:
    """Replace the whole map.  The caller has locked the owner's row."""
    session.execute(delete(model).where(_owner(model) == owner_id, model.key.not_in([*metadata])))
    add(session, model, owner_id, metadata)


class Find(Protocol):
    """How a :class:`Metadata` finds an owner."""

    def __call__(
        self, session: Session, ctx: RequestContext, owner_id: str, /, *, lock: bool = False
    ) -> Volume | Snapshot:
        """Return the row of an owner that a caller may see, held until the transaction ends if asked."""


class Metadata:
    """One map of texts for each volume, or each snapshot.  Thread-safe.

    :param model: the pairs' table.
    :param find: how an owner is found; what it raises if the caller sees none, all methods raise.
    """

    def __init__(self, db: Database, model: Model, find: Find) -> None:
        self._db = db
        self._model = model
        self._find = find

    def get(self, ctx: RequestContext, owner_id: str) -> Mapping[str, str]:
        """Return the owner's map."""
        with self._db.read() as session:
            self._find(session, ctx, owner_id)
            return pairs(session, self._model, owner_id)

    def set(self, ctx: RequestContext, owner_id: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Add and overwrite keys; return the whole map."""
        return self._change(ctx, owner_id, metadata, add)

    def replace(self, ctx: RequestContext, owner_id: str, metadata: Mapping[str, str]) -> Mapping[str, str]:
        """Replace the whole map; return the new one."""
        return self._change(ctx, owner_id, metadata, replace)

    def delete_key(self, ctx: RequestContext, owner_id: str, key: str) -> None:
        """Remove one key.

        :raises KeyNotFound: the owner has no such key.
        """

        def work(session: Session) -> None:
            self._touch(session, ctx, owner_id)
            found = session.get(self._model, (owner_id, key))
            if found is None:
                raise KeyNotFound(key)
            session.delete(found)

        self._db.run(work)

    def _change(
        self,
        ctx: RequestContext,
        owner_id: str,
        metadata: Mapping[str, str],
        change: Callable[[Session, Model, str, Mapping[str, str]], None],
    ) -> Mapping[str, str]:
        def work(session: Session) -> Mapping[str, str]:
            self._touch(session, ctx, owner_id)
            change(session, self._model, owner_id, metadata)
            return pairs(session, self._model, owner_id)

        return self._db.run(work)

    def _touch(self, session: Session, ctx: RequestContext, owner_id: str) -> None:
        # Without the lock, two changes of one key at the same time could both insert it.
        self._find(session, ctx, owner_id, lock=True).updated_at = now(session)
        session.flush()


def matches(model: Model, owner_id: Any, text: str) -> ColumnElement[bool]:
    """Return the condition that an owner has all pairs of a listing's ``metadata`` filter.

    :param owner_id: the owner's id column.
    :param text: the pairs as clients write them, e.g. ``{'tier': 'gold'}``; what is no map of texts
        matches nothing.
    :raises InvalidInput: one of the texts has characters that cannot be stored; as an escape they pass
        earlier checks.
    """
    wanted = _filter_pairs(text)
    if wanted is None:
        return false()
    return and_(
        True,
        *(
            # Not EXISTS: PostgreSQL would first search the metadata of all owners, without an index.
            select(model.value).where(_owner(model) == owner_id, model.key == key).scalar_subquery() == value
            for key, value in wanted.items()
        ),
    )


def _filter_pairs(text: str) -> dict[str, str] | None:
    if len(text) > naming.MAX_FIELD:
        return None
    try:
        value = ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    texts = [*value.keys(), *value.values()]
    if not all(isinstance(item, str) for item in texts):
        return None
    for item in texts:
        if (problem := naming.input_problem(item)) is not None:
            raise InvalidInput(f"metadata: {item!a}: {problem}")
    return value
