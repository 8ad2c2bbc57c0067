"""A pool of connections: each is used by one thread at a time and kept alive for the next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.parse import ParseResult, urlparse

from swiftclient.client import HTTPConnection
from swiftclient.exceptions import ClientException

#: Connections kept while nobody uses them; more are made when more threads work at once.
IDLE = 64


class Connections:
    """Thread-safe.  The one used last is used next, so that the others may rest and be dropped.

    :param make: returns a new connection to the host of a URL.
    """

    def __init__(self, make: Callable[[str], HTTPConnection]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._idle: list[HTTPConnection] = []
        self._closed = False

    @contextmanager
    def connection(self, url: str) -> Iterator[tuple[ParseResult, HTTPConnection]]:
        """Lend a connection to the host of ``url``, in the form the client library takes.

        It is kept when the block ends well or with an answer that is an error, else closed.
        """
        parsed = urlparse(url)
        connection = self._take(parsed) or self._make(url)
        try:
            yield parsed, connection
        except ClientException:
            self._keep(connection)
            raise
        except BaseException:
            connection.close()
            raise
        else:
            self._keep(connection)

    def _take(self, parsed: ParseResult) -> HTTPConnection | None:
        with self._lock:
            for index in range(len(self._idle) - 1, -1, -1):
                known = self._idle[index].parsed_url
                if (known.scheme, known.netloc) == (parsed.scheme, parsed.netloc):
                    return self._idle.pop(index)
        return None

    def _keep(self, connection: HTTPConnection) -> None:
        # The last answer would keep its bytes.
        connection.resp = None
        with self._lock:
            dropped = None
            if self._closed:
                dropped = connection
            else:
                self._idle.append(connection)
                if len(self._idle) > IDLE:
                    # The one that has rested longest; after a move to another host it goes this way too.
                    dropped = self._idle.pop(0)
        if dropped is not None:
            dropped.close()

    def close(self) -> None:
        """Close those that rest now, and each of the others when its call ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
