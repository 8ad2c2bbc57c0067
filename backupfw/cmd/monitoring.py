"""A small HTTP listener beside the API: ``/metrics``, ``/live`` and ``/ready``.

*Live*: the process does its work; one that does not is to be restarted.  *Ready*: it can be given work as
well: the database answers, takes writes and has the schema of this release.  Whether the message bus is
there is told but not asked for, because nothing but delay depends on it.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from oslo_log import log

from backupfw.cmd.meters import Meters
from backupfw.db import migrate
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from backupfw.db.session import Database

LOG = log.getLogger(__name__)


class Health:
    """What a process is asked about.  Thread-safe.

    :param parts: the names of what must run in this process, each with a function that says whether it does.
    :param dispatch: says how wake-ups reach workers, for people to read.
    """

    def __init__(self, db: Database, parts: Mapping[str, Callable[[], bool]], dispatch: str) -> None:
        self._db = db
        self._parts = parts
        self._dispatch = dispatch

    def live(self) -> tuple[bool, dict[str, str]]:
        """Say whether the process does its work, and how each part of it is."""
        parts = {name: "ok" if runs() else "ended" for name, runs in self._parts.items()}
        return all(state == "ok" for state in parts.values()), parts

    def ready(self) -> tuple[bool, dict[str, str]]:
        """Say whether the process can be given work, and what of it is missing."""
        live, parts = self.live()
        database = self._database()
        return live and database == "ok", {**parts, "database": database, "dispatch": self._dispatch}

    def _database(self) -> str:
        try:
            migrate.check(self._db)
        except ConfigError:
            return "another schema"
        except Exception:
            # Its words may hold the URL, and with it a password.
            LOG.debug("The database does not answer", exc_info=True)
            return "does not answer"
        return "ok" if self._db.writable() else "cannot be written"


class Listener:
    """Answers until it is closed.

    :param address, port: where.
    :param meters: the figures.
    :param health: who says how the process is.
    :param shared: let other processes of this user listen there as well; the kernel chooses who is asked.
    :raises ConfigError: the address cannot be listened on.
    """

    def __init__(
        self, address: str, port: int, meters: Meters, health: Health, *, shared: bool = False
    ) -> None:
        def answer(path: str) -> tuple[int, str, bytes]:
            if path == "/metrics":
                return 200, "text/plain; version=0.0.4; charset=utf-8", meters.text()
            if path in ("/live", "/ready"):
                good, parts = health.live() if path == "/live" else health.ready()
                return 200 if good else 503, "application/json", json.dumps(parts).encode()
            return 404, "text/plain", b"/metrics, /live, /ready\n"

        class Handler(BaseHTTPRequestHandler):
            timeout = 30

            def do_GET(self) -> None:
                status, kind, body = answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                LOG.debug(format, *args)

        class Server(ThreadingHTTPServer):
            allow_reuse_port = shared

        try:
            self._server = Server((address, port), Handler)
        except OSError as error:
            raise ConfigError(f"section [metrics]: port {port}: {error.strerror or error}") from error
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
