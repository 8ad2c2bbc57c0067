"""The runs of backup policies, from their scheduled time to their end.

Every worker process calls these methods again and again; all that they know is in the database, so it does
not matter which process does a step, or how many try.  A run is *taken* for a while by the process that
begins it.  The id of its backup is chosen then, before the backup is made.  So whoever finds a run that was
taken by a process that died looks for the backup: if it is there, the run has begun; if not, it begins it,
and if two do, the second one is refused because the id exists.

How a run ends is read from its backup.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, NamedTuple

from oslo_db.exception import DBDuplicateEntry
from oslo_log import log
from sqlalchemy import (
    ColumnElement,
    CursorResult,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.orm import Session, aliased, object_session

from backupfw import crash_points
from backupfw.context import RequestContext, working_for
from backupfw.db import models
from backupfw.db.locks import lock
from backupfw.db.session import Database, now
from backupfw.db.types import UtcDateTime
from backupfw.errors import (
    BackupfwError,
    InvalidBackup,
    InvalidInput,
    NotFound,
    QuotaExceeded,
    VolumeNotFound,
)
from backupfw.manager.lineage import lifecycle
from backupfw.manager.policies import ending, planning
from backupfw.manager.policies import settings as policy_settings
from backupfw.manager.policies.planning import FAILED, MISSED, OK, RUNNING, SKIPPED, WAITING, short, tell
from backupfw.manager.policies.settings import Settings
from backupfw.manager.rows import NO_VOLUME
from backupfw.manager.usecases.backups import CANCELLED, BackupManager, MadeBy
from backupfw.outages import DATABASE_TROUBLES

LOG = log.getLogger(__name__)

#: Metadata key of a backup that a policy made, with the policy's id: for people; nothing here reads it.
POLICY_KEY = "backupfw:policy"
#: How often a run is tried again within its start window, and the pause before the first time.
RETRIES = 3
FIRST_PAUSE = timedelta(minutes=1)
#: How long a run is left to the process that took it.
_TAKEN = timedelta(minutes=2)
#: Runs that a process takes at once: few, because each may ask a foreign catalogue.
_AT_ONCE = 8
#: Runs that need transactions of their own, before others are planned again.
_ONE_BY_ONE = 20
#: Backups that retention deletes before that.
_DELETED_AT_ONCE = 200
#: Runs of one transaction.
_BATCH = 500
#: How long runs are kept after their scheduled time.
KEPT = timedelta(days=90)
#: How many of a policy are kept at most: those of many volumes every five minutes would fill the database.
MOST_KEPT = 50_000

#: The rules that are asked at each run, too: an operator may have changed them since the policy was saved.
_CREATE, _DELETE, _COPY = "backup:create", "backup:delete", "backup:copy"
#: Why a backup of a worker that says nothing is not quiesced.
NOT_FROZEN = "The volume was not frozen."
_NO_ROOM = " The retention lets nothing go that would make room."
_FORBIDDEN = "The service's rules do not allow a member of the project to {} backups ({})."

#: A time, or the database's own in a statement that is kept.
_Moment = datetime | ColumnElement[datetime]
#: Says why a project's policies do not run now, or None; it may ask over the network.
Pauses = Callable[[str], str | None]
#: Says whether a rule of the API allows a caller something in a project; it may ask over the network.
Allows = Callable[[RequestContext, str, str], bool]


class Refusal(NamedTuple):
    """Why a run could not begin.

    :ivar end: how it ends for that; None: it is tried again.
    """

    reason: str
    end: str | None = None


@dataclass(frozen=True, slots=True)
class Taken:
    """A run that this process begins."""

    id: str
    policy_id: str
    project_id: str
    user_id: str
    volume_id: str
    backup_id: str
    name: str | None
    scheduled_at: datetime
    taken_until: datetime
    settings: Settings

    def context(self) -> RequestContext:
        """Return the caller for whom the backup is made."""
        return _member(self.project_id, self.user_id, self.policy_id)

    @property
    def searches(self) -> bool:
        """Whether it looks for the volumes of foreign catalogues; then it makes no backup."""
        return self.volume_id == NO_VOLUME

    def backup_name(self) -> str:
        """Return the name of its backup: the policy's, and the scheduled time in its zone."""
        local = self.scheduled_at.replace(tzinfo=UTC).astimezone(self.settings.schedule.zone)
        return f"{(self.name or 'policy')[:200]} {local:%Y-%m-%d %H:%M}"


class PolicyRuns:
    """Plans, begins and ends runs.  Thread-safe.

    :param backups: makes, cancels and deletes the backups.
    :param pauses: says why a project's policies do not run now.
    :param allows: says what a member of a project may do now.
    :param answering: returns the wire names of the stores of this process that are not known to be down: of a
        backup that lives on as a copy, the copy's becomes its own.
    """

    def __init__(
        self,
        db: Database,
        backups: BackupManager,
        pauses: Pauses = lambda _project: None,
        allows: Allows = lambda _context, _rule, _project: True,
        answering: ending.Answering = dict,
    ) -> None:
        self._db = db
        self._backups = backups
        self._pauses = pauses
        self._allows = allows
        self._answering = answering
        # What every process asks at every poll is made once: to make it takes longer than to ask.
        policy, run, moment = models.BackupPolicy, models.PolicyRun, db.clock()
        following = select(func.min(policy.next_run_at)).scalar_subquery()
        self._next = select(following, exists().where(run.tidied.is_(False)), moment)
        self._due = _any(select(policy.id).where(policy.next_run_at <= moment))
        over, made = select(run.id).where(_is_over(run, moment)), select(run.id).where(_is_made(run))
        untidy = select(run.id).join(policy, policy.id == run.policy_id).where(_is_untidy(run))
        self._late = _late(moment)
        self._over, self._made = _any(over), _any(made)
        self._changed = _any(over, self._late, made, untidy)

    # -- the scheduled time

    def rest(self) -> float:
        """Return in how many seconds there is something to do; 0: now, infinite: nothing is planned.

        It costs one statement, and there may be something sooner if a policy changes.
        """
        ((following, on, moment),) = self._db.fetch(self._next, {})
        if on:
            return 0.0
        return math.inf if following is None else max(0.0, (following - moment).total_seconds())

    def plan(self) -> int:
        """Plan the runs of all policies that are due; return how many policies."""
        done = 0
        while self._finds(self._due):
            planned = self._db.run(partial(planning.plan, foreign=self._backups.mirrors.has_catalogues))
            done += planned
            if not planned:
                # Another process plans the rest just now.
                break
        return done

    def repair_clock(self) -> int:
        """Plan anew what was planned while the clock was wrong; return how many policies."""
        row = models.BackupPolicy
        with self._db.read() as session:
            if not session.scalar(select(exists().where(row.planned_at > now(session)))):
                return 0
        return self._db.run(planning.forget_future)

    # -- the beginning

    def begin(self, stopping: Callable[[], bool] = lambda: False) -> int:
        """Begin runs whose time has come, some of each project in turn; return how many were looked at.

        :param stopping: asked before each one; those that are left are begun by another process.
        """
        with self._db.read() as session:
            if not _ready(session, now(session), 1):
                return 0
        looked_at, taken = self._db.run(self._take)
        crash_points.reach("policy.taken")
        for number, run in enumerate(taken):
            if stopping():
                self._db.run(lambda session, rest=taken[number:]: _give_back(session, rest))  # type: ignore[misc]
                break
            self._begin(run)
        return looked_at

    def _take(self, session: Session) -> tuple[int, list[Taken]]:
        """Take runs, and choose the ids of their backups; skip those whose volume's last run is still on.

        :returns: how many were taken or ended, and those that were taken.
        """
        moment = now(session)
        run, policy = models.PolicyRun, models.BackupPolicy
        ids = _ready(session, moment, _AT_ONCE)
        owners = session.scalars(select(run.policy_id).where(run.id.in_(ids)).distinct()).all()
        # All that take runs of a policy wait for its row, so its limit holds.
        locked = lock(session, policy, policy.id.in_(owners), skip_locked=True)
        found = session.execute(
            select(run, policy)
            .join(policy, policy.id == run.policy_id)
            .where(run.id.in_(ids), run.policy_id.in_(locked), _can_begin(run, moment))
            .order_by(run.begin_at, run.id)
        ).all()
        on = session.execute(
            # Not by the index of policies, where those of three months are.
            select(run.policy_id, run.volume_id).where(
                func.coalesce(run.policy_id, "").in_(locked), _is_on(run, moment)
            )
        ).all()
        busy = {tuple(one) for one in on}
        running: dict[str, int] = {}
        for policy_id, _ in on:
            running[policy_id] = running.get(policy_id, 0) + 1
        taken: list[Taken] = []
        ended = 0
        for one, owner in found:
            makes_backup = one.volume_id != NO_VOLUME
            if planning.was_paused(owner, one) and session.get(models.Backup, one.backup_id or "") is None:
                # Another process had taken it then, or its backup was being made and has failed.
                _end(one, SKIPPED, planning.PAUSED, moment)
                ended += 1
                continue
            if (owner.id, one.volume_id) in busy:
                _end(one, SKIPPED, "The last run of this volume is still on.", moment)
                ended += 1
                continue
            is_full = owner.max_concurrent is not None and running.get(owner.id, 0) >= owner.max_concurrent
            if makes_backup and (is_full or any(one.volume_id == before.volume_id for before in taken)):
                continue
            try:
                settings = policy_settings.read(owner.settings)
            except InvalidInput as error:
                _end(one, FAILED, str(error), moment)
                ended += 1
                continue
            if makes_backup:
                running[owner.id] = running.get(owner.id, 0) + 1
                busy.add((owner.id, one.volume_id))
            one.taken_until = moment + _TAKEN
            one.backup_id = one.backup_id or str(uuid.uuid4())
            taken.append(
                Taken(
                    id=one.id,
                    policy_id=owner.id,
                    project_id=owner.project_id,
                    user_id=owner.updated_by or owner.user_id or "",
                    volume_id=one.volume_id,
                    backup_id=one.backup_id,
                    name=owner.display_name,
                    scheduled_at=one.scheduled_at,
                    taken_until=one.taken_until,
                    settings=settings,
                )
            )
        session.flush()
        return len(taken) + ended, taken

    def _begin(self, run: Taken) -> None:
        """Make a run's backup, or search, in transactions of its own."""
        context = run.context()
        found: dict[str, Mapping[str, str]] = {}
        with working_for(context):
            refusal = self._tried(run, context, found)
        crash_points.reach("policy.made")
        # Another process may have made it meanwhile: then what was refused here does not count.
        self._db.run(lambda session: self._record(session, run, refusal, found))

    def _tried(
        self, run: Taken, context: RequestContext, found: dict[str, Mapping[str, str]]
    ) -> Refusal | None:
        """Do what a run does; return why it was refused.

        :param found: gets what a search has found.
        """
        try:
            if (reason := self._pauses(run.project_id)) is not None:
                return Refusal(reason, SKIPPED)
            if not self._allows(context, _CREATE, run.project_id):
                return Refusal(_FORBIDDEN.format("make", _CREATE), FAILED)
            if run.settings.copies and not self._allows(context, _COPY, run.project_id):
                return Refusal(_FORBIDDEN.format("copy", _COPY), FAILED)
            if run.searches:
                found.update(self._backups.mirrors.volumes(run.project_id))
            else:
                self._make(run, context)
        except DBDuplicateEntry:
            # Another process has made it just now.
            return None
        except DATABASE_TROUBLES:
            raise
        except VolumeNotFound as error:
            return Refusal(str(error), SKIPPED)
        except QuotaExceeded as error:
            made_room = self._make_room(run, context, error)
            return Refusal(f"{error}{'' if made_room else _NO_ROOM}")
        except BackupfwError as error:
            return Refusal(str(error))
        except Exception:
            LOG.exception("Policy %s could not begin a backup of volume %s", run.policy_id, run.volume_id)
            return Refusal(f"An unexpected error; the log has more under {context.request_id}.")
        return None

    def _make(self, run: Taken, context: RequestContext) -> None:
        """Make a run's backup, unless it is there."""
        with self._db.read() as session:
            if session.get(models.Backup, run.backup_id) is not None:
                return
            incremental = run.settings.incremental and not _full_is_due(session, run)
        self._backups.create(
            context,
            volume_id=run.volume_id,
            name=run.backup_name(),
            container=None if run.settings.store is None else f"{run.settings.store}:",
            incremental=incremental,
            force=True,
            metadata={POLICY_KEY: run.policy_id},
            made_by=MadeBy(run.policy_id, run.backup_id, tuple(run.settings.copies), run.settings.quiesce),
        )

    def _make_room(self, run: Taken, context: RequestContext, missing: QuotaExceeded) -> bool:
        """Let retention delete what the run's backup would take the place of, if that makes room for it."""
        with self._db.read() as session:
            # It may have been changed, deleted or paused since the run was taken.
            policy = session.get(models.BackupPolicy, run.policy_id)
            mine = session.get(models.PolicyRun, run.id)
            session.expunge_all()
        if policy is None or mine is None or (mine.status, mine.taken_until) != (WAITING, run.taken_until):
            return False
        if not self._may_delete(policy):
            return False
        try:
            settings = policy_settings.read(policy.settings)
            made_room = ending.make_room(
                self._db, self._backups, context, policy, settings, run.volume_id, missing=missing
            )
        except DATABASE_TROUBLES:
            raise
        except Exception:
            # It must not keep the other runs that were taken from being begun.
            LOG.exception("No room could be made for policy %s, volume %s", run.policy_id, run.volume_id)
            return False
        if made_room:
            LOG.info("Policy %s makes room for a backup of volume %s", run.policy_id, run.volume_id)
        return made_room

    def _record(
        self,
        session: Session,
        run: Taken,
        refusal: Refusal | None,
        volumes: Mapping[str, Mapping[str, str]],
    ) -> None:
        """Record that a run's backup is being made, or plan what it found, or record why neither is done."""
        row = models.PolicyRun
        if not lock(session, row, row.id == run.id, row.status == WAITING, row.backup_id == run.backup_id):
            # Its policy is gone, or another process has recorded it.
            return
        found, moment = session.get_one(row, run.id), now(session)
        if session.get(models.Backup, run.backup_id) is not None:
            _started(found, moment)
        elif run.searches and refusal is None:
            planning.plan_found(session, found, volumes, moment)
        elif refusal is None or found.taken_until != run.taken_until:
            # Purged at once, or taken by another process.
            return
        elif refusal.end is not None:
            _end(found, refusal.end, refusal.reason, moment)
        elif _busy(session, [run.volume_id]):
            # Of another policy, or a user's, and faster.  It is no failure to wait for it.
            found.taken_until = None
        else:
            _try_again(found, refusal.reason, moment)

    # -- the end

    def watch(self) -> bool:
        """Note what became of runs: those whose windows have passed, and those whose backups are made.

        Then let retention delete some of what it lets go: others are planned in between.

        :returns: whether there is more of that.
        """
        if not self._finds(self._changed):
            return False
        self._miss()
        self._cancel_late()
        self._end_runs()
        return self._tidy()

    def _miss(self) -> None:
        """End the runs that did not begin within their start windows."""
        run = models.PolicyRun

        def work(session: Session) -> int:
            moment = now(session)
            ids = lock(session, run, _is_over(run, moment), limit=_BATCH, skip_locked=True)
            found = session.scalars(select(run).where(run.id.in_(ids)).order_by(run.policy_id)).all()
            made = _backups(session, [one.backup_id for one in found])
            busy = _busy(session, [one.volume_id for one in found])
            for one in found:
                if one.backup_id in made:
                    # Its process was killed before it could record that.
                    _started(one, moment)
                elif one.tries:
                    _end(one, FAILED, one.reason, moment)
                else:
                    why = ": another operation works on the volume." if one.volume_id in busy else "."
                    _end(one, MISSED, f"It could not begin within its start window{why}", moment)
            session.flush()
            return len(ids)

        self._repeat(self._over, work)

    def _cancel_late(self) -> None:
        """Cancel the backups that are not complete within their windows."""
        run = models.PolicyRun
        late = self._db.fetch(self._late, {})
        for run_id, backup_id, project_id, policy_id in late:
            reason = "It was not complete within its completion window."
            told = update(run).where(run.id == run_id, run.status == RUNNING).values(reason=reason)
            self._db.run(lambda session, told=told: session.execute(told))  # type: ignore[misc]
            assert backup_id is not None
            try:
                self._backups.cancel(_member(project_id, None, policy_id), backup_id)
            except (InvalidBackup, NotFound):
                # It ended just now.
                continue

    def _end_runs(self) -> None:
        """End the runs whose backups are made, or cannot be."""
        run = models.PolicyRun

        def work(session: Session) -> int:
            moment = now(session)
            ids = lock(session, run, _is_made(run), limit=_BATCH, skip_locked=True)
            found = session.scalars(select(run).where(run.id.in_(ids)).order_by(run.policy_id)).all()
            made = _backups(session, [one.backup_id for one in found])
            for one in found:
                _note_end(one, made.get(one.backup_id or ""), moment)
            session.flush()
            return len(ids)

        self._repeat(self._made, work)

    def _tidy(self) -> bool:
        """Let retention delete what it lets go after each run, some of each project in turn.

        A project that lets thousands of backups go keeps nobody else's from being planned and made.

        :returns: whether there is more to do.
        """
        run = models.PolicyRun
        with self._db.read() as session:
            found = session.execute(_in_turn(), {"most": _ONE_BY_ONE}).all()
            session.expunge_all()
        more = len(found) == _ONE_BY_ONE
        left = _DELETED_AT_ONCE
        for run_id, touched, volume_id, status, owner in found:
            if left <= 0:
                return True
            most = min(left, ending.AT_ONCE)
            # Not if a copy was finished meanwhile, which may take another's place.
            done = update(run).where(run.id == run_id, run.touched == touched).values(tidied=True)
            if self._may_delete(owner):
                gone = self._let_go(owner, volume_id, most, succeeded=status == OK)
            else:
                gone = 0
                reason = short(_FORBIDDEN.format("delete", _DELETE))
                done = done.values(reason=func.coalesce(run.reason, reason))
            crash_points.reach("policy.let-go")
            left -= gone
            if gone >= most:
                more = True
                continue
            self._db.run(lambda session, done=done: session.execute(done))  # type: ignore[misc]
        return more

    def _may_delete(self, policy: models.BackupPolicy) -> bool:
        """Return whether a member of the policy's project may delete backups now."""
        context = _member(policy.project_id, policy.updated_by, policy.id)
        try:
            return self._allows(context, _DELETE, policy.project_id)
        except Exception:
            LOG.exception("It is not known whether backup policy %s may delete backups", policy.id)
            return False

    def _let_go(self, policy: models.BackupPolicy, volume_id: str, most: int, *, succeeded: bool) -> int:
        """Let retention delete backups of a volume; return how many, at most ``most``."""
        context = _member(policy.project_id, policy.updated_by, policy.id)
        with working_for(context):
            try:
                settings = policy_settings.read(policy.settings)
                gone = ending.let_go(
                    self._db,
                    self._backups,
                    context,
                    policy,
                    settings,
                    volume_id,
                    succeeded=succeeded,
                    most=most,
                    answering=self._answering,
                )
            except DATABASE_TROUBLES:
                raise
            except InvalidInput as error:
                LOG.error("Backup policy %s cannot be applied: %s", policy.id, error)
                return 0
            except Exception:
                # It must not keep the backups of all others; the next run tries again.
                LOG.exception("The retention of backup policy %s failed, volume %s", policy.id, volume_id)
                return 0
            if gone:
                LOG.info("Policy %s lets %d places of backups of volume %s go", policy.id, gone, volume_id)
            return gone

    def forget(self) -> int:
        """Delete the runs of long ago, and those that are too many; return how many.

        Their backups stay the policy's.
        """
        row = models.PolicyRun
        with self._db.read() as session:
            conditions = [row.created_at < now(session) - KEPT]
            many = select(row.policy_id).group_by(row.policy_id).having(func.count() > MOST_KEPT)
            for policy_id in session.scalars(many).all():
                mine = row.policy_id == policy_id
                newest = select(row.created_at).where(mine).order_by(row.created_at.desc(), row.id.desc())
                last = session.scalars(newest.offset(MOST_KEPT).limit(1)).first()
                if last is not None:
                    conditions.append(and_(mine, row.created_at < last))
        return sum(self._forget(one) for one in conditions)

    def _forget(self, which: ColumnElement[bool]) -> int:
        row = models.PolicyRun
        total = 0
        ended = and_(which, row.status.not_in((WAITING, RUNNING)))
        while True:
            with self._db.read() as session:
                ids = session.scalars(
                    select(row.id).where(ended).order_by(row.created_at).limit(_BATCH)
                ).all()
            if not ids:
                return total

            def work(session: Session, ids: Sequence[str] = ids) -> int:
                result = session.execute(delete(row).where(row.id.in_(ids)))
                assert isinstance(result, CursorResult)
                return result.rowcount

            total += self._db.run(work)

    def _finds(self, question: Select[bool]) -> bool:
        ((found,),) = self._db.fetch(question, {})
        return bool(found)

    def _repeat(self, question: Select[bool], work: Callable[[Session], int]) -> None:
        """Repeat a transaction while there are runs for it; if there are none, nothing is written."""
        # What others hold just now, they work on.
        while self._finds(question) and self._db.run(work) == _BATCH:
            pass


def _member(project_id: str, user_id: str | None, policy_id: str) -> RequestContext:
    """Return whom a policy acts for: a member of its project, with no token."""
    return RequestContext(project_id, user_id or "", ("member",), policy_id=policy_id)


def _is_free(run: Any, moment: _Moment) -> ColumnElement[bool]:
    return or_(run.taken_until.is_(None), run.taken_until <= moment)


def _can_begin(run: Any, moment: _Moment) -> ColumnElement[bool]:
    return and_(
        run.status == WAITING, run.begin_at <= moment, run.begin_before > moment, _is_free(run, moment)
    )


def _is_on(run: Any, moment: _Moment) -> ColumnElement[bool]:
    """The condition that a run's backup has begun, or is just being begun."""
    taken = and_(run.status == WAITING, run.begin_at <= moment, run.taken_until > moment)
    return or_(run.status == RUNNING, and_(taken, run.volume_id != NO_VOLUME))


def _any(*which: Select[*tuple[Any, ...]]) -> Select[bool]:
    """Ask whether one of these statements finds a row."""
    return select(or_(*(exists(one.correlate(None)) for one in which)))


@cache
def _can_be_taken() -> Select[str]:
    """Select the ids of runs that can begin at ``:moment``, ``:most`` of them in their order.

    Each project has its turn.  It is made once: to make it takes longer than to ask.
    """
    moment = bindparam("moment", type_=UtcDateTime())
    run, policy = models.PolicyRun, models.BackupPolicy
    other = aliased(run)
    # Found once, for all policies: a policy has many runs, of which few are on.
    on = (
        select(other.policy_id, func.count().label("number"))
        .where(_is_on(other, moment))
        .group_by(other.policy_id)
        .subquery()
    )
    own = select(other.policy_id, other.volume_id).where(_is_on(other, moment))
    volume = models.Volume
    turn = func.row_number().over(partition_by=run.project_id, order_by=(run.begin_at, run.id))
    ready = (
        select(run.id, run.begin_at, turn.label("turn"))
        .join(policy, policy.id == run.policy_id)
        .outerjoin(on, on.c.policy_id == run.policy_id)
        .outerjoin(volume, and_(volume.id == run.volume_id, _is_busy(volume)))
        .where(
            _can_begin(run, moment),
            # One that waits for its own policy's last run is skipped; for others it waits.
            or_(volume.id.is_(None), tuple_(run.policy_id, run.volume_id).in_(own)),
            or_(
                policy.max_concurrent.is_(None),
                func.coalesce(on.c.number, 0) < policy.max_concurrent,
                run.volume_id == NO_VOLUME,
            ),
        )
        .subquery()
    )
    most = bindparam("most", type_=Integer())
    return select(ready.c.id).order_by(ready.c.turn, ready.c.begin_at, ready.c.id).limit(most)


def _ready(session: Session, moment: datetime, most: int) -> Sequence[str]:
    """Return the ids of runs that can begin, in their order: each project in turn."""
    return session.scalars(_can_be_taken(), {"moment": moment, "most": most}).all()


def _late(moment: ColumnElement[datetime]) -> Select[str, str | None, str, str]:
    """Select the runs whose backups are not complete within their windows, some of them."""
    run, backup = models.PolicyRun, models.Backup
    return (
        select(run.id, run.backup_id, run.project_id, run.policy_id)
        .join(backup, backup.id == run.backup_id)
        .where(run.status == RUNNING, run.end_before <= moment, backup.status == lifecycle.CREATING)
        .limit(_ONE_BY_ONE)
    )


def _is_over(run: Any, moment: _Moment) -> ColumnElement[bool]:
    """The condition that a run did not begin within its start window."""
    return and_(run.status == WAITING, run.begin_before <= moment, _is_free(run, moment))


def _is_made(run: Any) -> ColumnElement[bool]:
    """The condition that a run's backup is made, or cannot be."""
    backup = models.Backup
    going_on = exists().where(backup.id == run.backup_id, backup.status == lifecycle.CREATING)
    return and_(run.status == RUNNING, ~going_on)


def _is_untidy(run: Any) -> ColumnElement[bool]:
    """The condition that a run has ended, and what retention lets go after it may be there."""
    return and_(run.tidied.is_(False), run.status.in_((OK, FAILED)))


@cache
def _in_turn() -> Select[str, int, str, str, models.BackupPolicy]:
    """Select the runs after which retention has something to do, ``:most`` of them, each project in turn."""
    run, policy = models.PolicyRun, models.BackupPolicy
    turn = func.row_number().over(partition_by=run.project_id, order_by=(run.ended_at, run.id))
    waiting = select(run.id, turn.label("turn"), run.ended_at).where(_is_untidy(run)).subquery()
    return (
        select(run.id, run.touched, run.volume_id, run.status, policy)
        .join(waiting, waiting.c.id == run.id)
        .join(policy, policy.id == run.policy_id)
        .order_by(waiting.c.turn, waiting.c.ended_at, run.id)
        .limit(bindparam("most", type_=Integer()))
    )


def _is_busy(volume: Any) -> ColumnElement[bool]:
    """The condition that a backup or restore of ours works on a volume, also one of a foreign catalogue."""
    condition: ColumnElement[bool] = volume.status.in_((lifecycle.BACKING_UP, lifecycle.RESTORING_BACKUP))
    return condition


def _busy(session: Session, ids: Sequence[str]) -> set[str]:
    """Return which of these volumes are busy."""
    row = models.Volume
    return set(session.scalars(select(row.id).where(row.id.in_(ids), _is_busy(row))))


def _backups(session: Session, ids: Sequence[str | None]) -> dict[str, models.Backup]:
    row = models.Backup
    found = session.scalars(select(row).where(row.id.in_([one for one in ids if one is not None])))
    return {one.id: one for one in found}


def _full_is_due(session: Session, run: Taken) -> bool:
    """Return whether the policy wants a full backup now: so many in a row were none."""
    if run.settings.full_every is None:
        return False
    row = models.Backup
    before = session.scalars(
        select(row.is_incremental)
        .where(row.policy_id == run.policy_id, row.volume_id == run.volume_id, row.completed.is_(True))
        .order_by(row.created_at.desc(), row.id.desc())
        .limit(run.settings.full_every - 1)
    ).all()
    return all(before) and len(before) == run.settings.full_every - 1


def _give_back(session: Session, taken: Sequence[Taken]) -> None:
    row = models.PolicyRun
    ids = [one.id for one in taken]
    session.execute(update(row).where(row.id.in_(ids), row.status == WAITING).values(taken_until=None))


def _started(run: models.PolicyRun, moment: datetime) -> None:
    run.status, run.started_at, run.taken_until, run.reason = RUNNING, moment, None, None


def _end(run: models.PolicyRun, status: str, reason: str | None, moment: datetime) -> None:
    run.status, run.ended_at, run.taken_until = status, moment, None
    run.reason = None if reason is None else short(reason)
    # Only what had a backup may have left something.
    run.tidied = status not in (OK, FAILED)
    session = object_session(run)
    if session is not None and status in (FAILED, MISSED):
        tell(session, run)


def _try_again(run: models.PolicyRun, reason: str, moment: datetime) -> None:
    """Let a run wait for its next try, or fail if that would be too late or was the last one."""
    pause = FIRST_PAUSE * 4**run.tries
    run.tries += 1
    if run.tries > RETRIES or moment + pause >= run.begin_before:
        _end(run, FAILED, reason, moment)
        return
    run.status, run.taken_until, run.started_at = WAITING, None, None
    run.begin_at, run.reason = moment + pause, short(reason)


def _note_end(run: models.PolicyRun, backup: models.Backup | None, moment: datetime) -> None:
    """End a run whose backup is not being made any more."""
    if backup is not None and (backup.completed or backup.status == lifecycle.AVAILABLE):
        run.quiesced = backup.quiesced
        reason = f"Not quiesced: {backup.quiesce_reason or NOT_FROZEN}" if backup.quiesced is False else None
        _end(run, OK, reason, moment)
    elif backup is None or backup.status != lifecycle.ERROR:
        _end(run, FAILED, "The backup was deleted before it was complete.", moment)
    elif run.reason is not None or backup.fail_reason == CANCELLED:
        _end(run, FAILED, run.reason or backup.fail_reason, moment)
    else:
        # The backup that failed stays for a while, so that its reason can be read.
        failed = run.backup_id
        _try_again(run, backup.fail_reason or "The backup failed.", moment)
        run.backup_id = None if run.status == WAITING else failed
