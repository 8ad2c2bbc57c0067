"""Connections to Ceph: each image that is open has one of its own.

So what fences a writer out (the cluster blocks its client) meets nothing else, and a connection that broke is
never used again.  To connect takes some milliseconds.
"""

from __future__ import annotations

import configparser
import errno
import json
import os
import socket
import struct
import tempfile
import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from backupfw.errors import InvalidInput
from backupfw.volume import system
from backupfw_rbd.places import Place

#: The package that brings the bindings of librbd; that of librados comes with it.
PACKAGE = "python3-rbd"

# Releases in which a difference of two snapshots may lack what changed, by major version: the first good one.
_FIRST_GOOD = {16: (16, 2, 14), 17: (17, 2, 7), 18: (18, 2, 0)}


@cache
def bindings() -> tuple[Any, Any]:
    """Return the modules ``rados`` and ``rbd``.

    :raises ConfigError: they are not installed; it names the package.
    """
    # librbd's module needs that of librados.
    return system.load("rados", PACKAGE), system.load("rbd", PACKAGE)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a cluster is reached.

    :ivar conf: path of a ``ceph.conf``; None: none is read.
    :ivar user: without ``client.``.
    :ivar keyring: path of a keyring; None: where the configuration says, or Ceph's usual places.
    :ivar key: the user's secret key, instead of a keyring.
    :ivar mon_host: addresses of the monitors; None: those of the configuration.
    :ivar timeout: seconds after which a request that the cluster does not answer is an error.
    """

    conf: str | None
    user: str
    keyring: str | None = None
    key: str | None = field(default=None, repr=False)
    mon_host: str | None = None
    timeout: float = 60.0

    @contextmanager
    def connected(self, extra: dict[str, str] | None = None) -> Iterator[Any]:
        """Lend a connection: an object ``rados.Rados``.

        :raises OSError: it cannot be made.
        """
        rados, _ = bindings()
        seconds = f"{self.timeout:g}"
        settings = {
            "client_mount_timeout": seconds,
            "rados_mon_op_timeout": seconds,
            "rados_osd_op_timeout": seconds,
            # What was written is in the cluster, so that an error belongs to the write that failed; and the
            # bytes of a backup are read once.
            "rbd_cache": "false",
            **{
                name: value
                for name, value in (
                    ("keyring", self.keyring),
                    ("key", self.key),
                    ("mon_host", self.mon_host),
                )
                if value is not None
            },
            **(extra or {}),
        }
        try:
            cluster = rados.Rados(rados_id=self.user, conffile=self.conf, conf=settings)
            try:
                cluster.connect()
            except BaseException:
                cluster.shutdown()
                raise
        except rados.Error as error:
            # Never ENOENT, which is an image that is gone: here it is the file of the configuration or keys.
            number = abs(getattr(error, "errno", None) or errno.EIO)
            number = errno.ENOTCONN if number == errno.ENOENT else number
            raise OSError(number, f"connecting to Ceph as client.{self.user}: {error}") from error
        try:
            yield cluster
        finally:
            # A client that the cluster blocks cannot say goodbye.
            with suppress(rados.Error):
                cluster.shutdown()


def key_in(keyring: str, user: str) -> str:
    """Return the secret key of a user in the text of a keyring.

    :raises InvalidInput: it has none.
    """
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string("\n".join(line.strip() for line in keyring.splitlines()))
        return parser[f"client.{user}"]["key"]
    except (configparser.Error, KeyError):
        # Without the cause: it may show the text.
        raise InvalidInput(f"The keyring has no key of client.{user}.") from None


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Turn errors of the bindings into OSError with the same number; ``what`` was tried."""
    rados, rbd = bindings()
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        number = getattr(error, "errno", None) or errno.EIO
        raise OSError(abs(number), f"{what}: {error}") from error


def metadata_of(image: Any) -> dict[str, str]:
    """Return what programs have noted at an image.

    :raises OSError: it cannot be listed; the bindings then end with an AttributeError of their own,
        because their message asks for a name that the image does not show.
    """
    try:
        return dict(image.metadata_list())
    except AttributeError as error:
        raise OSError(errno.EIO, "The notes of an image cannot be listed") from error


class Opened:
    """An open image, with its connection.  Thread-safe: ``with opened as image`` from many threads.

    :ivar address: of this client, as the cluster knows it.
    """

    def __init__(self, connection: Connection, place: Place, *, write: bool = False) -> None:
        """Open an image, or a snapshot of one, which is never written.

        :raises FileNotFoundError: it is gone.
        :raises OSError: it cannot be opened.
        """
        _, rbd = bindings()
        self.place = place
        self._users = 0
        self._closed = False
        self._idle = threading.Condition()
        with ExitStack() as stack:
            self.cluster = stack.enter_context(connection.connected())
            self.io = stack.enter_context(pool_of(self.cluster, place.pool, place.namespace))
            with translated(f"opening {place}"):
                self.fsid: str = self.cluster.get_fsid()
                self.pool_id: int = self.cluster.pool_lookup(place.pool)
                self.address: str = self.cluster.get_addrs()
                self._image = rbd.Image(self.io, place.image, snapshot=place.snapshot, read_only=not write)
                stack.callback(_close, self._image)
                self.image_id: str = "" if self._image.old_format() else self._image.id()
            # Even if nobody closes it: an image that loses its connection first hangs or ends the process.
            self._finalizer = weakref.finalize(self, stack.pop_all().close)

    @property
    def storage_id(self) -> str:
        """What distinguishes the image from every other one, whatever its name."""
        return f"{self.fsid}/{self.pool_id}/{self.image_id}"

    def __enter__(self) -> Any:
        with self._idle:
            if self._closed:
                raise OSError(errno.EBADF, f"{self.place} is closed")
            self._users += 1
        return self._image

    def __exit__(self, *exc_info: object) -> None:
        with self._idle:
            self._users -= 1
            self._idle.notify_all()

    def snapshot_ids(self) -> set[int]:
        """Return the ids of the snapshots that the image has now, whatever it had when it was opened; none if
        it is gone.

        One short request: the bindings would have to open the image again.

        :raises OSError: the cluster does not answer.
        """
        rados, _ = bindings()
        with self, translated(f"looking at {self.place}"):
            try:
                # u64 of the newest id, u32 of their number, then each as u64.
                _, answer = self.io.execute(f"rbd_header.{self.image_id}", "rbd", "get_snapcontext", b"")
            except rados.ObjectNotFound:
                return set()
        return {number for (number,) in struct.iter_unpack("<Q", answer[12:])}

    def close(self) -> None:
        """End the connection when no thread uses the image any more; idempotent."""
        with self._idle:
            if self._closed:
                return
            self._closed = True
            # Each call of librbd ends, at the latest by the timeouts.
            self._idle.wait_for(lambda: self._users == 0)
        self._finalizer()


def _close(image: Any) -> None:
    _, rbd = bindings()
    with suppress(rbd.Error):
        image.close()


@contextmanager
def pool_of(cluster: Any, pool: str, namespace: str) -> Iterator[Any]:
    """Lend access to a pool and namespace.

    :raises OSError: there is no such pool, or the cluster does not answer.
    """
    with translated(f"opening the pool {pool}"):
        io = cluster.open_ioctx(pool)
    try:
        if namespace:
            io.set_namespace(namespace)
        yield io
    finally:
        io.close()


_version_lock = threading.Lock()
_version: str | None = None


def library_version(connection: Connection) -> str:
    """Return the version of the library that talks to Ceph, e.g. ``16.2.15``; asked for once per process.

    The bindings have no call for it, but each client of Ceph tells it through its administration socket.

    :raises OSError: there is no connection.
    """
    global _version
    with _version_lock:
        if _version is None:
            with tempfile.TemporaryDirectory() as directory:
                path = os.path.join(directory, "asok")
                with (
                    connection.connected({"admin_socket": path}),
                    socket.socket(socket.AF_UNIX) as client,
                ):
                    client.settimeout(connection.timeout)
                    client.connect(path)
                    client.sendall(b'{"prefix": "version"}\0')
                    _version = _answer(client)
        return _version


def _answer(client: socket.socket) -> str:
    with client.makefile("rb") as file:
        length = int.from_bytes(file.read(4), "big")
        return str(json.loads(file.read(length))["version"])


def version_problem(version: str) -> str | None:
    """Say why differences that a release of Ceph tells cannot be relied on; None: they can."""
    numbers = version.split("-")[0].split(".")
    try:
        found = tuple(int(number) for number in numbers)
    except ValueError:
        return f"the version of the Ceph library is unknown ({version[:30]})"
    first = _FIRST_GOOD.get(found[0])
    if found[0] < min(_FIRST_GOOD) or (first is not None and found < first):
        return f"the Ceph library {version} may miss changes"
    return None
