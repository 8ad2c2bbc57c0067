"""States and allowed moves, as data, and the one function that carries a move out.

Every change of a status is one conditional UPDATE (``… WHERE id = ? AND status IN (allowed)``): of two
concurrent requests, the second one finds no row and is refused, on any database.  ``backupfw lifecycle``
prints the diagram from these tables (:func:`mermaid`), so the diagram is always right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import CursorResult, func, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.util import identity_key

from backupfw.db.models import Backup, BackupCopy, Snapshot, Volume
from backupfw.db.session import now

CREATING = "creating"
"""A backup being made or checked after an import; a volume or snapshot being made."""

COPYING = "copying"
"""A copy of a backup that a task makes."""

AVAILABLE = "available"
"""Ready for use."""

ERROR = "error"
"""The operation that made it failed, or an administrator set this status; it can be deleted."""

DELETING = "deleting"
"""A task removes it."""

ERROR_DELETING = "error_deleting"
"""Its deletion failed.  The service tries the deletion of a backup again after a while."""

DELETED = "deleted"
"""Gone; the row stays, hidden."""

RESTORING = "restoring"
"""A backup that a task writes to a volume."""

IN_USE = "in-use"
"""A volume with an attachment."""

BACKING_UP = "backing-up"
"""A volume or snapshot that is being backed up; it returns to its ``previous_status``."""

RESTORING_BACKUP = "restoring-backup"
"""A volume that a backup is written to."""

ERROR_RESTORING = "error_restoring"
"""A volume that a restore left half written."""

ATTACHING = "attaching"
"""A volume that is about to be attached.  Only administrators set this status and the next four."""

DETACHING = "detaching"
"""A volume that is about to be detached."""

MAINTENANCE = "maintenance"
"""A volume that an administrator works on."""

MANAGING = "managing"
"""A volume that is being taken over."""

ERROR_MANAGING = "error_managing"
"""A volume that could not be taken over."""

AWAITING_TRANSFER = "awaiting-transfer"
"""A volume that its project offers to others."""

EXTENDING = "extending"
"""A volume that is being made larger."""

ERROR_EXTENDING = "error_extending"
"""A volume that could not be made larger."""

WRITING = "writing"
"""A manifest whose backup is being made: its objects may be incomplete."""

ANNOUNCED = "announced"
"""A key under which an attempt may put a manifest; it is committed, or given up (``gone``), never both."""

LIVE = "live"
"""A manifest in its store, named by backups; children may share its objects."""

RELEASED = "released"
"""A manifest that no backup uses, and that none can use again; its objects are being deleted."""

GONE = "gone"
"""A manifest whose own objects are deleted; it stays in the lineage while it is a fork."""

ANY = "*"
"""In a move: from every status except ``deleted``."""

PREVIOUS = "previous status"
"""As a move's target: the status that the resource had before the move that remembered it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One allowed change of a status: a :class:`Move` or a :class:`FailingMove`.

    :ivar name: what happens, for the diagram.
    :ivar sources: the statuses it starts from; ``(ANY,)`` for all.
    :ivar target: the status it leads to, or :data:`PREVIOUS`.
    :ivar remember: keep the status it starts from in ``previous_status``.
    """

    name: str
    sources: tuple[str, ...]
    target: str
    remember: bool = False


@dataclass(frozen=True, slots=True)
class Move(Step):
    """What :func:`move` carries out."""


@dataclass(frozen=True, slots=True)
class FailingMove(Step):
    """An accepted operation failed: :func:`fail` reports it to the user in the same transaction."""


class BackupMoves:
    """The life of a backup."""

    created = Move("created", (CREATING,), AVAILABLE)
    create_failed = FailingMove("create failed", (CREATING,), ERROR)
    restore = Move("restore", (AVAILABLE,), RESTORING)
    restored = Move("restored", (RESTORING,), AVAILABLE)
    restore_failed = FailingMove("restore failed", (RESTORING,), AVAILABLE)
    delete = Move("delete", (AVAILABLE, ERROR), DELETING)
    force_delete = Move("force delete", (ANY,), DELETING)
    delete_again = Move("delete tried again", (DELETING, ERROR_DELETING), DELETING)
    delete_failed = FailingMove("delete failed", (DELETING,), ERROR_DELETING)
    delete_refused = FailingMove("delete refused", (DELETING, ERROR_DELETING), AVAILABLE)
    deleted = Move("deleted", (DELETING,), DELETED)
    reset_available = Move("reset", (ANY,), AVAILABLE)
    reset_error = Move("reset", (ANY,), ERROR)


class CopyMoves:
    """The life of a copy of a backup; its row goes with it."""

    copied = Move("copied", (COPYING,), AVAILABLE)
    copy_failed = FailingMove("copy failed", (COPYING,), ERROR)
    copy_again = Move("copy", (ERROR,), COPYING)
    removed = Move("removed", (COPYING, AVAILABLE, ERROR), DELETED)


class VolumeMoves:
    """The life of a volume."""

    created = Move("created", (CREATING,), AVAILABLE)
    create_failed = FailingMove("create failed", (CREATING,), ERROR)
    back_up = Move("back up", (AVAILABLE,), BACKING_UP, remember=True)
    back_up_forced = Move("back up with force", (AVAILABLE, IN_USE), BACKING_UP, remember=True)
    backed_up = Move("backup ended", (BACKING_UP,), PREVIOUS)
    restore = Move("restore", (AVAILABLE,), RESTORING_BACKUP)
    restored = Move("restored", (RESTORING_BACKUP, CREATING), AVAILABLE)
    # No FailingMove: the failure of a restore is reported by the backup's move.
    restore_failed = Move("restore failed", (RESTORING_BACKUP,), ERROR_RESTORING)
    restore_of_new_failed = Move("restore failed on a new volume", (RESTORING_BACKUP, CREATING), ERROR)
    extend = Move("extend", (AVAILABLE,), EXTENDING)
    extended = Move("extended", (EXTENDING,), AVAILABLE)
    extend_failed = FailingMove("extend failed", (EXTENDING,), ERROR_EXTENDING)
    offer = Move("offer", (AVAILABLE,), AWAITING_TRANSFER)
    transferred = Move("taken, or offer withdrawn", (AWAITING_TRANSFER,), AVAILABLE)
    adopted_again = Move("adopted again", (ERROR, ERROR_RESTORING, ERROR_EXTENDING), AVAILABLE)
    attach = Move("attach", (AVAILABLE,), IN_USE)
    detach = Move("detach", (IN_USE,), AVAILABLE)
    delete = Move("delete", (AVAILABLE, ERROR, ERROR_RESTORING, ERROR_EXTENDING, ERROR_DELETING), DELETING)
    force_delete = Move("force delete", (ANY,), DELETING)
    delete_failed = FailingMove("delete failed", (DELETING,), ERROR_DELETING)
    deleted = Move("deleted", (DELETING,), DELETED)
    forget = Move("forget", delete.sources, DELETED)


class SnapshotMoves:
    """The life of a snapshot."""

    created = Move("created", (CREATING,), AVAILABLE)
    create_failed = FailingMove("create failed", (CREATING,), ERROR)
    back_up = Move("back up", (AVAILABLE,), BACKING_UP, remember=True)
    backed_up = Move("backup ended", (BACKING_UP,), PREVIOUS)
    delete = Move("delete", (AVAILABLE, ERROR, ERROR_DELETING), DELETING)
    force_delete = Move("force delete", (ANY,), DELETING)
    delete_failed = FailingMove("delete failed", (DELETING,), ERROR_DELETING)
    deleted = Move("deleted", (DELETING,), DELETED)


#: Statuses that only a task leads out of.
TRANSIENT = frozenset({CREATING, COPYING, RESTORING, DELETING, BACKING_UP, RESTORING_BACKUP, EXTENDING})

#: Statuses an administrator may set; a volume's or snapshot's reset checks more than this table.
RESETS = {
    Volume: (
        *(CREATING, AVAILABLE, IN_USE, DELETING, ERROR, ERROR_DELETING, ERROR_RESTORING, ERROR_EXTENDING),
        *(ATTACHING, DETACHING, MAINTENANCE, MANAGING, ERROR_MANAGING),
    ),
    Snapshot: (CREATING, AVAILABLE, DELETING, ERROR, ERROR_DELETING),
}

#: Statuses that a creator or remover of a snapshot may report, by the snapshot's present status.
SNAPSHOT_REPORTS = {
    CREATING: (CREATING, AVAILABLE, ERROR),
    DELETING: (DELETING, ERROR_DELETING),
}

#: The noun of each, and the status in which its life begins.
_MACHINES: tuple[tuple[str, type, str], ...] = (
    ("backup", BackupMoves, CREATING),
    ("copy of a backup", CopyMoves, COPYING),
    ("volume", VolumeMoves, CREATING),
    ("snapshot", SnapshotMoves, CREATING),
)


def volume_statuses() -> frozenset[str]:
    """Return the statuses that a volume can have until it is deleted."""
    found = {status for step in moves(VolumeMoves) for status in (*step.sources, step.target)}
    return frozenset(found.union(RESETS[Volume])) - {ANY, PREVIOUS, DELETED}


def reset(status: str) -> Move:
    """Return the move with which an administrator gives any volume or snapshot this status."""
    return Move("reset", (ANY,), status)


def moves(machine: type) -> Iterator[Step]:
    """Yield the moves of a class such as :class:`BackupMoves`, in order."""
    for value in vars(machine).values():
        if isinstance(value, Step):
            yield value


def move(
    session: Session,
    model: type[Backup | BackupCopy | Volume | Snapshot],
    resource_id: str,
    step: Move,
    **values: Any,
) -> bool:
    """Carry a move out: one conditional UPDATE.

    :param session: a write transaction.
    :param step: the move; its status is set, and its ``previous_status`` kept or used up.
    :param values: other columns to set in the same UPDATE.
    :returns: whether the resource was in a status that allows the move (False: nothing changed; also
        when it does not exist or is deleted).
    """
    return _carry_out(session, model, resource_id, step, values)


def fail(
    session: Session,
    model: type[Backup | BackupCopy | Volume | Snapshot],
    resource_id: str,
    step: FailingMove,
    report: Callable[[], None],
    **values: Any,
) -> bool:
    """Carry out the move of an operation that failed, and report it; parameters as of :func:`move`.

    :param report: adds the user message to the transaction; called if the move was done.
    """
    moved = _carry_out(session, model, resource_id, step, values)
    if moved:
        report()
    return moved


def _carry_out(
    session: Session,
    model: type[Backup | BackupCopy | Volume | Snapshot],
    resource_id: str,
    step: Step,
    values: dict[str, Any],
) -> bool:
    statement = update(model).where(model.id == resource_id)
    if not issubclass(model, BackupCopy):
        statement = statement.where(model.deleted.is_(False))
    if step.sources != (ANY,):
        statement = statement.where(model.status.in_(step.sources))
    # MariaDB evaluates SET from left to right with the new values: the order matters.
    assignments: list[tuple[Any, Any]] = []
    if step.remember:
        assignments.append((_previous(model), model.status))
    if step.target == PREVIOUS:
        assignments.append((model.status, func.coalesce(_previous(model), AVAILABLE)))
        assignments.append((_previous(model), None))
    else:
        assignments.append((model.status, step.target))
    if step.target == DELETED:
        values = {"deleted": True, "deleted_at": now(session), **values}
    values.setdefault("updated_at", now(session))
    assignments.extend((getattr(model, name), value) for name, value in values.items())
    result = session.execute(
        statement.ordered_values(*assignments), execution_options={"synchronize_session": False}
    )
    known = session.identity_map.get(identity_key(model, resource_id))
    if known is not None:
        # Only the changed columns are read again.
        session.expire(known, [column.key for column, _value in assignments])
    assert isinstance(result, CursorResult)
    return bool(result.rowcount)


def _previous(model: type[Backup | BackupCopy | Volume | Snapshot]) -> Any:
    if issubclass(model, Backup | BackupCopy):
        raise TypeError("a backup does not remember a status")
    return model.previous_status


def mermaid() -> str:
    """Return the diagrams of all machines in Mermaid's notation, each under a heading (Markdown)."""
    parts = []
    for noun, machine, first in _MACHINES:
        lines = [f"## {noun.capitalize()}", "", "```mermaid", "stateDiagram-v2"]
        names: dict[str, str] = {}
        edges: list[str] = []
        for step in moves(machine):
            for source in step.sources:
                edges.append(f"    {_node(source, names)} --> {_node(step.target, names)}: {step.name}")
        lines.extend(f'    state "{text}" as {name}' for text, name in names.items() if name != "[*]")
        lines.append(f"    [*] --> {_node(first, names)}")
        lines.extend(edges)
        lines.append("```")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _node(status: str, names: dict[str, str]) -> str:
    text = {ANY: "any status", DELETED: "[*]"}.get(status, status)
    return names.setdefault(text, text.replace("-", "_").replace(" ", "_"))
