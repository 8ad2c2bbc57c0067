"""Progress of long work: a line that is redrawn on a terminal, plain lines now and then elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from typing import TextIO

#: Seconds between two redraws on a terminal, and between two plain lines elsewhere.
TERMINAL_PAUSE = 0.1
PLAIN_PAUSE = 10.0

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def human_size(count: float) -> str:
    """Return bytes as people read them, e.g. ``64 KiB`` or ``12.3 MiB``."""
    power = max(0, min((int(count).bit_length() - 1) // 10, len(_UNITS) - 1))
    value = count / (1 << 10 * power)
    return (
        f"{value:.0f} {_UNITS[power]}" if value.is_integer() or not power else f"{value:.1f} {_UNITS[power]}"
    )


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
    :param unit: ``bytes``, or a noun for what is counted.
    """

    def __init__(self, label: str, stream: TextIO | None = None, unit: str = "bytes") -> None:
        self._label = label
        self._stream = sys.stderr if stream is None else stream
        self._unit = unit
        self._terminal = self._stream.isatty()
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._next = self._started if self._terminal else self._started + PLAIN_PAUSE
        self._width = 0

    def control(self) -> Control:
        """Return what lets the engine show its progress here."""
        return Control(self)

    def _amount(self, count: int) -> str:
        return human_size(count) if self._unit == "bytes" else f"{count} {self._unit}"

    def _line(self, done: int, total: int | None, now: float) -> str:
        text = f"{self._label}: {self._amount(done)}"
        if total:
            text += f" of {self._amount(total)} ({100 * done // total} %)"
        seconds = now - self._started
        if self._unit == "bytes" and seconds >= 1:
            text += f", {human_size(done / seconds)}/s"
        return text

    def update(self, done: int, total: int | None = None) -> None:
        """Tell how far the work is; writes only when the last line is old enough.

        :param done: bytes (or things) done.
        :param total: how many there are, if known.
        """
        now = time.monotonic()
        with self._lock:
            if now < self._next:
                return
            self._next = now + (TERMINAL_PAUSE if self._terminal else PLAIN_PAUSE)
            self._write(self._line(done, total, now))

    def beat(self) -> None:
        """Tell that the work goes on, where nobody knows how far it is."""
        now = time.monotonic()
        with self._lock:
            if now >= self._next:
                self._next = now + (TERMINAL_PAUSE if self._terminal else PLAIN_PAUSE)
                self._write(f"{self._label}: {now - self._started:.0f} s")

    def _write(self, line: str, last: bool = False) -> None:
        if self._terminal:
            # Blanks wipe what a longer line left.
            self._stream.write("\r" + line.ljust(self._width) + ("\n" if last else ""))
            self._width = len(line)
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def finish(self, text: str) -> None:
        """Write the last line: what came out."""
        with self._lock:
            seconds = time.monotonic() - self._started
            self._next = float("inf")
            self._write(f"{self._label}: {text} ({seconds:.1f} s)", last=True)

    def abandon(self) -> None:
        """End a half-drawn line, so that what follows starts on its own."""
        with self._lock:
            self._next = float("inf")
            if self._terminal and self._width:
                self._stream.write("\n")
                self._stream.flush()
