"""Decides how a backup finds what changed: by what the volume's storage says, or by reading everything."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial

from backupfw.chunkstore.container import Container
from backupfw.engine.format.manifest import ManifestReader, PointNote
from backupfw.engine.format.sealing import Sealing
from backupfw.errors import Damaged, DataKeyMissing, UnsupportedFormat
from backupfw.manager.outcomes.creating import BASE_LOST, CreatePlan
from backupfw.volume.base import Point
from backupfw.worker.cancellable import PROVIDER_GRACE, run_cancellable
from backupfw.worker.control import TaskControl

#: Longest reason of a provider that is shown.
_REASON_LENGTH = 120


@dataclass(frozen=True, slots=True)
class Comparison:
    """How a backup finds what changed since its base.

    :ivar how: for people, in a few words.
    :ivar since: the token in the base's manifest, whose point the storage compares with; None: everything is
        read and compared with the base.
    :ivar checked: everything that the storage says is the same is read, too, to check it.
    :ivar read_all: nothing that the storage says is believed, not even which parts of the volume are zero.
    :ivar base: the base, if it was opened for this.
    """

    how: str
    since: str | None = None
    checked: bool = False
    read_all: bool = False
    base: ManifestReader | None = None

    def identity(self, source_identity: str) -> str:
        """Return what the finished segments of an epoch have in common.

        Those of a backup that relied on what the storage said do not count for one that does not.
        """
        if self.since is None:
            return f"{source_identity} read all" if self.read_all else source_identity
        return f"{source_identity} since {self.since}{' checked' if self.checked else ''}"


def choose(
    plan: CreatePlan,
    point: Point,
    container: Container,
    sealing: Sealing,
    full_compare_every: int,
    control: TaskControl,
) -> Comparison:
    """Decide it for one attempt; a later attempt with the same point decides the same.

    :param sealing: how the backup is encrypted.
    :param full_compare_every: of this many backups in a row that could rely on the storage, one reads
        everything.
    :raises ChunkStoreError: the store does not answer.
    :raises TaskStopped: the attempt must end.
    """
    found = Comparison(BASE_LOST if plan.backup.is_incremental else "no comparison: full backup")
    if plan.base is not None:
        with contextlib.suppress(Damaged, UnsupportedFormat, DataKeyMissing):
            base = ManifestReader(container, plan.base.key)
            if base.head.mac_id == sealing.mac_id:
                base.unseal(sealing.find)
            found = _choose(plan, base.head.point, point, full_compare_every, control)
            found = replace(found, base=base)
    return replace(found, read_all=plan.volume.changes_distrusted_at is not None)


def _choose(
    plan: CreatePlan, note: PointNote | None, point: Point, full_compare_every: int, control: TaskControl
) -> Comparison:
    if note is None or note.token is None:
        return whole("the backup before has no token")
    if plan.volume.changes_distrusted_at is not None:
        return distrusted(plan.volume.changes_distrusted_at)
    if not plan.trusts_base:
        return whole("the backup before was made before its storage was trusted again")
    refused = run_cancellable(partial(point.compare, note.token), control, grace=PROVIDER_GRACE)
    if refused is not None:
        return whole(f"the token no longer holds, {refused[:_REASON_LENGTH]}")
    if note.trusted + 1 >= full_compare_every:
        # The storage is asked all the same: only so is a wrong answer noticed.
        return replace(whole(f"due every {full_compare_every} backups"), since=note.token, checked=True)
    return Comparison("changed blocks by token", note.token)


def whole(why: str) -> Comparison:
    """Read everything, for this reason."""
    return Comparison(f"whole comparison: {why}")


def distrusted(moment: datetime) -> Comparison:
    """Read everything, because the storage was found to be wrong."""
    return replace(whole(f"on {moment:%Y-%m-%d}, its storage said wrongly what had changed"), read_all=True)
