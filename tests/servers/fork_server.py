"""Runs a program, each time in a process of its own, from a process that has imported it: imports are most
of what a short run does.

``fork_server.py SOCKET MODULE:FUNCTION [NAME ...]`` imports the module and what the names say (``package.*``
is a package with all modules in it, ``module:function`` a function that is called, too, for what it keeps in
memory), says that it is ready, and serves until its standard input ends.  For each run, somebody sends the
words, the directory, the environment, and the three standard files; the function runs with them in a fork,
and who asked gets two lines: the id of the process when it starts, and what its end was, as ``subprocess``
counts.

It needs nothing but Python, so that the interpreter of any environment can run it.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import pkgutil
import select
import signal
import socket
import sys
import threading

#: Modules that look at the environment when they are imported.
LOOK_AGAIN = ("backupfw.crash_points",)


def function_of(name: str):
    """Import a function."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def prepare(name: str) -> None:
    """Import a module, or a package with everything in it that can be imported here, or call a function."""
    if ":" in name:
        function_of(name)()
        return
    package = importlib.import_module(name.removesuffix(".*"))
    if not name.endswith(".*"):
        return
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        # What is not for here, such as scripts and parts for other systems, is left to who needs it.
        with contextlib.suppress(Exception, SystemExit):
            importlib.import_module(found.name)


def run(function, words: list[str], directory: str, environment: dict[str, str], session: bool) -> int:
    """Be the process that was asked for; returns its exit status."""
    if session:
        os.setsid()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    for name in LOOK_AGAIN:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    sys.argv = words
    try:
        status = function()
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    # What an interpreter does at its end, but for the removal of what it has imported.
    threading._shutdown()
    atexit._run_exitfuncs()
    for file in (sys.stdout, sys.stderr):
        # The reader of the output may have left.
        with contextlib.suppress(OSError, ValueError):
            file.flush()
    return status if isinstance(status, int) else 0 if status is None else 1


def attend(link: socket.socket, function) -> None:
    """Start the process that somebody asks for, and tell them of it until it ends."""
    length, files, _flags, _address = socket.recv_fds(link, 8, 3)
    if len(length) < 8:
        return
    asked = json.loads(link.recv(int.from_bytes(length, "big"), socket.MSG_WAITALL))
    child = os.fork()
    if child == 0:
        status = 70
        try:
            link.close()
            for number, file in enumerate(files):
                os.dup2(file, number)
                os.close(file)
            status = run(function, *asked)
        finally:
            os._exit(status)
    for file in (*files, 0, 1, 2):
        os.close(file)
    link.sendall(b"%d\n" % child)
    _, status = os.waitpid(child, 0)
    # Who asked may be gone.
    with contextlib.suppress(OSError):
        link.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def serve(address: str, entry: str, names: list[str]) -> None:
    """Serve until the standard input ends."""
    function = function_of(entry)
    for name in names:
        prepare(name)
    gc.collect()
    # Pages that no collection touches stay shared.
    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        print("ready", flush=True)
        # Nobody waits for those that attend; who is asked for waits for processes of its own.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        while True:
            ready, _, _ = select.select([listener, sys.stdin], [], [])
            if sys.stdin in ready:
                return
            link, _ = listener.accept()
            if os.fork() == 0:
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                listener.close()
                try:
                    attend(link, function)
                finally:
                    os._exit(0)
            link.close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], sys.argv[3:])
