"""The API for any WSGI server: ``backupfw.cmd.wsgi:application``.

Configured by environment variables, because a WSGI server hands no options on: ``BACKUPFW_CONFIG_FILE``
(several, separated by ``:``) and ``BACKUPFW_STATE_DIR`` are what ``--config-file`` and ``--state-dir`` are
to the commands.  Importing this module does nothing; the first request loads the configuration.  Where the
server listens is its own affair, so ``[api] listen`` is not looked at: with ``auth_strategy = noauth`` it
is up to the server's configuration to stay on loopback.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Any

from backupfw.cmd.configure import load

_lock = threading.Lock()
_app: Any = None
#: What stays open until the process ends.
_open = ExitStack()


def _make() -> Any:
    from backupfw.api.app import make_app
    from backupfw.cmd import database, service
    from backupfw.conf import logging

    files = [path for path in os.environ.get("BACKUPFW_CONFIG_FILE", "").split(":") if path]
    state_dir = os.environ.get("BACKUPFW_STATE_DIR") or None
    conf = load(argparse.Namespace(config_file=files, state_dir=state_dir, debug=False)).conf
    logging.setup(conf)
    database.prepare(conf)
    # What fails here is tried again at every request: nothing may stay open each time.
    with ExitStack() as stack:
        db = database.connect(conf)
        stack.callback(db.close)
        dispatch = service.make_dispatch(conf, listens=False)
        stack.callback(dispatch.close)
        notices = stack.enter_context(service.telling(conf, db))
        app = make_app(service.make_managers(conf, db, dispatch.wake, notices), conf)
        stop = threading.Event()
        stack.callback(stop.set)
        threading.Thread(
            target=service.look_after_until, args=(stop, conf, db), name="look-after", daemon=True
        ).start()
        _open.enter_context(stack.pop_all())
    return app


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer one request.  Thread-safe; made anew in each process of a server that forks before it.

    :raises ConfigError: the configuration is wrong; every request says so until it is mended.
    """
    global _app
    if _app is None:
        with _lock:
            if _app is None:
                _app = _make()
    answer: Iterable[bytes] = _app(environ, start_response)
    return answer
