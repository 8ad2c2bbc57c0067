"""What retention lets go of one policy and volume: what may go at all, what the rules say, and the deletion.

Only backups that a run of the policy made are looked at: their rows say so, in a column that no user can set.
What holds a backup besides the rules stands in one place, :func:`_reason`; what holds it in one of its
stores, in :class:`Candidates`.  Both are asked when the rules are applied, and again in the transaction that
deletes, with the backup's row locked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from oslo_log import log
from sqlalchemy import ColumnElement, and_, case, exists, func, or_, select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, clock, now
from backupfw.errors import BackupNotFound, InvalidBackup, QuotaExceeded
from backupfw.manager.lineage import lifecycle
from backupfw.manager.outcomes.damaged_objects import is_damaged
from backupfw.manager.policies import places
from backupfw.manager.policies.places import Step, Stored, Verdict
from backupfw.manager.policies.settings import Settings
from backupfw.manager.rules.backup_rows import KEEP_KEY, is_kept
from backupfw.manager.usecases.backups import BackupManager

LOG = log.getLogger(__name__)

#: Backups that could not be made are shown for so long.
ERRORS_KEPT = timedelta(days=7)
#: Backups of a volume that go at once, before other volumes have their turn.
AT_ONCE = 20
#: So long a deletion may take; after that it counts no more as room that is being made.
_DELETION = timedelta(hours=1)
#: Why a backup stays that is being copied.
COPIED = "in use: it is being copied"
#: Returns the wire names of the stores of this process that are not known to be down.
Answering = Callable[[], Mapping[str, str]]
#: Backups that may be restored.
_GOOD = (lifecycle.AVAILABLE, lifecycle.RESTORING)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The backups that a policy has made of a volume.

    :ivar good: those that the rules are applied to.
    :ivar kept: those that stay in any case, so that they must not take the place of another one.
    :ivar held: of any of them, why it stays whatever the rules say.
    :ivar copying: the stores to which they are just being copied, which ends by itself.
    :ivar damaged: the stores that have a damaged copy of them.
    :ivar locked: until when what they have in a store is locked there, naive UTC.
    :ivar failed: those that could not be made, and since when.
    """

    good: Sequence[Stored] = ()
    kept: Sequence[Stored] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    copying: Mapping[str, frozenset[str]] = field(default_factory=dict)
    damaged: Mapping[str, frozenset[str]] = field(default_factory=dict)
    locked: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    failed: Mapping[str, datetime] = field(default_factory=dict)

    def stays(self, settings: Settings, backup_id: str) -> str | None:
        """Return why no place of a backup goes before somebody does something; None: they may."""
        for store in sorted(self.damaged.get(backup_id, ())):
            # Its rules may keep it there, and what is good elsewhere can be put there again.
            if settings.has_rules(store):
                return self.held.get(backup_id) or f"its copy in the store {store} is damaged"
        return self.held.get(backup_id)

    def holds(self, settings: Settings, backup_id: str) -> str | None:
        """Return why no place of a backup goes now, whatever the rules say; None: they may."""
        return self.stays(settings, backup_id) or (COPIED if backup_id in self.copying else None)

    def lock(self, settings: Settings, backup: Stored, store: str, moment: datetime) -> str | None:
        """Return why a backup stays in a store at a moment, whatever the rules say; None: it may go.

        A copy without rules goes with its backup: its objects stay until their lock ends.
        """
        until = self.locked.get((backup.id, store))
        if until is None or until <= moment or not (store == backup.own or settings.has_rules(store)):
            return None
        return f"locked in its store until {until:%Y-%m-%d %H:%M} UTC"

    def step(self, settings: Settings, backup: Stored, verdict: Verdict, moment: datetime) -> Step | None:
        """Return what the rules do with a backup that nothing holds; None: nothing.

        :param backup: as it is then.
        """
        locked = (one for one in backup.stores if self.lock(settings, backup, one, moment) is not None)
        return places.step(settings, backup, verdict, frozenset(locked))


def of(session: Session, policy: models.BackupPolicy, volume_id: str) -> Candidates:
    """Return the backups that a policy has made of a volume, with two statements."""
    row = models.Backup
    return _candidates(
        session,
        row.policy_id == policy.id,
        row.volume_id == volume_id,
        row.project_id == policy.project_id,
        row.deleted.is_(False),
        row.status.in_((*_GOOD, lifecycle.ERROR)),
    )


def _candidates(session: Session, *which: ColumnElement[bool]) -> Candidates:
    """Return backups as retention sees them.

    :param which: conditions on their rows.
    """
    row, copy, manifest = models.Backup, models.BackupCopy, models.Manifest
    copies: defaultdict[str, set[str]] = defaultdict(set)
    copying: defaultdict[str, set[str]] = defaultdict(set)
    damaged: defaultdict[str, set[str]] = defaultdict(set)
    locked: dict[tuple[str, str], datetime] = {}
    beside = (
        select(
            copy.backup_id,
            copy.store,
            copy.status,
            case((_is_good_copy(), 1), else_=0).label("good"),
            manifest.locked_until,
        )
        .join(row, row.id == copy.backup_id)
        .outerjoin(manifest, manifest.id == copy.manifest_id)
        .where(*which, copy.status.in_((lifecycle.COPYING, lifecycle.AVAILABLE)))
    )
    for one in session.execute(beside):
        found = copies if one.good else damaged if one.status == lifecycle.AVAILABLE else copying
        found[one.backup_id].add(one.store)
        if one.locked_until is not None:
            locked[one.backup_id, one.store] = one.locked_until
    good: list[Stored] = []
    kept: list[Stored] = []
    held: dict[str, str] = {}
    failed: dict[str, datetime] = {}
    for one in session.execute(_with_holds(session).where(*which)):
        reason = _reason(one)
        if reason is not None:
            held[one.id] = reason
        if one.locked_until is not None:
            locked[one.id, one.store] = one.locked_until
        if one.status == lifecycle.ERROR:
            failed[one.id] = one.updated_at or one.created_at
        else:
            stays = one.damaged or one.future or is_kept(one.keep)
            stored = Stored(one.id, one.taken_at, one.store, frozenset(copies[one.id] - {one.store}))
            (kept if stays else good).append(stored)
    return Candidates(good, kept, held, _frozen(copying), _frozen(damaged), locked, failed)


def _frozen(found: Mapping[str, set[str]]) -> dict[str, frozenset[str]]:
    return {backup_id: frozenset(stores) for backup_id, stores in found.items()}


def _is_good_copy() -> ColumnElement[bool]:
    """The condition that a copy is whole, as far as it is known."""
    copy, mark = models.BackupCopy, models.DamageMark
    return and_(copy.status == lifecycle.AVAILABLE, ~exists().where(mark.manifest_id == copy.manifest_id))


def _taken_at() -> Any:
    """As of when a backup's data is."""
    return func.coalesce(models.Backup.data_timestamp, models.Backup.created_at)


def _with_holds(session: Session) -> Any:
    """Select of backups what :func:`_reason` needs."""
    row, pair, manifest = models.Backup, models.BackupMetadata, models.Manifest
    return (
        select(
            row.id,
            row.store,
            row.status,
            row.completed,
            row.created_at,
            row.updated_at,
            _taken_at().label("taken_at"),
            pair.value.label("keep"),
            case((is_damaged(), 1), else_=0).label("damaged"),
            case((_taken_at() > clock(session), 1), else_=0).label("future"),
            manifest.locked_until,
        )
        .outerjoin(pair, and_(pair.backup_id == row.id, pair.key == KEEP_KEY))
        .outerjoin(manifest, manifest.id == row.manifest_id)
    )


def _reason(found: Any) -> str | None:
    """Say what holds a backup besides the rules.  A further reason that it may not go belongs here."""
    if is_kept(found.keep):
        return f"metadata {KEEP_KEY}"
    if found.damaged:
        return "damaged: only a user deletes it"
    if found.future:
        # To the rules it would be the newest one until then, and the really newest one would go.
        return "dated in the future: the clock was wrong"
    if found.status == lifecycle.ERROR and found.completed:
        return "it was good before it was set to error: only a user deletes it"
    if found.status not in (lifecycle.AVAILABLE, lifecycle.ERROR):
        return f"in use: {found.status}"
    return None


def let_go(
    db: Database,
    backups: BackupManager,
    ctx: RequestContext,
    policy: models.BackupPolicy,
    settings: Settings,
    volume_id: str,
    *,
    succeeded: bool,
    most: int,
    answering: Answering = dict,
) -> int:
    """Begin to delete what a policy needs no more of a volume's backups; return of how many.

    :param policy: read before; in no transaction any more.
    :param succeeded: the last run made a backup: without one, only old failures go.
    :param most: with so many there may be more.
    :param answering: a copy in another store does not become a backup's own, which could be lost then.
    """
    with db.read() as session:
        candidates, moment = of(session, policy, volume_id), now(session)
    old = [one for one, since in candidates.failed.items() if moment - since >= ERRORS_KEPT]
    going: list[str | Step] = [one for one in old if candidates.holds(settings, one) is None]
    if succeeded:
        verdicts = places.apply(settings, candidates.good)
        for one in sorted(candidates.good, key=lambda one: (one.taken_at, one.id), reverse=True):
            if candidates.holds(settings, one.id) is None:
                step = candidates.step(settings, one, verdicts[one.id], moment)
                going += [] if step is None else [step]
    return _carry_out(backups, ctx, policy, settings, going, most, answering)


def make_room(
    db: Database,
    backups: BackupManager,
    ctx: RequestContext,
    policy: models.BackupPolicy,
    settings: Settings,
    volume_id: str,
    *,
    missing: QuotaExceeded,
) -> bool:
    """Begin to delete what a policy needs no more with its next backup; return whether that is enough.

    That backup is refused by the quota: with one of as many as the retention keeps no run would succeed
    again.  What could not be made goes first, then what the next backup takes the place of, the oldest
    first.  Nothing goes if there would be no room all the same, and the newest good ones stay as ever.

    :param policy: read before; in no transaction any more.
    :param settings: the policy's.
    """
    with db.read() as session:
        candidates, moment = of(session, policy, volume_id), now(session)
        row = models.Backup
        mine = (row.policy_id == policy.id, row.volume_id == volume_id, row.deleted.is_(False))
        found = session.execute(select(row.id, row.size, row.status, row.updated_at).where(*mine)).all()
    sizes = {one.id: 1 if missing.resource == "backups" else one.size for one in found}
    # What an earlier try has begun to delete is counted by the quota until it is gone.
    going = [one for one in found if one.status == lifecycle.DELETING]
    room = sum(sizes[one.id] for one in going if moment - (one.updated_at or moment) < _DELETION)
    verdicts = places.apply(settings, [*candidates.good, _next(candidates.good, settings, moment)])
    oldest = sorted(candidates.good, key=lambda one: (one.taken_at, one.id))
    steps = (
        candidates.step(settings, one, verdicts[one.id], moment) for one in oldest[: -settings.rules.min_keep]
    )
    # Only a backup that goes from everywhere frees what the quota counts.
    replaced = [step for step in steps if step is not None and step.deletes]
    first: list[str | Step] = [*candidates.failed, *replaced]
    chosen: list[str | Step] = []
    for one in first:
        backup_id = one if isinstance(one, str) else one.backup.id
        if room < missing.excess and candidates.holds(settings, backup_id) is None:
            chosen.append(one)
            room += sizes.get(backup_id, 0)
    if room < missing.excess:
        return False
    return _carry_out(backups, ctx, policy, settings, chosen, len(chosen)) == len(chosen)


def _next(good: Sequence[Stored], settings: Settings, moment: datetime) -> Stored:
    """Return the backup that is to be made; it counts as made when it was due after the newest one.

    Otherwise, if none can be made, "within" would let one go each night, down to the last one.
    """
    due = settings.schedule.after(max((one.taken_at for one in good), default=moment))
    taken_at = moment if due is None else min(due, moment)
    return Stored("the next one", taken_at, settings.store or "", frozenset(settings.copies))


def _carry_out(
    backups: BackupManager,
    ctx: RequestContext,
    policy: models.BackupPolicy,
    settings: Settings,
    going: Sequence[str | Step],
    most: int,
    answering: Answering = dict,
) -> int:
    """Begin to delete backups and copies, but none whose deletion something forbids now; return how many.

    Each is one transaction, so whoever is killed in between leaves what the next one goes on with.

    :param going: ids of backups that could not be made, and what is to be done with others.
    :param answering: as of :func:`let_go`.
    """
    gone = 0
    for one in going:
        if gone == most:
            break
        step = None if isinstance(one, str) else one
        backup_id = one if isinstance(one, str) else one.backup.id
        refuse = partial(_refuse, policy, settings, step)
        try:
            if step is None or step.deletes:
                backups.delete(ctx, backup_id, refuse)
            elif step.heir is None:
                backups.remove_copies(ctx, backup_id, step.leaves, refuse)
            elif (service := answering().get(step.heir)) is not None:
                backups.promote_copy(ctx, backup_id, step.heir, service, refuse, leaving=step.leaves)
            else:
                raise InvalidBackup(f"This worker has no store {step.heir}, or it does not answer.")
            gone += 1
        except (InvalidBackup, BackupNotFound) as error:
            LOG.info("Backup %s of policy %s stays as it is for now: %s", backup_id, policy.id, error)
    return gone


def _refuse(
    policy: models.BackupPolicy, settings: Settings, step: Step | None, session: Session, row: models.Backup
) -> None:
    """Refuse a deletion whose reasons hold no more, in the transaction that deletes.

    :param policy: as it was when its rules were applied.
    :param settings: the policy's.
    :param step: what is to be done with the backup; None: it could not be made, and goes.
    :raises InvalidBackup: something holds the backup, or it is not where it was, or no newer good one would
        be left in one of the stores.
    """
    if row.policy_id != policy.id:
        raise InvalidBackup("It is not the policy's any more.")
    current = session.get(models.BackupPolicy, policy.id)
    if current is None or current.settings != policy.settings:
        raise InvalidBackup("The policy was deleted or changed meanwhile.")
    candidates = _candidates(session, models.Backup.id == row.id)
    if (reason := candidates.holds(settings, row.id)) is not None:
        raise InvalidBackup(reason)
    if step is None:
        if row.status != lifecycle.ERROR:
            raise InvalidBackup("It has become available meanwhile.")
        return
    if list(candidates.good) != [step.backup]:
        raise InvalidBackup("It is not any more where it was.")
    moment = now(session)
    for store in sorted(step.leaves):
        if (reason := candidates.lock(settings, step.backup, store, moment)) is not None:
            raise InvalidBackup(reason)
        if settings.has_rules(store):
            _refuse_newest(session, policy, row, settings.copies[store].min_keep, store)
    if row.store in step.leaves:
        _refuse_newest(session, policy, row, settings.rules.min_keep)


def _refuse_newest(
    session: Session, policy: models.BackupPolicy, row: models.Backup, min_keep: int, store: str | None = None
) -> None:
    """Refuse to let one of the newest good backups go.

    :param min_keep: so many stay.
    :param store: of those that are there; None: wherever they are.
    :raises InvalidBackup: it is one of them, or there are fewer.
    """
    backup, copy = models.Backup, models.BackupCopy
    newest = (
        select(backup.id)
        .where(
            backup.policy_id == policy.id,
            backup.volume_id == row.volume_id,
            backup.project_id == row.project_id,
            backup.deleted.is_(False),
            backup.status.in_(_GOOD),
            ~is_damaged(),
            _taken_at() <= clock(session),
        )
        .order_by(_taken_at().desc(), backup.id.desc())
        .limit(min_keep)
    )
    if store is not None:
        copied = exists().where(copy.backup_id == backup.id, copy.store == store, _is_good_copy())
        newest = newest.where(or_(backup.store == store, copied))
    ids = session.scalars(newest).all()
    # Who deletes one of them at the same time waits, or is waited for and seen.
    lock(session, backup, backup.id.in_(ids))
    if session.scalars(newest).all() != ids or row.id in ids or len(ids) < min_keep:
        raise InvalidBackup("It is one of the newest good backups.")
