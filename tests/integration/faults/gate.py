"""A way to a server that can hang, as a network does that swallows everything without a word."""

from __future__ import annotations

import signal
import subprocess
import sys
from types import TracebackType
from typing import Self

_PROGRAM = """
import signal, sys
from backupfw.testing.proxy import FaultProxy

with FaultProxy("127.0.0.1", int(sys.argv[1])) as proxy:
    print(proxy.port, flush=True)
    signal.pause()
"""


class Gate:
    """A TCP proxy as a process of its own; use it in a ``with`` block.

    While it is frozen, connections stay, what is sent is taken, and nothing comes back; when it goes on, all
    of that arrives, late.

    :ivar port: where it listens on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def freeze(self) -> None:
        """Let nothing pass."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let everything pass, first what was held back."""
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()
