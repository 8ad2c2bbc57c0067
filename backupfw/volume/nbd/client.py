"""A client of one export of an NBD server, for many threads.

Every request is asynchronous in libnbd and has a time limit, so a server that does not answer never holds a
thread for ever.  A request has a connection for itself; there are several connections where the server says
that they all see the same bytes.  After the first lost connection or time limit the client is dead: what was
written and not flushed may be lost, so nothing is connected again behind the caller's back.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from backupfw.errors import ConfigError
from backupfw.volume.system import load

#: The context that says what is allocated.
ALLOCATION = "base:allocation"
#: Flags of :data:`ALLOCATION`: nothing is allocated; it reads as zeros.
HOLE, ZERO = 1, 2
#: Begins the contexts of QEMU's dirty bitmaps, each with its bitmap's name.
BITMAP = "qemu:dirty-bitmap:"
#: Flag of a dirty bitmap: it was written.
DIRTY = 1

#: Longest range of one question after the status of blocks.
_STATUS_STEP = 1 << 30
#: Longest request; what every server accepts is 32 MiB.
_MAX_REQUEST = 32 << 20
# Seconds for each connection but the first: a server with a limit lets them wait.
_SPARE_CONNECT = 2.0
# One piece of a zeroed range: a server that has to write the zeros must answer in time.
_ZERO_PIECE = 64 << 20
_ZEROS = bytes(1 << 20)


class ServerLost(OSError):
    """The server does not answer, ended the connection, or speaks another protocol."""

    def __init__(self, why: str) -> None:
        super().__init__(errno.EIO, why)


class Status(NamedTuple):
    """A range with the flags that a context has for it."""

    offset: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class Tls:
    """How a connection is encrypted, how the server proves who it is, and who we are.

    No field is ever in a message.

    :ivar certificates: directory with ``ca-cert.pem``, and ``client-cert.pem`` and ``client-key.pem`` if the
        server wants to know the client.
    :ivar psk_file: file of ``user:key`` lines, instead of certificates.
    :ivar username: the line of ``psk_file``; None: the name of the process's user.
    """

    certificates: str | None = None
    psk_file: str | None = None
    username: str | None = None

    def use(self, handle: Any, *, is_unix: bool) -> None:
        """Let a handle connect only in this way.

        libnbd connects to any server, whatever its certificate, if it has no authority to ask, or no host to
        compare with.  So both are demanded here.

        :raises ConfigError: the server could not prove who it is.
        """
        if self.psk_file is None:
            if is_unix:
                raise ConfigError("TLS on a Unix socket needs tls_psk_file: a certificate is of a host")
            if self.certificates is None:
                raise ConfigError("TLS needs tls_certificates or tls_psk_file")
            if not os.access(os.path.join(self.certificates, "ca-cert.pem"), os.R_OK):
                raise ConfigError("option tls_certificates: there is no ca-cert.pem that can be read")
            handle.set_tls_certificates(self.certificates)
        else:
            handle.set_tls_psk_file(self.psk_file)
            if self.username is not None:
                handle.set_tls_username(self.username)
        handle.set_tls_verify_peer(True)
        handle.set_tls(binding().TLS_REQUIRE)


@dataclass(frozen=True, slots=True)
class Server:
    """Where an export is.

    :ivar export: its name; empty: the default one.
    :ivar socket: path of a Unix socket; None: TCP.
    :ivar tls: None: not encrypted.
    """

    export: str = ""
    socket: str | None = None
    host: str = "localhost"
    port: int = 10809
    tls: Tls | None = None

    def begin(self, handle: Any) -> None:
        """Begin to connect a handle of libnbd."""
        if self.tls is not None:
            self.tls.use(handle, is_unix=self.socket is not None)
        handle.set_export_name(self.export)
        if self.socket is not None:
            handle.aio_connect_unix(self.socket)
        else:
            handle.aio_connect_tcp(self.host, str(self.port))


def over(connected: socket.socket) -> Callable[[Any], None]:
    """Return what lets a handle speak over a connected socket, which belongs to the handle then."""
    return lambda handle: handle.aio_connect_socket(connected.detach())


def binding() -> Any:
    """Return libnbd's Python module.

    :raises ConfigError: it is not installed.
    """
    load("libnbdmod", "python3-libnbd")
    return load("nbd", "python3-libnbd")


class Client:
    """An export, connected.  Thread-safe.

    :param connect: begin to connect a handle: the first one, then more if the server allows several.
    :param contexts: metadata contexts to ask for.
    :param bitmaps: of QEMU's dirty bitmaps with names like this, those that the server shows, too.
    :param timeout: seconds without an answer after which the server counts as lost.
    :raises ServerLost: it cannot be reached, has no such export, or refuses us.
    :raises ConfigError: libnbd is missing, or a TLS option is wrong.
    """

    def __init__(
        self,
        connect: Sequence[Callable[[Any], None]],
        *,
        contexts: Sequence[str] = (),
        bitmaps: re.Pattern[str] | None = None,
        timeout: float,
    ) -> None:
        self._timeout = timeout
        self._idle: queue.LifoQueue[_Connection | None] = queue.LifoQueue()
        self._edges = threading.Lock()
        self._closed = False
        self._lost: ServerLost | None = None
        first = _Connection(connect[0], contexts, bitmaps, timeout, timeout)
        handle = first.handle
        nbd = binding()
        self.length: int = handle.get_size()
        self.is_read_only = bool(handle.is_read_only())
        self.can_flush = bool(handle.can_flush())
        self.contexts = first.contexts
        self._can_zero = bool(handle.can_zero())
        #: Offsets and lengths of requests are multiples of this.
        self._unit = max(1, handle.get_block_size(nbd.SIZE_MINIMUM))
        most = handle.get_block_size(nbd.SIZE_MAXIMUM) or _MAX_REQUEST
        self._longest = max(self._unit, min(most, _MAX_REQUEST) // self._unit * self._unit)
        connections = [first]
        if handle.can_multi_conn():
            for begin in connect[1:]:
                try:
                    spare = _Connection(
                        begin, sorted(self.contexts), None, min(timeout, _SPARE_CONNECT), timeout
                    )
                except ServerLost:
                    # It serves no more at once, so be it.
                    break
                if spare.contexts != self.contexts or spare.handle.get_size() != self.length:
                    # Another export has taken its place.
                    spare.close()
                    break
                connections.append(spare)
        self._count = len(connections)
        for connection in connections:
            self._idle.put(connection)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``.

        :raises OSError: the server could not read it, or is lost.
        """
        view = buffer.cast("B")
        self._check_range(offset, len(view))
        done = 0
        for start, end in self._pieces(offset, offset + len(view), self._longest):
            part = view[done : done + end - start]
            if start % self._unit == 0 and end % self._unit == 0:
                self._read(start, part)
            else:
                first = start // self._unit * self._unit
                block = memoryview(bytearray(self._unit))
                self._read(first, block)
                part[:] = block[start - first : end - first]
            done += end - start

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write ``data`` to ``offset``.

        :raises OSError: the server could not write it, or is lost.
        """
        view = memoryview(data).cast("B")
        self._check_range(offset, len(view))
        done = 0
        for start, end in self._pieces(offset, offset + len(view), self._longest):
            part = view[done : done + end - start]
            if start % self._unit == 0 and end % self._unit == 0:
                self._write(start, part)
            else:
                self._write_edge(start, part)
            done += end - start

    def zero(self, offset: int, length: int) -> None:
        """Make the range read as zeros: a hole where the server can, else written zeros.

        A ``trim`` would not do: a server may ignore it.

        :raises OSError: the server could not write it, or is lost.
        """
        self._check_range(offset, length)
        if not self._can_zero:
            for start in range(offset, offset + length, len(_ZEROS)):
                self.write(start, _ZEROS[: min(len(_ZEROS), offset + length - start)])
            return
        longest = max(self._unit, _ZERO_PIECE // self._unit * self._unit)
        for start, end in self._pieces(offset, offset + length, longest):
            if start % self._unit == 0 and end % self._unit == 0:
                self._run(partial(_zero, start, end - start))
            else:
                self._write_edge(start, memoryview(bytes(end - start)))

    def flush(self) -> None:
        """Return when what was written is durable.

        :raises OSError: it may not be, now or ever.
        """
        try:
            self._run(lambda handle: handle.aio_flush())
        except OSError as error:
            # A later flush cannot bring back what this one lost.
            self._lost = ServerLost("an earlier flush failed")
            raise error

    def status(self, context: str, start: int, end: int) -> Iterator[Status]:
        """Say what a context has for ``start … end``: ranges in order, without gaps.

        :raises OSError: the server could not say, or is lost.
        """
        while start < end:
            first = start // self._unit * self._unit
            last = min(-(-min(end, start + _STATUS_STEP) // self._unit) * self._unit, self.length)
            found: list[Status] = []
            self._run(partial(_ask, first, last - first, partial(_note, found, context)))
            if not found or found[-1].offset + found[-1].length <= start:
                raise self._die("its answer about a range of blocks does not cover it")
            for status in found:
                stop = min(status.offset + status.length, end)
                if stop > start:
                    yield Status(start, stop - start, status.flags)
                    start = stop

    def close(self) -> None:
        """End the connections; idempotent.  Requests of other threads end first."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self._count):
            try:
                connection = self._idle.get(timeout=self._timeout)
            except queue.Empty:
                break
            if connection is not None:
                connection.close()
        # Who comes later finds nothing.
        self._idle.put(None)

    # -- requests

    def _read(self, offset: int, view: memoryview) -> None:
        buffer = binding().Buffer.from_buffer(view)
        self._run(lambda handle: handle.aio_pread(buffer, offset))

    def _write(self, offset: int, view: memoryview) -> None:
        buffer = binding().Buffer.from_buffer(view)
        self._run(lambda handle: handle.aio_pwrite(buffer, offset))

    def _write_edge(self, start: int, part: memoryview) -> None:
        """Write a part of one of the server's blocks."""
        first = start // self._unit * self._unit
        block = memoryview(bytearray(self._unit))
        with self._edges:
            self._read(first, block)
            block[start - first : start - first + len(part)] = part
            self._write(first, block)

    def _pieces(self, start: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
        """Cut a range: whole blocks of the server where possible, and what is left at the edges."""
        unit = self._unit
        while start < end:
            if start % unit:
                stop = min(end, -(-start // unit) * unit)
            else:
                stop = min(end, start + longest)
                # The last, unaligned piece is by itself.
                if stop % unit and stop - start > unit:
                    stop = stop // unit * unit
            yield start, stop
            start = stop

    def _run(self, begin: Callable[[Any], int]) -> None:
        """Do one request on an idle connection."""
        connection = self._idle.get()
        if connection is None:
            self._idle.put(None)
            raise OSError(errno.EBADF, "the volume was closed")
        try:
            if self._lost is not None:
                raise ServerLost(str(self._lost.strerror)) from self._lost
            connection.run(begin)
        except ServerLost as error:
            self._lost = self._lost or error
            raise
        finally:
            self._idle.put(connection)

    def _die(self, why: str) -> ServerLost:
        self._lost = ServerLost(f"the NBD server: {why}")
        return self._lost

    def _check_range(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.length:
            raise ValueError(f"{length} bytes at {offset} are not within {self.length}")


class _Connection:
    """One connection; used by one thread at a time.

    :ivar contexts: those that the server has.
    """

    def __init__(
        self,
        begin: Callable[[Any], None],
        contexts: Sequence[str],
        bitmaps: re.Pattern[str] | None,
        connect_timeout: float,
        timeout: float,
    ) -> None:
        self._error = binding().Error
        self._timeout = connect_timeout
        self.handle = binding().NBD()
        try:
            self.handle.set_opt_mode(True)
            begin(self.handle)
            self._wait(lambda: not self.handle.aio_is_connecting())
            wanted = list(contexts)
            # A server of the oldest kind has nothing to negotiate.
            if self.handle.aio_is_negotiating():
                if bitmaps is not None:
                    wanted += self._shown(bitmaps)
                self._go(wanted)
            if not self.handle.aio_is_ready():
                if self.handle.get_tls() == binding().TLS_REQUIRE:
                    raise ConfigError("the NBD server does not encrypt")
                raise ServerLost("the NBD server refused the connection")
            self.contexts = frozenset(name for name in wanted if self.handle.can_meta_context(name))
            self._timeout = timeout
        except self._error as error:
            self.handle = None
            if (problem := _tls_problem(str(error))) is not None:
                raise ConfigError(problem) from None
            raise ServerLost(f"the NBD server cannot be reached: {_why(error)}") from error
        except BaseException:
            self.handle = None
            raise

    def run(self, begin: Callable[[Any], int]) -> None:
        """Do one request."""
        if self.handle is None:
            raise ServerLost("the connection to the NBD server was lost")
        try:
            cookie = begin(self.handle)
            self._wait(lambda: bool(self.handle.aio_command_completed(cookie)))
        except ServerLost:
            # Freeing the handle takes the caller's buffer out of the library's hands.
            self.handle = None
            raise
        except self._error as error:
            if self.handle.aio_is_dead() or self.handle.aio_is_closed():
                self.handle = None
                raise ServerLost(f"the connection to the NBD server was lost: {_why(error)}") from error
            number = getattr(errno, error.errno or "EIO", errno.EIO)
            raise OSError(number, os.strerror(number)) from error

    def close(self) -> None:
        """Say goodbye, if the server still listens."""
        handle, self.handle = self.handle, None
        if handle is not None:
            try:
                handle.aio_disconnect()
                give_up = time.monotonic() + 1
                while not (handle.aio_is_closed() or handle.aio_is_dead()) and time.monotonic() < give_up:
                    handle.poll(100)
            except self._error:
                pass

    def _shown(self, bitmaps: re.Pattern[str]) -> list[str]:
        """Return the contexts of dirty bitmaps with such names; none if the server does not list them."""
        shown: list[str] = []

        def show(context: str) -> int:
            shown.append(context)
            return 0

        self.handle.add_meta_context(BITMAP)
        # A server without structured replies has no contexts at all.
        with contextlib.suppress(self._error):
            self.handle.aio_opt_list_meta_context(show, lambda _: 1)
            self._wait(lambda: not self.handle.aio_is_connecting())
        self.handle.clear_meta_contexts()
        return [one for one in shown if one.startswith(BITMAP) and bitmaps.fullmatch(one[len(BITMAP) :])]

    def _go(self, contexts: Sequence[str]) -> None:
        """Choose the export, with these contexts."""
        refused = 0

        def end(number: Any) -> int:
            nonlocal refused
            refused = number.value
            return 1

        for context in contexts:
            self.handle.add_meta_context(context)
        self.handle.aio_opt_go(end)
        self._wait(lambda: not self.handle.aio_is_connecting())
        if refused == errno.ENOENT:
            raise ServerLost("the NBD server has no such export")
        if refused == errno.ENOTSUP:
            raise ConfigError("the NBD server refused the connection: perhaps it wants TLS (nbds)")
        if refused:
            raise ServerLost(f"the NBD server refused the connection: {os.strerror(refused)}")

    def _wait(self, is_done: Callable[[], bool]) -> None:
        give_up = time.monotonic() + self._timeout
        while not is_done():
            left = give_up - time.monotonic()
            if left <= 0:
                raise ServerLost(f"the NBD server did not answer within {self._timeout:g} seconds")
            self.handle.poll(max(1, int(left * 1000)))


def _note(to: list[Status], wanted: str, context: str, offset: int, entries: list[int], _: object) -> int:
    """Take a part of an answer."""
    if context == wanted:
        for length, flags in zip(entries[0::2], entries[1::2], strict=True):
            to.append(Status(offset, length, flags))
            offset += length
    return 0


def _zero(offset: int, length: int, handle: Any) -> int:
    cookie: int = handle.aio_zero(length, offset)
    return cookie


def _ask(offset: int, length: int, say: Callable[..., int], handle: Any) -> int:
    cookie: int = handle.aio_block_status(length, offset, say)
    return cookie


def _tls_problem(text: str) -> str | None:
    """Say what an error of libnbd means, if it is about TLS."""
    if "certificate verification" in text:
        return (
            "the NBD server's certificate is not of the authority in tls_certificates, not of this host, or"
            " has expired"
        )
    if "PSK file" in text:
        return "tls_psk_file cannot be read, or has no key of the user"
    if "gnutls" in text or "TLS" in text:
        return (
            "the NBD server ended the encrypted connection: it does not accept our key or certificate, or"
            " wants one"
        )
    return None


def _why(error: Any) -> str:
    """Return an error's kind: its own text may name a host or path."""
    number = getattr(errno, error.errno or "", None)
    return os.strerror(number) if number is not None else "it broke the protocol, or has no such export"
