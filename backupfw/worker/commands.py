"""Commands of the operator's: without a shell, without our environment, and with an end in any case."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

from oslo_log import log

LOG = log.getLogger(__name__)

#: All that a command finds in its environment: that of the service may have credentials.
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
#: How much of its output is logged, bytes.
_OUTPUT = 2000
#: Seconds between two looks at a command that runs.
_POLL = 0.05
#: Seconds that pass until a command is killed here which should be dead by then.
_GRACE = 2.0


class CommandFailed(Exception):
    """A command did not succeed; the text is for operators.

    :ivar started: whether it may have done something.
    """

    def __init__(self, text: str, *, started: bool = True) -> None:
        super().__init__(text)
        self.started = started


def filled(arguments: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """Return a command with its placeholders replaced.

    :param arguments: the program's absolute path first.
    :param values: by the names that are in braces.
    :raises CommandFailed: a value could be taken for something else than a value, or the program is missing.
    """

    def value(found: re.Match[str]) -> str:
        text = values[found[1]]
        if not text or text.startswith("-") or not text.isprintable():
            raise CommandFailed(f"{found[1]} is {text!a}, which is no argument", started=False)
        return text

    if not os.access(arguments[0], os.X_OK):
        raise CommandFailed(f"{arguments[0]} is no program that this worker can run", started=False)
    return [_PLACEHOLDER.sub(value, one) for one in arguments]


def run(arguments: Sequence[str], seconds: float, check: Callable[[], None] = lambda: None) -> None:
    """Run a command, and log what it writes.

    :param arguments: what :func:`filled` has returned.
    :param seconds: after which it is killed with its process group, even if this process is dead by then.
    :param check: called while it runs; it is killed if this raises.
    :raises CommandFailed: it could not be started, took too long, or its exit status is not 0.
    """
    program = arguments[0]
    try:
        process = subprocess.Popen(  # noqa: S603  (the operator's own command)
            ["timeout", "--signal=KILL", str(seconds), *arguments],  # noqa: S607  (of the path above)
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
        )
    except OSError as error:
        raise CommandFailed(f"{program} cannot be run by timeout: {error}", started=False) from error
    output = bytearray()
    try:
        _wait(process, output, time.monotonic() + seconds + _GRACE, check)
    finally:
        assert process.stdout is not None
        process.stdout.close()
        if process.returncode is None:
            _kill(process)
        if output:
            # A guest may have said it: what it looks like in a terminal, or a log, is not his choice.
            LOG.info("%s wrote: %a", program, output.decode("utf-8", "replace").strip())
    if process.returncode in (None, -signal.SIGKILL, 128 + signal.SIGKILL):
        raise CommandFailed(f"{program} was killed, probably after {seconds:g} s")
    if process.returncode:
        raise CommandFailed(f"{program} has ended with the exit status {process.returncode}")


def _wait(
    process: subprocess.Popen[bytes], output: bytearray, deadline: float, check: Callable[[], None]
) -> None:
    """Wait for the end of a command, but not of what it leaves behind; read on, so that it can write on."""
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    os.set_blocking(pipe, False)
    # Not select.select, which knows no more than 1024 descriptors.
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    is_open = True
    while True:
        has_ended = process.poll() is not None
        if is_open and poll.poll(0 if has_ended else _POLL * 1000):
            with contextlib.suppress(BlockingIOError):
                piece = os.read(pipe, 1 << 16)
                is_open = bool(piece)
                output += piece[: max(0, _OUTPUT - len(output))]
        elif not is_open and not has_ended:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_POLL)
        if has_ended or time.monotonic() >= deadline:
            return
        check()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a command with its process group; one that hangs in the kernel is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_GRACE)
