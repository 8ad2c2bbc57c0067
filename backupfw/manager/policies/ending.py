"""What retention lets go of one policy and volume: what may go at all, what the rules say, and the deletion.

Only backups that a run of the policy made are looked at: their rows say so, in a column that no user can set.
What holds a backup besides the rules stands in one place, :func:`held`.  It is asked when the rules are
applied, and again in the transaction that deletes, with the backup's row locked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from oslo_log import log
from sqlalchemy import and_, case, exists, func, select
from sqlalchemy.orm import Session

from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, clock, now
from backupfw.errors import BackupNotFound, InvalidBackup, QuotaExceeded
from backupfw.manager.lineage import lifecycle
from backupfw.manager.outcomes.damaged_objects import is_damaged
from backupfw.manager.policies import retention
from backupfw.manager.policies.retention import Taken
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
#: Backups that may be restored.
_GOOD = (lifecycle.AVAILABLE, lifecycle.RESTORING)


@dataclass(frozen=True, slots=True)
class Candidates:
    """The backups that a policy has made of a volume.

    :ivar good: those that the rules are applied to.
    :ivar kept: those that stay in any case, so that they must not take the place of another one.
    :ivar held: of any of them, why it stays whatever the rules say.
    :ivar failed: those that could not be made, and since when.
    """

    good: Sequence[Taken] = ()
    kept: Sequence[Taken] = ()
    held: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, datetime] = field(default_factory=dict)

    def verdicts(self, settings: Settings) -> dict[str, str | None]:
        """Return of each good backup why it is kept, or None: it goes, unless it is held."""
        return retention.apply(settings.rules, settings.schedule.zone, self.good)


def of(session: Session, policy: models.BackupPolicy, volume_id: str) -> Candidates:
    """Return the backups that a policy has made of a volume, with one statement."""
    row = models.Backup
    query = _with_holds(session).where(
        row.policy_id == policy.id,
        row.volume_id == volume_id,
        row.project_id == policy.project_id,
        row.deleted.is_(False),
        row.status.in_((*_GOOD, lifecycle.ERROR)),
    )
    good: list[Taken] = []
    kept: list[Taken] = []
    reasons: dict[str, str] = {}
    failed: dict[str, datetime] = {}
    for found in session.execute(query):
        reason = _reason(found)
        if reason is not None:
            reasons[found.id] = reason
        if found.status == lifecycle.ERROR:
            failed[found.id] = found.updated_at or found.created_at
        else:
            stays = found.damaged or found.future or is_kept(found.keep)
            (kept if stays else good).append(Taken(found.id, found.taken_at))
    return Candidates(good, kept, reasons, failed)


def held(session: Session, backup_id: str) -> str | None:
    """Return why a backup may not be deleted by a retention now, whatever its rules say; None: it may."""
    found = session.execute(_with_holds(session).where(models.Backup.id == backup_id)).first()
    return "It is gone." if found is None else _reason(found)


def _taken_at() -> Any:
    """As of when a backup's data is."""
    return func.coalesce(models.Backup.data_timestamp, models.Backup.created_at)


def _with_holds(session: Session) -> Any:
    """Select of backups what :func:`_reason` needs."""
    row, pair, copy, manifest = models.Backup, models.BackupMetadata, models.BackupCopy, models.Manifest
    copying = exists().where(copy.backup_id == row.id, copy.status == lifecycle.COPYING)
    return (
        select(
            row.id,
            row.status,
            row.completed,
            row.created_at,
            row.updated_at,
            _taken_at().label("taken_at"),
            pair.value.label("keep"),
            case((copying, 1), else_=0).label("copying"),
            case((is_damaged(), 1), else_=0).label("damaged"),
            case((_taken_at() > clock(session), 1), else_=0).label("future"),
            case((manifest.locked_until > clock(session), manifest.locked_until)).label("locked_until"),
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
    if found.copying:
        return "in use: it is being copied"
    if found.locked_until is not None:
        return f"locked in its store until {found.locked_until:%Y-%m-%d %H:%M} UTC"
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
) -> list[str]:
    """Begin to delete what a policy needs no more of a volume's backups; return their ids.

    :param policy: read before; in no transaction any more.
    :param succeeded: the last run made a backup: without one, only old failures go.
    :param most: with so many there may be more.
    """
    with db.read() as session:
        candidates, moment = of(session, policy, volume_id), now(session)
    going = [one for one, since in candidates.failed.items() if moment - since >= ERRORS_KEPT]
    if succeeded:
        going += [one for one, why in candidates.verdicts(settings).items() if why is None]
    free = [one for one in going if one not in candidates.held]
    return _delete(backups, ctx, policy, settings, free, most)


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
    all_then = [*candidates.good, _next(candidates.good, settings, moment)]
    verdicts = retention.apply(settings.rules, settings.schedule.zone, all_then)
    oldest = sorted(candidates.good, key=lambda one: (one.taken_at, one.id))
    replaced = [one.id for one in oldest[: -settings.rules.min_keep] if verdicts[one.id] is None]
    chosen: list[str] = []
    for one in (*candidates.failed, *replaced):
        if room < missing.excess and one not in candidates.held:
            chosen.append(one)
            room += sizes.get(one, 0)
    if room < missing.excess:
        return False
    return len(_delete(backups, ctx, policy, settings, chosen, len(chosen))) == len(chosen)


def _next(good: Sequence[Taken], settings: Settings, moment: datetime) -> Taken:
    """Return the backup that is to be made; it counts as made when it was due after the newest one.

    Otherwise, if none can be made, "within" would let one go each night, down to the last one.
    """
    due = settings.schedule.after(max((one.taken_at for one in good), default=moment))
    return Taken("the next one", moment if due is None else min(due, moment))


def _delete(
    backups: BackupManager,
    ctx: RequestContext,
    policy: models.BackupPolicy,
    settings: Settings,
    going: Sequence[str],
    most: int,
) -> list[str]:
    """Begin to delete backups, but none whose deletion something forbids now; return their ids."""
    gone: list[str] = []
    for one in going:
        if len(gone) == most:
            break
        try:
            backups.delete(ctx, one, partial(_refuse, policy, settings.rules.min_keep))
            gone.append(one)
        except (InvalidBackup, BackupNotFound) as error:
            LOG.info("Backup %s of policy %s stays for now: %s", one, policy.id, error)
    return gone


def _refuse(policy: models.BackupPolicy, min_keep: int, session: Session, row: models.Backup) -> None:
    """Refuse a deletion whose reasons hold no more, in the transaction that deletes.

    :param policy: as it was when its rules were applied.
    :raises InvalidBackup: something holds the backup, or no newer good one would be left.
    """
    if row.policy_id != policy.id:
        raise InvalidBackup("It is not the policy's any more.")
    current = session.get(models.BackupPolicy, policy.id)
    if current is None or current.settings != policy.settings:
        raise InvalidBackup("The policy was deleted or changed meanwhile.")
    if (reason := held(session, row.id)) is not None:
        raise InvalidBackup(reason)
    if row.status == lifecycle.ERROR:
        return
    backup = models.Backup
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
    ids = session.scalars(newest).all()
    # Who deletes one of them at the same time waits, or is waited for and seen.
    lock(session, backup, backup.id.in_(ids))
    if session.scalars(newest).all() != ids or row.id in ids or len(ids) < min_keep:
        raise InvalidBackup("It is one of the newest good backups.")
