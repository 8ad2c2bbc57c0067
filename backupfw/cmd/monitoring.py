"""A small HTTP listener beside the API: ``/metrics``, ``/live`` and ``/ready``.

*Live*: the process does its work; one that is not live must be restarted.  *Ready*: it can also be given
work: the database answers, accepts writes and has the schema of this release.  The state of the message bus
is only reported: without it, tasks start later.
"""

from __future__ import annotations

import contextlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from oslo_log import log

from backupfw.cmd.meters import Meters
from backupfw.db import migrate
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from backupfw.db.session import Database

LOG = log.getLogger(__name__)

#: The most connections at a time; each has a thread.  Few clients ask.
CONNECTIONS = 64
#: How long a client may send nothing, or read nothing of its answer, seconds.
_PATIENCE = 30


class Health:
    """The checks of a process.  Thread-safe.

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


class _Server(ThreadingHTTPServer):
    """Answers each connection once; one too many ends the oldest that has not asked anything yet."""

    daemon_threads = True
    # The kernel must not refuse connections while the machine is busy.
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler], shared: bool) -> None:
        # In the order of their arrival; the value says whether the connection is being answered.
        self._answered: dict[socket.socket, bool] = {}
        self._lock = threading.Lock()
        self.allow_reuse_port = shared
        super().__init__(address, handler)

    def answers(self, connection: socket.socket) -> None:
        """Note that a request was received completely."""
        with self._lock:
            if connection in self._answered:
                self._answered[connection] = True

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, if there is room or if one that waits makes room."""
        with self._lock:
            room = len(self._answered) < CONNECTIONS
            waits = (each for each, answered in self._answered.items() if not answered)
            if not room and (oldest := next(waits, None)) is not None:
                room = True
                del self._answered[oldest]
                # Its thread then reads the end of the connection, and ends.
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)
            if room:
                self._answered[request] = False
        if room:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def shutdown_request(self, request: Any) -> None:
        """Forget a connection and end it."""
        with self._lock:
            self._answered.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log why a request was not answered; at level debug if the client left."""
        error = sys.exc_info()[1]
        log_it = LOG.debug if isinstance(error, OSError) else LOG.error
        log_it("A request was not answered", exc_info=error)


class Listener:
    """Answers until it is closed.

    :param address, port: where.
    :param meters: the figures.
    :param health: the checks of this process.
    :param shared: other processes of this user may listen on the same port; the kernel chooses one for each
        connection.
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
            timeout = _PATIENCE

            def do_GET(self) -> None:
                server.answers(self.connection)
                status, kind, body = answer(self.path.partition("?")[0])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                LOG.debug(format, *args)

        try:
            server = self._server = _Server((address, port), Handler, shared)
        except OSError as error:
            raise ConfigError(f"section [metrics]: port {port}: {error.strerror or error}") from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)
