"""Signals that wait for a process at its crash points."""

from __future__ import annotations

import signal
from pathlib import Path

from backupfw import crash_points


class Traps:
    """What :mod:`backupfw.crash_points` looks for in one directory.

    :ivar environment: with it a process looks there.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.environment = {"BACKUPFW_CRASH_POINTS": str(directory)}

    def set(self, point: str, number: int = signal.SIGKILL) -> None:
        """Let the next process that reaches a crash point get a signal there."""
        assert point in crash_points.NAMES
        for struck in self._struck(point):
            struck.unlink()
        part = self.directory / "part"
        part.write_text(str(int(number)))
        part.rename(self.directory / point)

    def is_set(self, point: str) -> bool:
        """Whether nobody has reached it yet."""
        return (self.directory / point).exists()

    def sprung(self, point: str) -> bool:
        """Whether a process was there and the signal has done its work: it has ended, or stands still."""
        return not self.is_set(point) and all(map(_has_worked, self._struck(point)))

    def clear(self) -> None:
        """Take all signals away."""
        for point in crash_points.NAMES:
            (self.directory / point).unlink(missing_ok=True)

    def reached(self) -> list[str]:
        """Return which crash points were reached: ``name session detail``."""
        log = self.directory / "log"
        return log.read_text().splitlines() if log.exists() else []

    def attempts(self, task: str) -> int:
        """Return how many attempts at a task, e.g. ``backup``, have begun since that list was begun."""
        return sum(line.startswith(f"{task}.begun ") for line in self.reached())

    def forget_reached(self) -> None:
        """Begin that list anew."""
        (self.directory / "log").unlink(missing_ok=True)

    def _struck(self, point: str) -> list[Path]:
        return [path for path in self.directory.glob(f"{point}.*") if path.suffix[1:].isdecimal()]


def _has_worked(struck: Path) -> bool:
    number, process = int(struck.read_text()), struck.suffix[1:]
    try:
        state = Path("/proc", process, "stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    if number == signal.SIGKILL:
        return state == "Z"
    return number != signal.SIGSTOP or state in "TtZ"
