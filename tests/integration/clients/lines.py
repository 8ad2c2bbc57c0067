"""Talks to a program that runs a client: a line of JSON asks, a line of JSON answers."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any


class Program:
    """The running program."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, asked: Any) -> Any:
        """Ask one thing; returns the answer."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"it ended: {self._process.wait()}"
        return json.loads(line)


@contextmanager
def started(words: Sequence[str], variables: Mapping[str, str]) -> Iterator[Program]:
    """Start a program with an RC file's variables; it ends with the block."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OS_")}
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**kept, **variables}
    ) as process:
        try:
            yield Program(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
