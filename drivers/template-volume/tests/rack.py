"""A small disk array over HTTP, for the tests: replace it by the storage your provider is for.

``python rack.py`` serves until it is ended and prints its address.  Disks are in memory and survive
:meth:`Rack.restart`.  Every request needs the key.  A NAME is a disk, ``DISK@SNAPSHOT`` a snapshot of one.

    GET    /                                    -> JSON of all names
    PUT    /NAME?length=…&from=…                   a disk: made (as a copy), or there already
    PUT    /DISK@SNAPSHOT                          a snapshot: taken, or there already
    DELETE /NAME                                   409: a disk that has snapshots
    GET    /NAME                                -> JSON {serial, number, length, snapshots: {name: {…}}}
    PUT    /DISK/length?length=…                   extended
    GET    /NAME/bytes?offset=…&length=…        -> the bytes
    GET    /NAME/map?start=…&end=…&since=…      -> JSON [[offset, length, "data" | "zero" | "same"], …]
    PUT    /DISK/writer?attempt=…               -> JSON of a pass: every earlier pass is worthless from now on
    PUT    /DISK/bytes?offset=…&pass=…             409: the pass is worthless
    PUT    /DISK/zeros?offset=…&length=…&pass=…
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import itertools
import json
import secrets
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from typing import Any

#: Bytes in which it knows what is allocated, and what changed.
GRAIN = 16 << 10
#: Entries of one answer to /map.
PAGE = 100


class Disk:
    """The bytes of a disk or snapshot, and when they changed.

    :ivar serial: of this disk, never of another.
    :ivar number: the moment of a snapshot.
    :ivar changed: the moment of the last change of each grain; 0: it was never written.
    :ivar empty: the grains that are not allocated.
    """

    def __init__(self, length: int, number: int) -> None:
        self.serial = secrets.token_hex(8)
        self.number = number
        self.data = bytearray()
        self.changed: list[int] = []
        self.empty: set[int] = set()
        self.snapshots: dict[str, Disk] = {}
        self.attempt = 0
        self.writer = ""
        self.resize(length, number)

    def resize(self, length: int, number: int) -> None:
        old = len(self.data)
        self.data = self.data[:length] + bytes(max(0, length - old))
        grains = -(-length // GRAIN)
        # The grain that is cut, or goes on: its end is not what it was.
        edge = range(min(old, length) // GRAIN, grains)
        self.changed = self.changed[:grains] + [number] * (grains - len(self.changed))
        for grain in edge:
            self.changed[grain] = number
        self.empty = {grain for grain in self.empty if grain < grains}
        self.empty.update(range(-(-old // GRAIN), grains))

    def write(self, offset: int, data: bytes, number: int) -> None:
        self.data[offset : offset + len(data)] = data
        for grain in range(offset // GRAIN, -(-(offset + len(data)) // GRAIN)):
            self.changed[grain] = number
            self.empty.discard(grain)

    def zero(self, offset: int, length: int, number: int) -> None:
        end = offset + length
        self.write(offset, bytes(length), number)
        whole = -(-len(self.data) // GRAIN) if end == len(self.data) else end // GRAIN
        self.empty.update(range(-(-offset // GRAIN), whole))

    def copy(self, number: int) -> Disk:
        copy = Disk(0, number)
        copy.data, copy.changed, copy.empty = bytearray(self.data), list(self.changed), set(self.empty)
        return copy

    def map(self, start: int, end: int, since: Disk | None) -> Iterator[tuple[int, int, str]]:
        while start < end:
            kind, last = "", start
            while last < end:
                found = self._kind(last // GRAIN, since)
                if kind and found != kind:
                    break
                kind, last = found, min(end, (last // GRAIN + 1) * GRAIN)
            yield start, last - start, kind
            start = last

    def _kind(self, grain: int, since: Disk | None) -> str:
        if since is not None and grain < len(since.changed) and self.changed[grain] <= since.number:
            return "same"
        return "zero" if grain in self.empty else "data"


class Rack:
    """The array; thread-safe.

    :param key: what every request must have.
    :ivar disks: by name: what tests see without the provider.
    """

    def __init__(self, key: str, port: int = 0) -> None:
        self.key = key
        self.port = port
        self.disks: dict[str, Disk] = {}
        self.lock = threading.RLock()
        self._numbers = itertools.count(1)
        self.start()

    @property
    def endpoint(self) -> str:
        """Where it answers."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen, at the port it had before."""
        self._http = _Server(self.port, self)
        self.port = self._http.server_port
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it and every connection, whatever is under way."""
        self._http.shutdown()
        self._http.end()
        self._thread.join()

    def restart(self) -> None:
        """Stop and start; the disks stay."""
        self.stop()
        self.start()

    # ---- what a machine does, and what the tests look at -----------------------------------------

    def number(self) -> int:
        """Return the number of a new moment."""
        return next(self._numbers)

    def names(self) -> set[str]:
        """Return the names of all disks and snapshots."""
        with self.lock:
            snapshots = {f"{name}@{snap}" for name, disk in self.disks.items() for snap in disk.snapshots}
            return {*self.disks, *snapshots}

    def write(self, name: str, offset: int, data: bytes) -> None:
        """Write as the machine that uses the disk."""
        with self.lock:
            self.disks[name].write(offset, data, self.number())

    def discard(self, name: str, offset: int, length: int) -> None:
        """Discard as the machine that uses the disk."""
        with self.lock:
            self.disks[name].zero(offset, length, self.number())

    def read(self, name: str, offset: int, length: int) -> bytes:
        """Read as the machine that uses the disk."""
        with self.lock:
            return bytes(self.disks[name].data[offset : offset + length])

    def resize(self, name: str, length: int) -> None:
        """Make a disk longer or shorter."""
        with self.lock:
            self.disks[name].resize(length, self.number())

    def snapshot(self, name: str, snapshot: str) -> None:
        """Take a snapshot, unless it is there."""
        with self.lock:
            disk = self.disks[name]
            if snapshot not in disk.snapshots:
                disk.snapshots[snapshot] = disk.copy(self.number())

    def make(self, name: str, length: int) -> Disk:
        """Make a disk, unless it is there."""
        with self.lock:
            if name not in self.disks:
                self.disks[name] = Disk(length, self.number())
            return self.disks[name]


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, rack: Rack) -> None:
        self.rack = rack
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that are killed are what the tests make."""

    def end(self) -> None:
        self.server_close()
        for request in list(self._open):
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)


class _Refused(Exception):
    """The answer is a status above 299."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def _handle(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size)
        if len(body) != size:
            self.close_connection = True
            return
        path, _, query = self.path.partition("?")
        name, _, what = path[1:].partition("/")
        try:
            if self.headers.get("Authorization") != f"Bearer {self.server.rack.key}":
                raise _Refused(403)
            with self.server.rack.lock:
                words = dict(urllib.parse.parse_qsl(query))
                answer = self._answer_to(urllib.parse.unquote(name), what, body, words)
        except _Refused as refusal:
            self._send(refusal.args[0], b"")
        else:
            self._send(200, answer if isinstance(answer, bytes) else json.dumps(answer).encode())

    do_GET = do_PUT = do_DELETE = _handle  # noqa: N815

    def _answer_to(self, name: str, what: str, body: bytes, query: dict[str, str]) -> Any:
        rack = self.server.rack
        disk_name, _, snapshot = name.partition("@")
        numbers = {key: int(text) for key, text in query.items() if text.isdecimal()}
        if not name:
            return sorted(rack.names())
        if self.command == "PUT" and not what and not snapshot:
            return self._make(rack, name, numbers["length"], query.get("from"))
        if disk_name not in rack.disks:
            raise _Refused(404)
        disk = rack.disks[disk_name]
        if self.command == "PUT" and not what:
            rack.snapshot(disk_name, snapshot)
        elif self.command == "DELETE":
            if not snapshot and disk.snapshots:
                raise _Refused(409)
            if (disk.snapshots if snapshot else rack.disks).pop(snapshot or name, None) is None:
                raise _Refused(404)
        elif self.command == "GET":
            return self._get(disk, self._find(name), what, numbers, query.get("since"))
        else:
            return self._change(disk, what, body, numbers, query.get("pass"))
        return None

    def _make(self, rack: Rack, name: str, length: int, source: str | None) -> None:
        if source is None or name in rack.disks:
            rack.make(name, length)
            return
        copy = self._find(source).copy(rack.number())
        copy.resize(length, copy.number)
        rack.disks[name] = copy

    def _find(self, name: str) -> Disk:
        disks, (name, _, snapshot) = self.server.rack.disks, name.partition("@")
        try:
            return disks[name].snapshots[snapshot] if snapshot else disks[name]
        except KeyError:
            raise _Refused(404) from None

    def _get(self, disk: Disk, found: Disk, what: str, numbers: dict[str, int], since: str | None) -> Any:
        if what == "bytes":
            data = bytes(found.data[numbers["offset"] : numbers["offset"] + numbers["length"]])
            if len(data) != numbers["length"]:
                raise _Refused(416)
            return data
        if what == "map":
            if since is not None and since not in disk.snapshots:
                raise _Refused(404)
            earlier = None if since is None else disk.snapshots[since]
            return list(itertools.islice(found.map(numbers["start"], numbers["end"], earlier), PAGE))
        snapshots = {name: _described(each) for name, each in disk.snapshots.items()}
        return {**_described(found), "snapshots": snapshots}

    def _change(self, disk: Disk, what: str, body: bytes, numbers: dict[str, int], key: str | None) -> Any:
        number = self.server.rack.number()
        if what == "length":
            disk.resize(max(numbers["length"], len(disk.data)), number)
        elif what == "writer":
            if numbers["attempt"] < disk.attempt:
                raise _Refused(409)
            disk.attempt, disk.writer = numbers["attempt"], secrets.token_hex(8)
            return disk.writer
        elif not disk.writer or key != disk.writer:
            raise _Refused(409)
        elif what == "zeros":
            disk.zero(numbers["offset"], numbers["length"], number)
        else:
            disk.write(numbers["offset"], body, number)
        return None

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _described(disk: Disk) -> dict[str, Any]:
    return {"serial": disk.serial, "number": disk.number, "length": len(disk.data)}


def main() -> None:
    """Serve until the process is ended."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--key", default="secret")
    rack = Rack(parser.parse_args().key)
    print(rack.endpoint, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
