"""Other processes that open the same plug-in: they work at the same time, are frozen, and are killed."""

from __future__ import annotations

import importlib
import importlib.util
import multiprocessing
import operator
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest

from backupfw.chunkstore.options import option_values

#: What another process does: it gets its plug-in, and the connection to the test.
Work = Callable[..., Any]
#: Seconds after which another process counts as hanging.
PATIENCE = 120.0

# Forked from a process that has neither threads nor connections, but has imported all of this.
_CONTEXT = multiprocessing.get_context("forkserver")
#: What it has imported before it is first forked; more costs only time.
_IMPORTED = ["backupfw.testing.volume", "oslo_config.cfg", "oslo_log.log"]


@dataclass(frozen=True)
class Recipe:
    """How another process makes a volume provider or key store: both take their options, and nothing else.

    :ivar module: the name of its class's module.
    :ivar file: where that is, for modules that are not installed.
    :ivar name: the class's name in it.
    :ivar options: values of the plug-in's options.
    """

    module: str
    file: str | None
    name: str
    options: Mapping[str, object]

    @classmethod
    def of(cls, plug_in: type[Any], options: Mapping[str, object]) -> Recipe:
        """Return that of a class."""
        file = getattr(sys.modules[plug_in.__module__], "__file__", None)
        return cls(plug_in.__module__, file, plug_in.__qualname__, dict(options))

    def open(self) -> Any:
        """Make it."""
        try:
            module = importlib.import_module(self.module)
        except ModuleNotFoundError:
            assert self.file is not None
            spec = importlib.util.spec_from_file_location(self.module, self.file)
            assert spec is not None
            assert spec.loader is not None
            module = sys.modules[self.module] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        kind = operator.attrgetter(self.name)(module)
        return kind(option_values(kind.options(), **dict(self.options)))


class Other:
    """Another process, which has opened the plug-in and waits for :meth:`go`."""

    def __init__(self, recipe: Recipe, work: Work, arguments: tuple[object, ...]) -> None:
        # Without effect once that process runs.
        _CONTEXT.set_forkserver_preload([*_IMPORTED, recipe.module])
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_main, args=(recipe, work, arguments, theirs), daemon=True)
        self._process.start()
        theirs.close()
        assert self.told() == "ready"

    @property
    def pid(self) -> int:
        """Its number."""
        assert self._process.pid is not None
        return self._process.pid

    def go(self) -> None:
        """Let it work, or go on with it."""
        # It may have ended.
        with suppress(OSError):
            self._pipe.send("go")

    def told(self) -> Any:
        """Return what it says next.

        :raises EOFError: it has ended.
        """
        if not self._pipe.poll(PATIENCE):
            pytest.fail("another process hangs")
        told = self._pipe.recv()
        if isinstance(told, _Failed):
            pytest.fail(f"in another process: {told.text}")
        return told

    def result(self) -> Any:
        """Let it work; return its result."""
        self.go()
        return self.told()

    def freeze(self) -> None:
        """Stop it, and return when it has stopped."""
        os.kill(self.pid, signal.SIGSTOP)
        end = time.monotonic() + PATIENCE
        while True:
            with open(f"/proc/{self.pid}/stat") as file:
                if file.read().rpartition(")")[2].split()[0] in "Tt":
                    return
            assert time.monotonic() < end, "another process cannot be frozen"
            time.sleep(0.002)

    def thaw(self) -> None:
        """Let it go on, unless it was killed."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill it, and return when it has ended."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


@contextmanager
def other_process(recipe: Recipe, work: Work, *arguments: object) -> Iterator[Other]:
    """Start another process for a ``with`` block; it is killed at the end.

    :param work: a function of a module that can be imported; it is called with the plug-in, the
        connection and the arguments, and its result is sent.
    """
    other = Other(recipe, work, arguments)
    try:
        yield other
    finally:
        other.kill()


@dataclass(frozen=True)
class _Failed:
    text: str


def _main(recipe: Recipe, work: Work, arguments: tuple[object, ...], pipe: Connection) -> None:
    try:
        plug_in = recipe.open()
        pipe.send("ready")
        pipe.recv()
        pipe.send(work(plug_in, pipe, *arguments))
    except BaseException as error:
        with suppress(OSError):
            pipe.send(_Failed(f"{type(error).__name__}: {error}"))
