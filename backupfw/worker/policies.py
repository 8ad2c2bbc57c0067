"""Runs backup policies while a worker process lives; every process does, and the database shares them out."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from backupfw.outages import Turns

if TYPE_CHECKING:
    from backupfw.manager.policies.runs import PolicyRuns
    from backupfw.outages import Outages

#: What is left to be done if it failed, although nothing may be due any more.
_STEPS = _PLAN, _WATCH, _BEGIN = (
    "Backup policies could not be planned",
    "The runs of backup policies could not be looked after",
    "Backups of policies could not be begun",
)
_CLOCK = "It could not be seen whether backup policies were planned too late"
_FORGET = "Old runs of backup policies could not be deleted"
#: Seconds between two looks for runs that are so old that they are deleted.
_FORGET_SECONDS = 3600.0
#: Seconds between two looks whether the clock went back.
_CLOCK_SECONDS = 60.0
#: So many polls pass at most between two looks while nothing is due or on and nobody wakes it up; what is due
#: is not late for it.
_IDLE_POLLS = 20
#: Seconds that the end waits for a step that is under way.
_PATIENCE = 5.0


class PolicyLoop:
    """Plans and watches runs in one thread, and begins them in another.

    To begin a run may mean to wait for a foreign catalogue; what is due must be planned meanwhile.

    :param runs: does the steps; thread-safe.
    :param poll_seconds: between two looks into the database.
    """

    def __init__(self, runs: PolicyRuns, poll_seconds: float, outages: Outages) -> None:
        self._runs = runs
        self._poll_seconds = poll_seconds
        self._outages = outages
        self._ending = threading.Event()
        # Of each thread: that it is to look now.
        self._to_plan, self._to_begin = threading.Event(), threading.Event()
        # Whether something is due or on, as the last look found it.
        self._busy = False
        self._turns = Turns(outages)
        self._threads = [
            threading.Thread(target=target, name=f"policies-{name}", daemon=True)
            for name, target in (("plan", self._keep_planning), ("begin", self._keep_beginning))
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self._threads:
            thread.start()

    def runs(self) -> bool:
        """Whether both threads live."""
        return all(thread.is_alive() for thread in self._threads)

    def nudge(self) -> None:
        """Look at once, if nothing was due or on: a policy may have changed.  Any thread may call it."""
        self._to_plan.set()

    def stop(self) -> None:
        """Begin nothing any more."""
        self._ending.set()
        self._to_plan.set()
        self._to_begin.set()

    def join(self) -> None:
        """Wait a little for the threads; what one of them leaves, another process does."""
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(_PATIENCE)

    def _keep_planning(self) -> None:
        while not self._ending.is_set():
            was_busy, seconds = self._busy, self._plan()
            if self._busy and not was_busy:
                self._to_begin.set()
            # While something is on, tasks end often, and each end is a wake-up.
            (self._ending if self._busy else self._to_plan).wait(seconds)
            # Before the next look: what comes after that counts.
            self._to_plan.clear()

    def _keep_beginning(self) -> None:
        while not self._ending.is_set():
            self._to_begin.wait(self._begin())
            self._to_begin.clear()

    def _plan(self) -> float:
        """Plan and watch; returns the seconds until the next look."""
        rest, more = 0.0, False
        with self._outages.guard("Backup policies could not be looked for"):
            rest = self._runs.rest()
        self._busy = rest <= 0 or any(self._outages.fails(step) for step in _STEPS)
        # An error of one must not keep the others from being done.
        if self._busy:
            with self._outages.guard(_PLAN):
                self._runs.plan()
            with self._outages.guard(_WATCH):
                more = self._runs.watch()
        if self._turns.is_due(_CLOCK, _CLOCK_SECONDS):
            with self._outages.guard(_CLOCK):
                self._runs.repair_clock()
        if self._turns.is_due(_FORGET, _FORGET_SECONDS):
            with self._outages.guard(_FORGET):
                self._runs.forget()
        if more:
            return 0.0
        return self._poll_seconds if self._busy else min(rest, _IDLE_POLLS * self._poll_seconds)

    def _begin(self) -> float:
        """Begin some; returns the seconds until the next look, none if there may be more."""
        begun = 0
        if self._busy:
            with self._outages.guard(_BEGIN):
                begun = self._runs.begin(self._ending.is_set)
        return 0.0 if begun else self._poll_seconds
