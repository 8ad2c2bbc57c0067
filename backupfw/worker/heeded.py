"""Calls that may hang, and keep no attempt from ending: they are left to themselves then.

A database or a file system that does not answer cannot be interrupted.  So the call is made by a thread of
its own, and the attempt asks now and then whether it must end.
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

#: How often a wait asks whether the attempt must end, seconds.
_LOOK = 0.25
#: How long calls of a volume provider, which hear by themselves that they must end, get for that, seconds.
PROVIDER_GRACE = 3.0


def heeded(
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

    threading.Thread(target=copy_context().run, args=(run,), name="heeded", daemon=True).start()
    try:
        while not futures.wait((done,), _LOOK).done:
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

    manager, value = heeded(
        enter, control, grace=PROVIDER_GRACE, late=lambda pair: pair[0].__exit__(None, None, None)
    )
    with ExitStack() as stack:
        stack.push(manager)
        yield value
