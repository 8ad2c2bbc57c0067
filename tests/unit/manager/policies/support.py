"""A world with backup policies, and a clock that a test sets."""

from __future__ import annotations

from datetime import datetime, timedelta, tzinfo
from typing import Any, ClassVar

import pytest
from sqlalchemy import event

from backupfw.db import models
from backupfw.db import session as db_session
from backupfw.manager import rows
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.policies.runs import PolicyRuns
from backupfw.manager.queue import tasks
from tests.unit.manager.support import WIRE, World


class Clock(datetime):
    """The clock of a SQLite database, which is this host's."""

    moment: ClassVar[datetime] = datetime(2026, 1, 1)

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Clock:
        """Return the time that the test has set; never the same one twice."""
        Clock.moment += timedelta(microseconds=1)
        at = Clock.moment
        return cls(at.year, at.month, at.day, at.hour, at.minute, at.second, at.microsecond, tz)


class PolicyWorld(World):
    """A world whose clock the test sets.

    :param pauses: of the projects whose policies rest, why.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
        monkeypatch.setattr(db_session, "datetime", Clock)
        Clock.moment = datetime(2026, 1, 1, 12)
        super().__init__(**more)
        self.policies = PolicyManager(self.db, self.conf, self.backups, self._wake)
        self.paused: dict[str, str] = {}
        #: Stores that do not answer.
        self.down: set[str] = set()
        #: Rules that forbid members everything.
        self.forbidden: set[str] = set()
        self.runs = self.another_process()
        self.conf.quota.backup_policies = -1

    def another_process(self) -> PolicyRuns:
        """Return what another worker process has."""
        return PolicyRuns(
            self.db,
            self.backups,
            lambda project: self.paused.get(project),
            lambda context, rule, _: rule not in self.forbidden and context.roles == ["member"],
            lambda: {store: WIRE for store in self.conf.enabled_stores if store not in self.down},
        )

    @staticmethod
    def at(text: str) -> None:
        """Set the clock."""
        Clock.moment = datetime.fromisoformat(text)

    @staticmethod
    def later(**time: float) -> None:
        """Let time pass."""
        Clock.moment += timedelta(**time)

    def policy(self, project: str = "p1", **given: Any) -> str:
        """Make a policy; return its id.  Unless said otherwise it is daily, at midnight, of all volumes."""
        parts = {"selection": {"all": True}, **given}
        schedule = {"cron": "@daily", "jitter": 0, **parts.pop("schedule", {})}
        settings = {"schedule": schedule, "selection": parts.pop("selection")}
        settings |= {name: parts.pop(name) for name in ("backup", "retention", "copy_to") if name in parts}
        made = self.policies.create(self.ctx(project), settings=settings, **parts)
        return made.id

    def runs_of(self, policy_id: str, **where: Any) -> list[models.PolicyRun]:
        """Return a policy's runs by scheduled time, with these values."""
        row = models.PolicyRun
        found = self.rows(
            row, row.policy_id == policy_id, *(getattr(row, name) == where[name] for name in where)
        )
        return sorted(found, key=lambda one: (one.scheduled_at, one.volume_id))

    def run(self, policy_id: str) -> models.PolicyRun:
        """Return the only run of a policy."""
        (found,) = self.runs_of(policy_id)
        return found

    def step(self) -> None:
        """Do what a worker process does again and again, until there is nothing to do."""
        if self.runs.rest() > 0:
            # It does nothing then, so there must be nothing.
            assert (self.runs.plan(), self.runs.begin(), self.runs.watch()) == (0, 0, False)
            return
        self.runs.plan()
        self.watch()
        if self.runs.begin():
            while self.runs.begin():
                pass
            self.watch()

    def watch(self) -> None:
        """Note what became of all runs."""
        while self.runs.watch():
            pass

    def backups_of(self, policy_id: str | None) -> list[models.Backup]:
        """Return the backups of a policy that are there, the oldest first."""
        row = models.Backup
        found = self.rows(row, row.policy_id == policy_id, row.deleted.is_(False), row.status != "deleting")
        return sorted(found, key=lambda one: (one.created_at, one.id))

    def make(self) -> list[rows.Backup]:
        """Make all backups that are waiting."""
        made = []
        while (task := self.tasks.claim("host/w", 60, [tasks.BACKUP_CREATE])) is not None:
            plan = self.outcomes.creating.start(task)
            self.outcomes.creating.bind_source(task, "source", "full backup")
            made.append(self.outcomes.creating.finish(task, self.result(plan)))
        return made

    def copy(self) -> None:
        """Make all copies that are waiting."""
        while (task := self.tasks.claim("host/w", 60, [tasks.BACKUP_COPY])) is not None:
            self.outcomes.copying.start(task)
            self.outcomes.copying.place(task, None, detached=False)
            self.outcomes.copying.finish(task)

    def remove(self) -> None:
        """Carry out all deletions that are waiting."""
        while (task := self.tasks.claim("host/w", 60, [tasks.BACKUP_DELETE])) is not None:
            plan = self.outcomes.deleting.start(task)
            if plan is not None:
                self.outcomes.deleting.finish(task, plan)
        self.run_releases()

    def night(self) -> None:
        """Begin what is due, make its backups, and let retention work."""
        self.step()
        self.make()
        self.step()
        self.remove()


def count_statements(world: World) -> list[str]:
    """Return a list to which every statement from now on is added."""
    found: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        found.append(statement)

    event.listen(world.db.engine, "before_cursor_execute", note)
    return found
