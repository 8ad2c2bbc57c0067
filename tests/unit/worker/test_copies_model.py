"""Backups and their copies in two stores as one random machine: managers, handlers and engine.

A volume is written; its backups are copied, promoted, restored and deleted, in any order.  Workers die at
every crash point and go on, stores are down, objects are damaged in one place and read from the other, and
the database is thrown away and rebuilt from both stores.  Whenever all tasks have ended, each store holds
exactly what its manifests name, and every backup can be restored from each of its places.
"""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, update

from backupfw import crash_points
from backupfw.db import models
from backupfw.errors import InvalidBackup
from backupfw.manager.lineage import lifecycle
from backupfw.manager.operators import recovery as entering
from tests.unit.manager.support import WIRE
from tests.unit.worker.test_copies import BOX, CopyWorld, content
from tests.unit.worker.test_encryption import MemoryKeys
from tests.unit.worker.world import SEGMENT, rebuilt

STORES = ("main", "offsite")
OTHER = {"main": "offsite", "offsite": "main"}
#: Every place where a worker can die.
POINTS = [
    name
    for name in crash_points.NAMES
    if name.startswith(("backup.", "copy.", "restore.", "delete.", "key."))
]
#: What a database that is lost had of backups; what references others before these.
LOST = (
    *(models.DamageMark, models.DamagedObject, models.BackupCopy, models.BackupMetadata, models.Backup),
    *(models.Segment, models.DataKey, models.Task, models.Message, models.OutboxEvent),
)

choices = st.integers(0, 99)


class BusyWorld(CopyWorld):
    """A world in which other workers do all they can while one is at a crash point."""

    #: The crash point; None: one task runs after the other.
    meanwhile: str | None = None

    def reach(self, name: str, _detail: object = "") -> None:
        super().reach(name)
        # Streams have no database.
        if name == self.meanwhile and threading.current_thread() is threading.main_thread():
            self.meanwhile = None
            self.work()


class Copies(RuleBasedStateMachine):
    """The machine.  ``held`` is what each backup must be restored to; ``ever`` has deleted ones, too."""

    #: What happened, over all runs: a machine that never meets these cases shows nothing.
    seen: Counter[str]
    encrypted: bool
    worlds: list[BusyWorld]

    def __init__(self) -> None:
        super().__init__()
        self.world = BusyWorld(MemoryKeys() if self.encrypted else None)
        self.worlds[:] = [self.world]
        self.contents: dict[str, Any] = {
            "main": self.world.faulty.inner,
            "offsite": self.world.offsite,
        }
        self.held: dict[str, bytes] = {}
        self.ever: dict[str, bytes] = {}
        #: Since the database was lost.
        self.steps = 0

    # -- helpers ----------------------------------------------------------------------------------

    def row(self, backup: str) -> Any:
        return self.world.row(models.Backup, backup)

    def available(self) -> list[str]:
        return sorted(one for one in self.held if self.world.status(one) == lifecycle.AVAILABLE)

    def pick(self, choice: int) -> str | None:
        found = self.available()
        return found[choice % len(found)] if found else None

    def copied(self, choice: int, *statuses: str) -> str | None:
        """Choose an available backup whose copy has one of these statuses."""
        found = [one for one in self.available() if self.world.copy_status(one) in statuses]
        return found[choice % len(found)] if found else None

    def settle(self) -> None:
        """Let all tasks end, with both stores."""
        self.world.work()
        self.world.trap = self.world.meanwhile = None
        self.world.stores.away.clear()
        self.world.work()

    def check(self, backup: str) -> None:
        """Restore a backup from each of its places, by the engine alone."""
        store = str(self.row(backup).store)
        assert self.world.restored(backup, store) == self.held[backup]
        if self.world.copy_status(backup) == lifecycle.AVAILABLE:
            assert self.world.restored(backup, OTHER[store]) == self.held[backup]
            self.seen["restored from both"] += 1

    # -- steps ------------------------------------------------------------------------------------

    @initialize(seed=choices)
    def fill(self, seed: int) -> None:
        self.data = bytearray(content(seed))
        self.volume = self.world.filled_volume(bytes(self.data))
        # A chain with copies, in which anything can happen at once.
        for number in range(3):
            self.back_up(seed + number, full=False)
            self.world.work()
        for number in range(3):
            self.copy(number)
        self.world.work()

    @rule(seed=st.integers(0, 1 << 16), full=st.booleans())
    def back_up(self, seed: int, full: bool) -> None:
        if self.world.volume_status(self.volume) != "available":
            return
        rng = random.Random(seed)
        start = rng.randrange(3) * SEGMENT + rng.randrange(15) * 4096
        self.data[start : start + 4096] = rng.randbytes(4096)
        self.world.provider.volumes[self.volume][:] = self.data
        incremental = bool(self.available()) and not full
        made = self.world.backups.create(self.world.ctx(), volume_id=self.volume, incremental=incremental)
        self.held[made.id] = self.ever[made.id] = bytes(self.data)

    @rule(choice=choices)
    def copy(self, choice: int) -> None:
        backup = self.copied(choice, "", lifecycle.ERROR)
        if backup is None:
            return
        try:
            self.world.backups.copy(self.world.ctx(), backup, OTHER[str(self.row(backup).store)])
        except InvalidBackup as error:
            assert "removed there" in str(error)  # noqa: PT017

    @rule(choice=choices)
    def remove(self, choice: int) -> None:
        backup = self.copied(choice, lifecycle.COPYING, lifecycle.AVAILABLE, lifecycle.ERROR)
        if backup is not None:
            self.seen[f"removed {self.world.copy_status(backup)}"] += 1
            self.world.backups.remove_copy(self.world.ctx(), backup, OTHER[str(self.row(backup).store)])

    @rule(choice=choices)
    def promote(self, choice: int) -> None:
        backup = self.copied(choice, lifecycle.AVAILABLE)
        if backup is not None:
            self.world.backups.promote_copy(
                self.world.ctx(), backup, OTHER[str(self.row(backup).store)], WIRE
            )
            self.seen["promoted"] += 1

    @rule(choice=choices)
    def delete(self, choice: int) -> None:
        backup = self.pick(choice)
        if backup is not None:
            self.world.backups.delete(self.world.ctx(), backup)
            del self.held[backup]

    @rule(store=st.sampled_from(STORES))
    def lose_a_store_for_a_while(self, store: str) -> None:
        """What needs it waits; what is in the other one goes on."""
        self.world.stores.away = {store}
        self.seen["a store was down"] += 1

    @rule()
    def find_all_stores(self) -> None:
        self.world.stores.away.clear()

    @rule(point=st.sampled_from(POINTS))
    def die_at(self, point: str) -> None:
        """The next worker that comes there dies."""
        self.world.trap = point

    @rule(point=st.sampled_from(POINTS))
    def let_others_work_at(self, point: str) -> None:
        """The next worker that comes there is slow: others do all other tasks meanwhile."""
        self.world.meanwhile = point

    @rule()
    def do_one_task(self) -> None:
        self.world.end_pauses()
        task = self.world.claim_next()
        if task is not None:
            self.seen[self.world.run_one(task)] += 1

    @rule()
    def do_some_tasks(self) -> None:
        self.seen.update(ended for _, ended in self.world.work())

    @rule(store=st.sampled_from(STORES))
    def sweep(self, store: str) -> None:
        if BOX in self.contents[store].contents and store not in self.world.stores.away:
            self.world.sweep(store)

    @rule(choice=choices, store=st.sampled_from(STORES), seed=choices, mended=st.booleans())
    def damage(self, choice: int, store: str, seed: int, mended: bool) -> None:
        """Objects of a backup change or vanish in one place: a restore reads the other, and repairs."""
        self.settle()
        backup = self.copied(choice, lifecycle.AVAILABLE)
        if backup is None:
            return
        rng = random.Random(seed)
        mine = sorted(key for key in self.world.held(self.contents[store]) if f"/{backup}/" in key)
        for key in rng.sample(mine, min(2, len(mine))):
            self.world.damage(store, key, rng.choice([None, 100]))
        if mended:
            assert self.world.restore_to_volume(backup) == self.held[backup]
            self.seen["restored beside damage"] += 1
        assert [one.left for one in self.world.repair(backup)] == [0, 0]

    @invariant()
    def count(self) -> None:
        self.steps += 1

    @rule()
    def look(self) -> None:
        self.settle()
        for backup in list(self.held):
            assert self.world.status(backup) == lifecycle.AVAILABLE, self.row(backup).fail_reason
            self.check(backup)
        self.world.is_clean()

    @precondition(lambda self: self.steps > 15)
    @rule(order=st.permutations(STORES), half=st.booleans())
    def lose_the_database(self, order: list[str], half: bool) -> None:
        """Nothing is left but the stores; what was under way is found whole, damaged or as orphans."""
        self.steps = 0
        if not half:
            self.settle()
        self.seen["tasks were lost"] += self.world.tasks.pending() > 0
        self.world.trap = self.world.meanwhile = None
        self.world.stores.away.clear()
        whole = {
            one for one in self.held if self.world.status(one) in (lifecycle.AVAILABLE, lifecycle.RESTORING)
        }
        with self.world.db.write() as session:
            for model in LOST:
                session.execute(delete(model))
            session.execute(update(models.Manifest).values(base_id=None))
            session.execute(delete(models.Manifest))
            session.execute(update(models.Volume).values(status="available", previous_status=None))
        self.held = {}
        broken: list[str] = []
        for store in order:
            if BOX in self.contents[store].contents:
                broken += self.enter(rebuilt(self.world, self.world.stores.container(store, BOX)))
        for backup in broken:
            self.mend(backup)
        assert whole <= set(self.held)
        for store in order:
            if BOX in self.contents[store].contents:
                self.world.sweep(store)
        self.look()
        self.seen["rebuilt"] += 1

    def enter(self, entered: list[entering.Entered]) -> list[str]:
        """Note what was entered; return the backups that are in error."""
        broken = []
        for one in entered:
            assert one.result == entering.ENTERED
            self.seen["found as a copy"] += one.is_copy and not one.is_other
            if one.found.problem is not None:
                broken.append(one.backup_id)
            elif one.backup_id not in broken and not (one.is_copy and not one.is_other):
                self.held[one.backup_id] = self.ever[one.found.facts.backup_id]
        return broken

    def mend(self, backup: str) -> None:
        """A backup that was found in error is whole again if another store has it; else it goes."""
        ctx = self.world.ctx()
        if self.world.copy_status(backup) != lifecycle.AVAILABLE:
            self.world.backups.delete(ctx, backup)
            return
        assert [one.left for one in self.world.repair(backup)] == [0, 0]
        self.world.backups.reset_status(ctx, backup, "available")
        self.held[backup] = self.ever[backup]
        self.seen["mended after a rebuild"] += 1

    def teardown(self) -> None:
        """All is deleted, and both stores are empty."""
        if not hasattr(self, "volume"):
            return
        try:
            self.look()
            for backup in list(self.held):
                self.world.backups.delete(self.world.ctx(), backup)
            self.held = {}
            self.look()
            assert not any(self.world.held(one) for one in self.contents.values())
        finally:
            self.world.offsite.close()
            self.world.close()


@pytest.fixture(params=["clear", pytest.param("encrypted", marks=pytest.mark.check)])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Copies]]:
    worlds: list[BusyWorld] = []
    monkeypatch.setattr(crash_points, "reach", lambda *point: worlds[0].reach(*point))
    parts = {"seen": Counter(), "encrypted": request.param == "encrypted", "worlds": worlds}
    return type("CopiesHere", (Copies,), parts)


def play(machine: type[Copies], **options: Any) -> None:
    profile = settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    run_state_machine_as_test(machine, settings=profile)


def test_any_history_of_copies(machine: type[Copies]) -> None:
    play(machine, max_examples=2, stateful_step_count=40, derandomize=True)


@pytest.mark.check
@pytest.mark.parametrize("machine", ["clear"], indirect=True)
def test_many_histories_of_copies(machine: type[Copies]) -> None:
    cases = (
        *("killed", "waits", "promoted", "removed available", "removed copying", "a store was down"),
        *("restored from both", "restored beside damage", "rebuilt", "found as a copy", "tasks were lost"),
    )
    play(machine, max_examples=12, stateful_step_count=50, derandomize=True)
    missed = [case for case in cases if not machine.seen[case]]
    assert not missed, f"never came up: {missed}; seen: {machine.seen}"


# As long as it takes.
@pytest.mark.timeout(0)
@pytest.mark.soak
def test_copies_for_long(machine: type[Copies]) -> None:
    play(machine, max_examples=3000, stateful_step_count=80)
