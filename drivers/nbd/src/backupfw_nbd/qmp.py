"""Talks to a QEMU process by its monitor (QMP).

If a client ends while the monitor carries out its command, the monitor sends the answer to the next client.
So each command has an id of its own, which its answer repeats, and all other answers are passed over.
"""

from __future__ import annotations

import itertools
import json
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from backupfw.errors import SourceUnreadable


class QmpError(Exception):
    """QEMU refused a command; the text is QEMU's."""


class MonitorAway(SourceUnreadable):
    """The monitor does not answer: the machine is off, or another program holds the monitor."""

    may_pass = True


class Monitor:
    """A connection to a monitor, which serves one at a time: who has it is alone.  Not thread-safe.

    :param path: of the monitor's Unix socket.
    :param timeout: seconds for each answer.
    :raises MonitorAway: nobody answers.
    """

    def __init__(self, path: str, timeout: float) -> None:
        self._timeout = timeout
        self._socket = socket.socket(socket.AF_UNIX)
        self._pending = b""
        self._id, self._numbers = uuid.uuid4().hex, itertools.count()
        try:
            self._connect(path)
            self._answer(lambda answer: "QMP" in answer)
            self.run("qmp_capabilities")
        except (OSError, ValueError) as error:
            self.close()
            raise _away(error) from error
        except BaseException:
            self.close()
            raise

    def run(self, command: str, **arguments: Any) -> Any:
        """Do a command, and return its answer.

        :raises QmpError: QEMU refuses it.
        :raises MonitorAway: there is no answer.
        """
        mine = f"{self._id}-{next(self._numbers)}"
        message = {"execute": command, "id": mine, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
            answer = self._answer(lambda answer: answer.get("id") == mine)
            if "error" in answer:
                raise QmpError(str(answer["error"].get("desc", "")))
            return answer["return"]
        except (OSError, ValueError, LookupError) as error:
            raise _away(error) from error

    def transaction(self, actions: Sequence[tuple[str, dict[str, Any]]]) -> None:
        """Do several things at one moment, or none of them.

        :param actions: command and arguments of each.
        """
        if actions:
            self.run("transaction", actions=[{"type": kind, "data": data} for kind, data in actions])

    def close(self) -> None:
        """Let others have the monitor; idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, path: str) -> None:
        """Connect; where many wait for the monitor, there is no room in its queue for a moment."""
        give_up = time.monotonic() + self._timeout
        self._socket.setblocking(False)
        while True:
            try:
                self._socket.connect(path)
            except BlockingIOError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.05)
            else:
                return

    def _answer(self, is_wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Pass over events, and over answers to others, until the wanted answer comes."""
        give_up = time.monotonic() + self._timeout
        while not is_wanted(answer := self._receive(give_up)):
            pass
        return answer

    def _receive(self, give_up: float) -> dict[str, Any]:
        while b"\n" not in self._pending:
            self._socket.settimeout(max(0.001, give_up - time.monotonic()))
            data = self._socket.recv(1 << 16)
            if not data:
                raise ConnectionResetError("the monitor was closed")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ConnectionResetError("it is no monitor")
        return answer


def _away(error: Exception) -> MonitorAway:
    away = MonitorAway("The machine is off, or its monitor does not answer.")
    away.add_note(str(error))
    return away
