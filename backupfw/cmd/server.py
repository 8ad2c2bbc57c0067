"""The API's own HTTP server: waitress, with bounds so that slow or idle clients do not block others.

A thread gets a request when all of it has arrived, so a slow request occupies only a connection.  This module
bounds connections: by deadlines for each part of a request, and by limits for all connections and for those
of one address.  At a limit, the connection that has waited for longest is closed.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import re
import resource
import socket
import threading
import time
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from oslo_log import log
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher

from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.api.pipeline import WsgiApp

LOG = log.getLogger(__name__)

#: How long the end of the server waits for its thread and for unsent answers, seconds.
STOP_SECONDS = 5.0
#: How long it waits for running requests before that, seconds.
DRAIN_SECONDS = 15.0
#: The longest request line with headers; tokens have some hundred bytes, or a few thousand.
HEADER_BYTES = 1 << 16
#: What is kept of a request's body in memory; the rest of it in a file.
BODY_BYTES = 1 << 16
#: Connections taken in one round of the server's loop.
_AT_ONCE = 64
#: Descriptors that are not the clients': of the database, the stores, files of long bodies.
_OTHER_FILES = 512

_TRANSFER_ENCODING = re.compile(rb"\ntransfer-encoding:", re.IGNORECASE)
_CONTENT_LENGTH = re.compile(rb"\ncontent-length:", re.IGNORECASE)


class _Parser(HTTPRequestParser):  # type: ignore[misc]
    """Refuses a request that has two lengths: a proxy in front may have believed the other one."""

    def parse_header(self, header_plus: bytes) -> None:
        super().parse_header(header_plus)
        if _TRANSFER_ENCODING.search(header_plus) and _CONTENT_LENGTH.search(header_plus):
            raise ParsingError("Content-Length together with Transfer-Encoding")


class _Channel(HTTPChannel):  # type: ignore[misc]
    """A connection that knows what it waits for, and since when.

    Only the server's loop looks at it.  Answers end in other threads; the loop sees that at its next look.

    :ivar client: who is there, for the limit of connections.
    :ivar since: when it began to wait for that, monotonic seconds.
    """

    parser_class = _Parser

    def __init__(self, server: Any, sock: Any, addr: Any, adj: Any, map: Any = None) -> None:  # noqa: A002
        self.client = _client(addr[0])
        # What was waited for at the last look; empty: a request has ended since.
        self._waits_for = "first"
        self.since = time.monotonic()
        super().__init__(server, sock, addr, adj, map=map)

    @property
    def busy(self) -> bool:
        """Whether a request is being answered."""
        return bool(self.requests)

    def stage(self, moment: float) -> str:
        """Return what is waited for, and set :attr:`since` when that is another than at the last look.

        :param moment: now, monotonic.
        :returns: ``first``, ``next``: the first byte of a request; ``header`` or ``body``: the rest of it;
            ``answer``: our own threads; ``reader``: a client that has not read its answer.
        """
        request = self.request
        if self.requests:
            stage = "answer"
        elif self.total_outbufs_len:
            stage = "reader"
        elif request is None:
            stage = "first" if self._waits_for == "first" else "next"
        else:
            stage = "body" if request.headers_finished else "header"
        if stage == "header" and self._waits_for == "first":
            # The wait for the first request began with the connection.
            self._waits_for = stage
        elif stage != self._waits_for:
            self._waits_for, self.since = stage, moment
        return stage

    def handle_read(self) -> None:
        """Read, and notice at once what is waited for from then on."""
        before = self.request
        super().handle_read()
        # The request may have been answered already, and the next one may have begun.
        if self.request is not before if before is not None else self.request is None:
            self._waits_for = ""
        self.stage(time.monotonic())

    def handle_write(self) -> None:
        """Write, and notice that the client read something."""
        unsent = self.total_outbufs_len
        super().handle_write()
        if self.total_outbufs_len < unsent:
            self.since = time.monotonic()

    def end(self) -> None:
        """Let the loop close it in its next round, even if the client reads nothing."""
        self.will_close = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class _Server(TcpWSGIServer):  # type: ignore[misc]
    """Takes connections within the limits, and ends those whose time is over.

    :param conf: ``[api]``.
    """

    channel_class = _Channel

    def __init__(self, *args: Any, limits: _Limits, **more: Any) -> None:
        self._limits = limits
        super().__init__(*args, **more)

    def handle_accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                accepted = self.accept()
                if accepted is None:
                    return
                sock, address = accepted
                self.set_socket_options(sock)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._limits.end_one(self._channels())
                # With any other error, the client has left.
                LOG.debug("A connection was not taken: %s", error)
                return
            if self._limits.make_room(address[0], self._channels()):
                self.channel_class(self, sock, address, self.adj, map=self._map)
            else:
                sock.close()

    def _channels(self) -> list[_Channel]:
        """Return the connections of all addresses that are listened on."""
        return [each for each in self._map.values() if isinstance(each, _Channel)]

    def maintenance(self, _now: float) -> None:
        self._limits.end_late(list(self.active_channels.values()))


class _Limits:
    """What ``[api]`` says of connections."""

    def __init__(self, api: Any) -> None:
        self.total = _within_files(api.connection_limit)
        self._per_address = api.connections_per_address or self.total
        self._seconds = {
            "first": api.header_timeout,
            "header": api.header_timeout,
            "body": api.body_timeout,
            "reader": api.body_timeout,
            "next": api.idle_timeout,
        }
        self._warned_at = float("-inf")

    def make_room(self, address: str, channels: list[_Channel]) -> bool:
        """End the connection that has waited for longest, if another one from there would be one too many.

        :returns: False: each of them has a request under way.
        """
        there = [each for each in channels if each.connected and not each.will_close]
        client = _client(address)
        own = [each for each in there if each.client == client]
        of_one = len(own) >= self._per_address
        if not of_one and len(there) < self.total:
            return True
        self._warn(client if of_one else "all addresses")
        return self.end_one(own if of_one else there)

    def end_one(self, channels: list[_Channel]) -> bool:
        """End the connection that has waited for longest; returns False if each has a request under way."""
        waiting = [each for each in channels if not each.busy and not each.will_close]
        if not waiting:
            return False
        min(waiting, key=lambda each: each.since).end()
        return True

    def end_late(self, channels: Iterable[_Channel]) -> None:
        """End connections that have waited longer than the deadline of their stage."""
        moment = time.monotonic()
        for channel in channels:
            seconds = self._seconds.get(channel.stage(moment))
            if seconds is not None and moment - channel.since > seconds:
                channel.end()

    def _warn(self, who: str) -> None:
        if time.monotonic() - self._warned_at >= 60:
            self._warned_at = time.monotonic()
            LOG.warning("As many connections of %s as may be; each new one ends an idle one", who)


def _client(address: str) -> str:
    """Return who counts as one client: an address, or an IPv6 network of the size that one site gets."""
    if ":" not in address:
        return address
    return str(ipaddress.ip_network((address.partition("%")[0], 64), strict=False))


def _within_files(wanted: int) -> int:
    """Raise the limit of open files for so many connections; returns how many it allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        more = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        # A sandbox may forbid it.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return wanted
    allowed = max(16, soft - min(_OTHER_FILES, soft // 2))
    LOG.warning(
        "[api] connection_limit = %s: this process may open %s files only, so it is %s", wanted, soft, allowed
    )
    return min(wanted, allowed)


class ApiServer:
    """Serves the WSGI application on a thread of its own.

    :ivar url: where it answers; it does from the moment the object is made.
    """

    def __init__(self, conf: cfg.ConfigOpts, app: WsgiApp) -> None:
        api = conf.api
        self._sockets: dict[int, Any] = {}
        limits = _Limits(api)
        self._dispatcher = ThreadedTaskDispatcher()
        try:
            settings = Adjustments(
                host=api.listen,
                port=api.port,
                threads=api.threads,
                # Our own limit answers in JSON; the server's is for what comes before it.
                max_request_body_size=max(api.max_request_body_size * 2, 1 << 20),
                max_request_header_size=HEADER_BYTES,
                inbuf_overflow=BODY_BYTES,
                clear_untrusted_proxy_headers=not api.enable_proxy_headers_parsing,
                ident="backupfw",
                # select() knows no descriptor beyond 1023.
                asyncore_use_poll=True,
                cleanup_interval=1,
                log_socket_errors=False,
                # Above our limit: at its own limit, waitress takes no more connections and closes none.
                connection_limit=limits.total * 2 + _OTHER_FILES,
            )
            self._servers = [
                _Server(
                    app,
                    self._sockets,
                    dispatcher=self._dispatcher,
                    adj=settings,
                    sockinfo=info,
                    limits=limits,
                )
                for info in settings.listen
            ]
        except (OSError, ValueError) as error:
            wasyncore.close_all(self._sockets, ignore_all=True)
            raise ConfigError(
                f"section [api], options listen and port: {api.listen}, port {api.port}:"
                f" {getattr(error, 'strerror', None) or error}"
            ) from error
        self._dispatcher.set_thread_count(api.threads)
        host = f"[{api.listen}]" if ":" in api.listen else api.listen
        self.url = f"http://{host}:{self._servers[0].effective_port}/"
        self._thread = threading.Thread(
            target=partial(wasyncore.loop, timeout=1, use_poll=True, map=self._sockets),
            name="api",
            daemon=True,
        )
        self._thread.start()

    def runs(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive()

    def _unsent(self) -> bool:
        """Whether part of an answer still waits for its client."""
        return any(getattr(each, "total_outbufs_len", 0) for each in list(self._sockets.values()))

    def close(self) -> None:
        """Take no more requests; those under way have a few seconds to end, and their answers to leave."""
        # The threads wake the loop when they have answered, so they end before its sockets are closed.
        self._dispatcher.shutdown(cancel_pending=True, timeout=DRAIN_SECONDS)
        end = time.monotonic() + STOP_SECONDS
        while self._unsent() and time.monotonic() < end:
            time.sleep(0.02)
        close_all = partial(wasyncore.close_all, self._sockets, ignore_all=True)
        if self._thread.is_alive():
            # The loop itself closes its sockets, also of idle connections, and ends when it has none.  If
            # another thread closed them, the loop would wait for events until its next round.
            pulled = threading.Event()

            def close_when_pulled() -> None:
                # The loop may be awake already, and would close the pipe before the trigger writes to it.
                pulled.wait(STOP_SECONDS)
                close_all()

            self._servers[0].trigger.pull_trigger(close_when_pulled)
            pulled.set()
            self._thread.join(STOP_SECONDS)
        close_all()
