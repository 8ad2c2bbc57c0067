"""The use cases of backup policies: what the API and the command call."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Unpack

from sqlalchemy import delete, exists, or_, select, update
from sqlalchemy.orm import Session

from backupfw.db.locks import lock
from backupfw.db.models import Backup, BackupPolicy, PolicyRun
from backupfw.db.session import now
from backupfw.errors import BackupPolicyNotFound, InvalidInput, VolumeNotFound
from backupfw.manager import actions, listing, rows
from backupfw.manager.actions import Kind
from backupfw.manager.policies import planning, preview
from backupfw.manager.policies import settings as policy_settings
from backupfw.manager.policies.preview import Preview
from backupfw.manager.policies.settings import Settings
from backupfw.manager.rules import quota
from backupfw.manager.rules.volume_rules import is_visible, may_be_id
from backupfw.manager.usecases.backups import UNSET, BackupManager, Unset

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.context import RequestContext
    from backupfw.db.session import Database

#: The parts of the settings.
PARTS = ("schedule", "backup", "retention", "selection", "copy_to")


class PolicyManager:
    """The backup policies of all projects.  Thread-safe.

    :param conf: has the group ``quota``, the enabled stores, and the names of quiesce commands.
    :param backups: finds the volumes that policies name, those of foreign catalogues, too.
    :param wake: called after a transaction that may have made something due sooner than a worker looks.
    """

    def __init__(
        self,
        db: Database,
        conf: cfg.ConfigOpts,
        backups: BackupManager,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._db = db
        self._conf = conf
        self._backups = backups
        self._wake = wake

    @property
    def quiesce_commands(self) -> Sequence[str]:
        """The names of the commands that policies can choose."""
        names: Sequence[str] = self._conf.quiesce_commands
        return names

    def create(
        self,
        ctx: RequestContext,
        *,
        settings: Mapping[str, Any],
        name: str | None = None,
        description: str | None = None,
        enabled: bool = True,
        max_concurrent: int | None = None,
    ) -> rows.BackupPolicy:
        """Make a policy in the caller's project.

        :param settings: the parts of :data:`PARTS`; ``schedule`` and ``selection`` must be there.
        :param max_concurrent: how many of its backups are made at once; None: as many as there are.
        :raises InvalidInput: a value is wrong, or names a store or volume that there is not.
        :raises QuotaExceeded: the project has as many policies as it may have.
        """
        found = self._checked(ctx, settings, ctx.project_id)
        policy_id = str(uuid.uuid4())

        def work(session: Session) -> rows.BackupPolicy:
            moment = now(session)
            quota.check(session, self._conf, ctx.project_id, {"backup_policies": 1})
            row = BackupPolicy(
                id=policy_id,
                project_id=ctx.project_id,
                user_id=ctx.user_id,
                updated_by=ctx.user_id,
                display_name=name,
                display_description=description,
                enabled=enabled,
                settings=dict(found.words),
                max_concurrent=max_concurrent,
                next_run_at=found.schedule.after(moment) if enabled else None,
                planned_at=moment,
                created_at=moment,
                updated_at=moment,
            )
            session.add(row)
            actions.record(session, ctx, Kind.POLICY_CREATE, row)
            session.flush()
            return rows.backup_policy(row)

        def made(session: Session) -> rows.BackupPolicy | None:
            row = session.get(BackupPolicy, policy_id)
            return None if row is None else rows.backup_policy(row)

        result = self._db.run(work, made)
        self._wake()
        return result

    def get(self, ctx: RequestContext, policy_id: str) -> rows.BackupPolicy:
        """Return a policy.

        :raises BackupPolicyNotFound: there is none, or not for this caller.
        """
        with self._db.read() as session:
            return rows.backup_policy(_find(session, ctx, policy_id))

    def list(
        self, ctx: RequestContext, *, detail: bool = True, **paging: Unpack[listing.Paging]
    ) -> rows.Page[rows.BackupPolicy]:
        """Return a page of policies; see :func:`backupfw.manager.listing.page`.

        :param detail: accepted as in the other listings.
        """
        del detail
        with self._db.read() as session:
            found, total = listing.page(session, BackupPolicy, ctx, paging)
            return rows.Page([rows.backup_policy(row) for row in found], total)

    def update(
        self,
        ctx: RequestContext,
        policy_id: str,
        *,
        settings: Mapping[str, Any] | None = None,
        name: str | Unset | None = UNSET,
        description: str | Unset | None = UNSET,
        enabled: bool | None = None,
        max_concurrent: int | Unset | None = UNSET,
    ) -> rows.BackupPolicy:
        """Change the given values; a part of the settings is replaced as a whole.

        Runs that wait begin with the new settings; those that have begun go on.

        :raises BackupPolicyNotFound: there is none, or not for this caller.
        :raises InvalidInput: as of :meth:`create`.
        """
        known = self.get(ctx, policy_id)
        found = None
        if settings:
            found = self._checked(ctx, {**known.settings, **settings}, known.project_id, tuple(settings))

        def work(session: Session) -> rows.BackupPolicy:
            row = _find(session, ctx, policy_id, hold=True)
            moment = now(session)
            due_anew = False
            if settings:
                # Another request may have changed other parts meanwhile.
                merged = policy_settings.read({**row.settings, **settings})
                # A run that is due and not planned yet would be lost if only other parts have changed.
                due_anew = merged.words["schedule"] != row.settings["schedule"]
                row.settings = dict(merged.words)
            if name is not UNSET:
                row.display_name = name
            if description is not UNSET:
                row.display_description = description
            if max_concurrent is not UNSET:
                row.max_concurrent = max_concurrent
            if enabled is not None:
                _enable(session, row, enabled, moment)
            if found is not None and due_anew and row.enabled:
                row.next_run_at, row.planned_at = found.schedule.after(moment), moment
            row.updated_by, row.updated_at = ctx.user_id, moment
            words = [*(settings or ())]
            changed = {"name": name, "description": description, "max_concurrent": max_concurrent}
            words += [word for word, value in changed.items() if value is not UNSET]
            words += [] if enabled is None else ["resumed" if enabled else "paused"]
            actions.record(session, ctx, Kind.POLICY_UPDATE, row, ", ".join(words))
            session.flush()
            return rows.backup_policy(row)

        result = self._db.run(work)
        self._wake()
        return result

    def delete(self, ctx: RequestContext, policy_id: str) -> None:
        """Delete a policy and the records of its runs; its backups stay, and no retention deletes them.

        :raises BackupPolicyNotFound: there is none, or not for this caller.
        """

        def work(session: Session) -> None:
            row = _find(session, ctx, policy_id, hold=True)
            actions.record(session, ctx, Kind.POLICY_DELETE, row)
            session.execute(delete(PolicyRun).where(PolicyRun.policy_id == row.id))
            session.delete(row)

        self._db.run(work)

    def pause(self, ctx: RequestContext, policy_id: str) -> rows.BackupPolicy:
        """Let a policy rest: no run is planned, and those that wait are skipped.

        :raises BackupPolicyNotFound: there is none, or not for this caller.
        """
        return self.update(ctx, policy_id, enabled=False)

    def resume(self, ctx: RequestContext, policy_id: str) -> rows.BackupPolicy:
        """Let a policy run again, from its next scheduled time on.

        :raises BackupPolicyNotFound: there is none, or not for this caller.
        """
        return self.update(ctx, policy_id, enabled=True)

    def run(self, ctx: RequestContext, policy_id: str) -> Sequence[rows.PolicyRun]:
        """Back up the volumes of a policy now, besides its schedule, also of one that is paused.

        :returns: a run for each volume, and one that searches foreign catalogues; workers begin them soon.
        :raises BackupPolicyNotFound: there is none, or not for this caller.
        :raises InvalidInput: too many of its runs wait already.
        """

        with self._db.read() as session:
            # Outside the transaction: if that is repeated after a lost answer, it plans the same runs.
            moment = now(session)

        def work(session: Session) -> Sequence[rows.PolicyRun]:
            row = _find(session, ctx, policy_id, hold=True)
            actions.record(session, ctx, Kind.POLICY_RUN, row)
            planning.plan_now(session, row, moment, foreign=self._backups.mirrors.has_catalogues)
            run = PolicyRun
            found = select(run).where(run.policy_id == row.id, run.scheduled_at == moment)
            return [rows.policy_run(one) for one in session.scalars(found.order_by(run.volume_id))]

        result = self._db.run(work)
        self._wake()
        return result

    def runs(
        self,
        ctx: RequestContext,
        policy_id: str,
        *,
        detail: bool = True,
        **paging: Unpack[listing.Paging],
    ) -> rows.Page[rows.PolicyRun]:
        """Return a page of a policy's runs; see :func:`backupfw.manager.listing.page`.

        :param detail: accepted as in the other listings.
        :raises BackupPolicyNotFound: there is none, or not for this caller.
        """
        del detail
        with self._db.read() as session:
            row = _find(session, ctx, policy_id)
            # The policy decides who sees its runs.
            paging["all_tenants"] = bool(ctx.is_admin)
            found, total = listing.page(session, PolicyRun, ctx, paging, [PolicyRun.policy_id == row.id])
            return rows.Page([rows.policy_run(one) for one in found], total)

    def missed_or_failed(self, ctx: RequestContext, since: datetime, limit: int) -> Sequence[rows.PolicyRun]:
        """Return the newest runs, of all policies that a caller sees, that were missed or have failed.

        :param since: only those that could begin after this moment, naive UTC.
        :param limit: how many at most.
        """
        run = PolicyRun
        query = select(run).where(run.status.in_((planning.MISSED, planning.FAILED)), run.begin_at > since)
        if not ctx.is_admin:
            query = query.where(run.project_id == ctx.project_id)
        with self._db.read() as session:
            found = session.scalars(query.order_by(run.begin_at.desc(), run.id).limit(limit))
            return [rows.policy_run(one) for one in found]

    def preview(
        self,
        ctx: RequestContext,
        policy_id: str,
        *,
        at: datetime | None = None,
        days: int = 30,
        volume_id: str | None = None,
    ) -> Preview:
        """Return what a policy will do: see :mod:`backupfw.manager.policies.preview`.

        :param at: naive UTC; None: now.
        :raises BackupPolicyNotFound: there is none, or not for this caller.
        :raises InvalidInput: ``at`` is in the past, or too far in the future.
        :raises ServiceUnavailable: a foreign catalogue does not say which volumes there are.
        """
        found = self.get(ctx, policy_id)
        foreign: Mapping[str, Mapping[str, str]] = {}
        if self._backups.mirrors.has_catalogues and not policy_settings.read(found.settings).by_name:
            foreign = self._backups.mirrors.volumes(found.project_id)
        with self._db.read() as session:
            row, moment = _find(session, ctx, policy_id), now(session)
            at = moment if at is None else at
            # A clock may go a little wrong.
            if at < moment - timedelta(minutes=5):
                raise InvalidInput("at: must not be in the past.")
            if at > moment + timedelta(days=3660):
                raise InvalidInput("at: must be within ten years.")
            settings = policy_settings.read(row.settings)
            volumes = [
                *planning.volumes_of(session, [(row, settings)])[row.id],
                *planning.meant(settings, foreign),
            ]
            return preview.compute(
                session, row, settings, volumes, moment, at=at, days=days, volume_id=volume_id
            )

    def _checked(
        self,
        ctx: RequestContext,
        given: Mapping[str, Any],
        project_id: str,
        changed: Sequence[str] = PARTS,
    ) -> Settings:
        """Read settings, and look for the stores and the volumes that they name.

        :param changed: the parts that are new; what the others name may be gone by now.
        :raises InvalidInput: a value is wrong.
        """
        found = policy_settings.read(given)
        found.schedule.check()
        if "backup" in changed and found.store is not None and found.store not in self._conf.enabled_stores:
            raise InvalidInput(f"backup.store: there is no store {found.store} that is enabled.")
        if "copy_to" in changed:
            for number, store in enumerate(found.copies):
                if store not in self._conf.enabled_stores:
                    raise InvalidInput(f"copy_to[{number}].store: there is no store {store} that is enabled.")
        names = self.quiesce_commands
        if "backup" in changed and found.quiesce is not None and found.quiesce not in names:
            known = f"there are {', '.join(names)}" if names else "this service has none"
            raise InvalidInput(f"backup.quiesce: there are no commands {found.quiesce}; {known}.")
        if "selection" in changed:
            if not found.by_name and (names := self._backups.mirrors.unlisted()):
                raise InvalidInput(
                    f"selection.volume_ids: The volumes must be named: those of back end {', '.join(names)}"
                    " cannot be listed."
                )
            for volume_id in found.volume_ids or ():
                self._expect_volume(ctx, volume_id, project_id)
        return found

    def _expect_volume(self, ctx: RequestContext, volume_id: str, project_id: str) -> None:
        try:
            owner = self._backups.project_of_volume(ctx, volume_id)
        except VolumeNotFound as error:
            raise InvalidInput(f"selection.volume_ids: {error}") from error
        if owner != project_id:
            raise InvalidInput(f"selection.volume_ids: Volume {volume_id} belongs to another project.")


def _find(session: Session, ctx: RequestContext, policy_id: str, *, hold: bool = False) -> BackupPolicy:
    """Return a policy's row.

    :param hold: lock it until the transaction ends.
    """
    row = None
    if may_be_id(policy_id):
        if hold:
            lock(session, BackupPolicy, BackupPolicy.id == policy_id)
        row = session.get(BackupPolicy, policy_id, populate_existing=True)
    if row is None or not is_visible(ctx, row.project_id):
        raise BackupPolicyNotFound(policy_id)
    return row


def _enable(session: Session, row: BackupPolicy, enabled: bool, moment: datetime) -> None:
    """Pause a policy, or let it run again; to ask for what it is changes nothing."""
    if row.enabled == enabled:
        return
    row.enabled, row.planned_at = enabled, moment
    if enabled:
        row.next_run_at = policy_settings.read(row.settings).schedule.after(moment)
        return
    row.next_run_at = None
    waiting = (
        PolicyRun.policy_id == row.id,
        PolicyRun.status == planning.WAITING,
        # A process that died may have taken it, and even made its backup.
        or_(PolicyRun.taken_until.is_(None), PolicyRun.taken_until <= moment),
        ~exists().where(Backup.id == PolicyRun.backup_id),
    )
    skipped = {"status": planning.SKIPPED, "reason": planning.PAUSED, "tidied": True}
    session.execute(update(PolicyRun).where(*waiting).values(**skipped, ended_at=moment))
