"""Cancellable calls: a call that hangs does not keep its attempt from ending.

A database or a file system that does not answer cannot be interrupted.  So a thread of its own makes the
call; meanwhile the attempt checks whether it is cancelled, and then leaves the thread behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import copy_context
from typing import TypeVar

from backupfw.worker.control import TaskControl

Result = TypeVar("Result")

#: Seconds between two checks whether the attempt must end.
_POLL_INTERVAL = 0.25
#: Seconds that a call of a volume provider gets to end by itself after a cancellation, which it also sees.
PROVIDER_GRACE = 3.0


def run_cancellable(
    call: Callable[[], Result],
    control: TaskControl,
    *,
    grace: float = 0.0,
    late: Callable[[Result], object] = lambda _: None,
) -> Result:
    """Return what ``call`` returns, or raise what it raises.

    :param grace: seconds it gets to end once the attempt must.
    :param late: called with its result if nobody waits for it any more, in the call's own thread.
    :raises TaskStopped: the attempt must end.
    """
    done: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  (raised again where it is waited for)
            if done.set_running_or_notify_cancel():
                done.set_exception(error)
        else:
            if done.set_running_or_notify_cancel():
                done.set_result(result)
            else:
                late(result)

    threading.Thread(target=copy_context().run, args=(run,), name="cancellable", daemon=True).start()
    try:
        while not futures.wait((done,), _POLL_INTERVAL).done:
            control.check()
    except BaseException:
        futures.wait((done,), grace)
        if not done.cancel() and done.exception() is None:
            late(done.result())
        raise
    return done.result()


@contextmanager
def opened(make: Callable[[], AbstractContextManager[Result]], control: TaskControl) -> Iterator[Result]:
    """Lend what a provider opens; an open that hangs is left, and closed again if it comes back.

    :raises TaskStopped: the attempt must end, and it is not open yet.
    """

    def enter() -> tuple[AbstractContextManager[Result], Result]:
        manager = make()
        return manager, manager.__enter__()

    manager, value = run_cancellable(
        enter, control, grace=PROVIDER_GRACE, late=lambda pair: pair[0].__exit__(None, None, None)
    )
    with ExitStack() as stack:
        stack.push(manager)
        yield value
