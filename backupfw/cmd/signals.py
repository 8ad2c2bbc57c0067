"""Signals of the commands that serve: none is lost, whichever thread the kernel gives it to.

Python runs a signal handler in the main thread only, and only when that thread runs Python code.  While it
waits in a lock or for a server, a signal that another thread received has no effect.  Here the interpreter
writes the number of each signal into a pipe at once (:func:`signal.set_wakeup_fd`), and a thread of its own
reads the pipe.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from oslo_log import log

LOG = log.getLogger(__name__)

#: Signals that the commands that serve handle.
HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: ``backupfw worker`` handles the ends of its processes and its deadlines, too.
_HELD = {*HANDLED, signal.SIGALRM, signal.SIGCHLD}


def _pass(_number: int, _frame: FrameType | None) -> None:
    """Do nothing: the number is in the pipe already."""


@contextmanager
def until_stopped(reload: Callable[[], None], stop_seconds: float) -> Iterator[threading.Event]:
    """Yield an event that the first SIGINT or SIGTERM sets; the second one ends the process at once.

    Only in the main thread.  Within the block, no signal is lost; before it, signals have the system's
    default effects.

    :param reload: what SIGHUP does, in a thread of its own.
    :param stop_seconds: the process is ended this long after the first SIGINT or SIGTERM, whatever it waits
        for.
    """
    stop = threading.Event()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    listener = threading.Thread(
        target=_listen, args=(reader, stop, reload, stop_seconds), name="signals", daemon=True
    )
    listener.start()
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old = {number: signal.signal(number, _pass) for number in HANDLED}
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
        # The end of the pipe ends the thread.
        os.close(writer)
        listener.join()
        os.close(reader)


def _listen(reader: int, stop: threading.Event, reload: Callable[[], None], stop_seconds: float) -> None:
    """Act upon signals until the pipe is closed."""
    end: float | None = None
    while True:
        left = None if end is None else max(0.0, end - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            LOG.error("Not stopped within [backup] stop_seconds = %g; ending at once", stop_seconds)
            os._exit(1)
        numbers = os.read(reader, 64)
        if not numbers:
            return
        for number in numbers:
            if number == signal.SIGHUP:
                threading.Thread(target=reload, name="reload", daemon=True).start()
            elif number in (signal.SIGINT, signal.SIGTERM):
                if stop.is_set():
                    os._exit(128 + number)
                end = time.monotonic() + stop_seconds
                stop.set()


@contextmanager
def held_back() -> Iterator[None]:
    """Hold signals back from this thread, and from processes it forks until they call :func:`let_through`.

    A forked process has its parent's handlers and pipe until it has made its own.  A signal that reached it
    before that would go to its parent instead.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_through() -> None:
    """Let this thread receive what :func:`held_back` held back from it."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)
