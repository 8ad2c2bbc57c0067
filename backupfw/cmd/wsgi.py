"""The API for any WSGI server: ``backupfw.cmd.wsgi:application``.

Configured by environment variables, because a WSGI server hands no options on: ``BACKUPFW_CONFIG_FILE``
(several, separated by ``:``) and ``BACKUPFW_STATE_DIR`` are what ``--config-file`` and ``--state-dir`` are
to the commands.  Importing this module opens nothing; the first request loads the configuration.  Where the
server listens is its own affair, so ``[api] listen`` is not looked at: with ``auth_strategy = noauth`` it
is up to the server's configuration to stay on loopback.

Servers with several processes fork them, before or after the import.  Connections and threads belong to the
process that made them, so each makes the API for itself, and closes it when it ends.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from backupfw.api import faults
from backupfw.cmd import database, meters, service
from backupfw.cmd.configure import load
from backupfw.conf import console
from backupfw.conf import logging as log_conf
from backupfw.dispatch import transport
from backupfw.errors import ServiceUnavailable

LOG = logging.getLogger(__name__)

# The configuration says whether it is needed, but is loaded later, in a thread of the server.
with contextlib.suppress(ImportError):
    transport.load_library()


class _Process:
    """The API of one process, made when it is first asked for."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stack = ExitStack()
        self._app: Any = None

    def app(self) -> Any:
        """Return the application; thread-safe.

        :raises Exception: it could not be made; nothing is left of it, and the next call tries again.
        """
        if self._app is None:
            with self._lock:
                if self._app is None:
                    self._app = self._make()
        return self._app

    def _make(self) -> Any:
        files = [path for path in os.environ.get("BACKUPFW_CONFIG_FILE", "").split(":") if path]
        state_dir = os.environ.get("BACKUPFW_STATE_DIR") or None
        conf = load(argparse.Namespace(config_file=files, state_dir=state_dir, debug=False)).conf
        # The server may listen for everybody, whatever [api] listen says: the console has to be asked for.
        conf.set_default("enabled", False, console.GROUP)
        log_conf.setup(conf)
        database.prepare(conf)
        with ExitStack() as stack:
            api = stack.enter_context(service.api_application(conf))
            if meters.of_several_processes():
                # Otherwise each request would get the figures of another process, without those of the rest.
                parts = {"api": lambda: True}
                service.monitor(stack, conf, api.db, api.meters, parts, service.api_port(conf), shared=True)
            self._stack = stack.pop_all()
        return api.app

    def close(self) -> None:
        """Close what was made, sending what waits to be sent."""
        self._stack.close()


_process = _Process()
#: The API of the process from which this one was forked.  It is kept: its connections, if they were closed
#: here, would end there, too.
_inherited: list[_Process] = []


def _begin_anew() -> None:
    """Give a forked process an API of its own."""
    global _process
    _inherited.append(_process)
    _process = _Process()


os.register_at_fork(after_in_child=_begin_anew)
atexit.register(lambda: _process.close())


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request.  Thread-safe.

    While the API cannot be made, because the configuration is wrong or the database is away, every request is
    answered with 503 and the log says why.
    """
    try:
        app = _process.app()
    except Exception:
        LOG.exception("The API could not be made; the next request tries again")
        return _unavailable(environ, start_response)
    answer: Iterable[bytes] = app(environ, start_response)
    return answer


def _unavailable(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    error = ServiceUnavailable("The service is not ready.")
    answer: Iterable[bytes] = faults.response_of(error, environ)(environ, start_response)
    return answer
