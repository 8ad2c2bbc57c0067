"""Waiting for what a worker does: ``--wait``, which is the default, and ``--no-wait``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backupfw.cmd.progress import Progress
from backupfw.errors import BackupfwError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.cmd.catalogue import Named
    from backupfw.db.models import BackupCopy
    from backupfw.db.session import Database
    from backupfw.manager.queue.progress import Progress as HowFar

#: Seconds between two looks.
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 1.0
#: Seconds without any worker after which the wait ends: a worker that has just started needs a moment until
#: its first heartbeat.
NO_WORKER_SECONDS = 10.0


class OperationFailed(BackupfwError):
    """The worker did it and failed, or nobody is there to do it."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What is waited for.

    :ivar label: what is being done, for people.
    :ivar model: what is looked at, with its ``resource_id``.
    :ivar task_of: what the task is about, where that is something else.
    :ivar good: the statuses that it is in when all went well; ``deleted`` when it is gone.
    :ivar cancel: the command that stops it, for people; None: nothing does.
    """

    label: str
    model: type[Named | BackupCopy]
    resource_id: str
    good: Collection[str]
    task_of: str | None = None
    cancel: str | None = None


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--wait`` and ``--no-wait``."""
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--wait",
        action="store_true",
        default=True,
        help="return when a worker has done it (the default); exit status 1 if it failed",
    )
    choice.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return when it is queued for a worker"
    )


def follow(conf: cfg.ConfigOpts, db: Database, operation: Operation, *, wait: bool) -> None:
    """Wait for the end of a queued operation, and report if there is no worker that could take it.

    :param wait: whether to wait for the end.
    :raises OperationFailed: it failed; with ``wait`` also where no worker is there, it stays queued then.
    """
    if not wait:
        how = _how_far(conf, db, operation)
        if how.phase == _no_worker():
            print(f"backupfw: {operation.label} is queued; {_who_would(db)}", file=sys.stderr)
        return
    progress = Progress(operation.label)
    try:
        status, reason = _wait(conf, db, operation, progress)
    except KeyboardInterrupt:
        progress.abandon()
        stops = f"; '{operation.cancel}' stops it" if operation.cancel else ""
        print(f"backupfw: no longer waiting: {operation.label} goes on{stops}", file=sys.stderr)
        raise
    except BaseException:
        progress.abandon()
        raise
    if status not in operation.good:
        progress.abandon()
        raise OperationFailed(f"{operation.label} failed: {reason or f'its status is {status}'}")
    progress.finish("done")


def _wait(
    conf: cfg.ConfigOpts, db: Database, operation: Operation, progress: Progress
) -> tuple[str, str | None]:
    """Return status and reason when the operation is over."""
    pause, alone_since = FIRST_PAUSE, None
    while True:
        how = _how_far(conf, db, operation)
        status, reason, over = _status(db, operation)
        if over:
            return status, reason
        if how.phase != _no_worker():
            alone_since = None
        elif alone_since is None:
            alone_since = time.monotonic()
        elif time.monotonic() - alone_since >= NO_WORKER_SECONDS:
            raise OperationFailed(f"{operation.label} stays queued; {_who_would(db)}")
        if how.done is not None and how.total:
            progress.update(how.done, how.total)
        else:
            progress.beat()
        time.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


def _how_far(conf: cfg.ConfigOpts, db: Database, operation: Operation) -> HowFar:
    from backupfw.manager.queue import progress

    with db.read() as session:
        return progress.of(session, conf, operation.task_of or operation.resource_id)


def _status(db: Database, operation: Operation) -> tuple[str, str | None, bool]:
    """Return a thing's status, why the last operation failed, and whether it is over."""
    from backupfw.db import models
    from backupfw.manager.lineage import lifecycle

    with db.read() as session:
        row: Any = session.get(operation.model, operation.resource_id)
        if row is None or getattr(row, "deleted", False):
            return lifecycle.DELETED, None, True
        about = row
        if operation.task_of is not None and not hasattr(row, "fail_reason"):
            about = session.get(models.Backup, operation.task_of)
        reason = getattr(about, "fail_reason", None)
        return str(row.status), reason, row.status not in lifecycle.TRANSIENT


def _no_worker() -> str:
    from backupfw.manager.queue import waiting

    return waiting.WAITING_FOR_WORKER


def _who_would(db: Database) -> str:
    """Say who takes what is queued."""
    command = "serve" if db.backend == "sqlite" else "worker"
    return (
        f"no worker is there now that could take it: one that 'backupfw {command}' starts with this"
        " configuration does"
    )
