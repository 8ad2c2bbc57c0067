"""The engine's control for work that a command does itself: never cancelled, shows its progress."""

from __future__ import annotations

from backupfw.cmd.progress import Progress


class TerminalControl:
    """A :class:`backupfw.engine.ports.Control` without a task.  Ctrl-C ends the work.

    :param progress: where progress is shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def check(self) -> None:
        """Go on."""

    def may_write(self) -> None:
        """Go on."""

    def progress(self, done: int, total: int) -> None:
        """Show it."""
        self._progress.update(done, total)
