"""Progress of long work: a bar on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

from backupfw.amounts import human_size

#: Seconds between two plain lines.
PLAIN_PAUSE = 10.0


def counted(count: int, noun: str) -> str:
    """Return a number with what it counts, e.g. ``1 finding`` or ``0 findings``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


class Control:
    """A :class:`backupfw.engine.ports.Control` without a task, for work that a command does itself.

    It is never cancelled; Ctrl-C ends the work.

    :param shown: where progress is shown.
    """

    def __init__(self, shown: Progress) -> None:
        self._shown = shown

    def check(self) -> None:
        """Go on."""

    def may_write(self) -> None:
        """Go on."""

    def progress(self, done: int, total: int) -> None:
        """Show it."""
        self._shown.update(done, total)


class Progress:
    """Shows how far a piece of work is.  ``update`` may be called from many threads.

    :param label: what is being done.
    :param stream: where to; standard error when None.
    :param unit: ``bytes``, or a noun for what is counted, in the plural.
    """

    def __init__(self, label: str, stream: TextIO | None = None, unit: str = "bytes") -> None:
        stream = sys.stderr if stream is None else stream
        self._label = label
        self._amount = human_size if unit == "bytes" else lambda count: f"{count:.0f} {unit}"
        self._speed = unit == "bytes"
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._over = False
        self._shown: _Bar | _Lines = _Bar(stream) if stream.isatty() else _Lines(stream)

    def control(self) -> Control:
        """Return what lets the engine show its progress here."""
        return Control(self)

    def _text(self, done: int, total: int | None) -> str:
        text = self._amount(done)
        if total:
            text += f" of {self._amount(total)} ({100 * done // total} %)"
        seconds = time.monotonic() - self._started
        if self._speed and seconds >= 1:
            text += f", {human_size(done / seconds)}/s"
        return text

    def update(self, done: int, total: int | None = None) -> None:
        """Show how far the work is, unless that was shown just now.

        :param done: bytes (or things) done.
        :param total: how many there are, if known.
        """
        with self._lock:
            if not self._over and self._shown.is_due():
                self._shown.show(f"{self._label}: {self._text(done, total)}", done, total)

    def beat(self) -> None:
        """Show that the work goes on, if it is not known how far it is."""
        with self._lock:
            if not self._over and self._shown.is_due():
                self._shown.show(f"{self._label}: {time.monotonic() - self._started:.0f} s", 0, None)

    def finish(self, text: str) -> None:
        """Write the last line: what came out."""
        self.abandon()
        self._shown.write(f"{self._label}: {text} ({time.monotonic() - self._started:.1f} s)")

    def abandon(self) -> None:
        """Show nothing more; what follows starts on a line of its own."""
        with self._lock:
            if not self._over:
                self._over = True
                self._shown.close()


class _Lines:
    """A line now and then, for logs and files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = time.monotonic() + PLAIN_PAUSE

    def is_due(self) -> bool:
        """Whether the last line is old enough."""
        return time.monotonic() >= self._next

    def show(self, text: str, _done: int, _total: int | None) -> None:
        """Write a line."""
        self._next = time.monotonic() + PLAIN_PAUSE
        self.write(text)

    def write(self, text: str) -> None:
        """Write a line now."""
        self._stream.write(f"{text}\n")
        self._stream.flush()

    def close(self) -> None:
        """Write nothing."""


class _Bar:
    """A bar on a terminal, from the first time that something is shown until it is closed."""

    def __init__(self, stream: TextIO) -> None:
        # Takes a while to import, and few commands need it.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = Console(file=stream, highlight=False)
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            console=self._console,
            transient=True,
            refresh_per_second=10,
            # Printed lines go above the bar if standard output is the terminal, too.
            redirect_stdout=sys.stdout.isatty(),
            redirect_stderr=False,
        )
        self._task = self._bar.add_task("", total=None)

    def is_due(self) -> bool:
        """Always: rich decides how often it draws."""
        return True

    def show(self, text: str, done: int, total: int | None) -> None:
        """Draw it."""
        self._bar.update(self._task, description=text, completed=done, total=total)
        self._bar.start()

    def write(self, text: str) -> None:
        """Write a line that stays."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Wipe the bar."""
        self._bar.stop()
