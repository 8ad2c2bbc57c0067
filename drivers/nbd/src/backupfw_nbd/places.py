"""Where volumes are: the locations of both providers, as URIs.  Nothing secret is ever in one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from backupfw.errors import InvalidInput

_PORT = 10809
#: Longest location: that of the catalogue's column, and of a Unix socket's path.
_LONGEST, _LONGEST_SOCKET = 255, 107


@dataclass(frozen=True, slots=True)
class ExportPlace:
    """An export of an NBD server.

    :ivar name: the export's; empty: the default one.
    :ivar socket: the path of a Unix socket; None: TCP.
    :ivar tls: whether the connection must be encrypted.
    """

    name: str
    socket: str | None
    host: str
    port: int
    tls: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``nbd://HOST[:PORT]/NAME``, ``nbd+unix:///NAME?socket=PATH``, and the same with ``nbds``.

        :raises InvalidInput: it is none of these, or has more in it: users, passwords, other parameters.
        """
        parts, query = _split(text)
        if parts.scheme not in ("nbd", "nbds", "nbd+unix", "nbds+unix"):
            raise InvalidInput(
                "A location is nbd://HOST[:PORT]/NAME or nbd+unix:///NAME?socket=PATH, with nbds for TLS."
            )
        is_unix = parts.scheme.endswith("+unix")
        if is_unix:
            socket = _socket(query.pop("socket", ""))
            if parts.netloc:
                raise InvalidInput("A location nbd+unix:///NAME?socket=PATH has no host.")
        if query:
            raise InvalidInput("A location has no parameters but socket: keys and certificates are options.")
        try:
            port = parts.port or _PORT
        except ValueError:
            raise InvalidInput("The port of the location is no port.") from None
        host = "" if is_unix else (parts.hostname or "")
        if not is_unix and not host:
            raise InvalidInput("The location has no host.")
        # The first slash is no part of a name.
        name = unquote(parts.path)[1:]
        return cls(name, socket if is_unix else None, host, port, parts.scheme.startswith("nbds"))

    def __str__(self) -> str:
        scheme = "nbds" if self.tls else "nbd"
        name = quote(self.name)
        if self.socket is not None:
            return f"{scheme}+unix:///{name}?socket={quote(self.socket)}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{scheme}://{host}:{self.port}/{name}"


@dataclass(frozen=True, slots=True)
class DiskPlace:
    """A disk of a running machine.

    :ivar node: its name among the machine's block nodes.
    :ivar monitor: the path of the Unix socket of the machine's monitor.
    """

    node: str
    monitor: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``qemu+unix:///NODE?monitor=PATH``.

        :raises InvalidInput: it is something else.
        """
        parts, query = _split(text)
        node = unquote(parts.path)[1:]
        if parts.scheme != "qemu+unix" or parts.netloc or set(query) != {"monitor"} or not node:
            raise InvalidInput("A location is qemu+unix:///NODE?monitor=PATH.")
        if "/" in node:
            raise InvalidInput("The name of a node has no slash.")
        return cls(node, _socket(query["monitor"]))

    def __str__(self) -> str:
        return f"qemu+unix:///{quote(self.node)}?monitor={quote(self.monitor)}"


def _split(text: str) -> tuple[SplitResult, dict[str, str]]:
    if len(text) > _LONGEST or not text.isprintable():
        raise InvalidInput(f"A location is printable text of at most {_LONGEST} characters.")
    try:
        parts = urlsplit(text)
        query = (
            dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
        )
    except ValueError:
        raise InvalidInput("The location is no URI.") from None
    if parts.username is not None or parts.password is not None:
        raise InvalidInput("A location has no user and no password: they are options.")
    if parts.fragment:
        raise InvalidInput("A location has no fragment.")
    return parts, query


def _socket(path: str) -> str:
    if not os.path.isabs(path) or len(os.fsencode(path)) > _LONGEST_SOCKET or "\0" in path:
        raise InvalidInput(f"The path of a socket is absolute, and has at most {_LONGEST_SOCKET} bytes.")
    return os.path.normpath(path)
