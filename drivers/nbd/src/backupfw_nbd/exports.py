"""The provider ``nbd``: exports of any NBD server.

Of NBD alone nobody knows which state an export shows, or when a dirty bitmap began.  So whoever exports a
volume may tell it by the name of a bitmap: ``backupfw:FROM:TO``, where FROM and TO are UUIDs of two states
of the volume.  The export shows the state TO, and the bitmap has everything that was written between the
two.  A UUID never names two states.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, ClassVar

from oslo_config import cfg

from backupfw.errors import (
    ConfigError,
    InvalidInput,
    OperationNotSupported,
    SourceUnreadable,
)
from backupfw.volume.base import (
    BlockTarget,
    Capabilities,
    Point,
    SnapshotRef,
    Storage,
    Tick,
    VolumeRef,
    no_tick,
)
from backupfw.volume.nbd.blocks import NbdTarget
from backupfw.volume.nbd.client import ALLOCATION, BITMAP, Client, Server, ServerLost, Tls
from backupfw_nbd.adopted import AdoptedOnly, changed, shorter
from backupfw_nbd.bitmaps import BitmapPoint, Since
from backupfw_nbd.places import ExportPlace

_UUID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_BITMAP = re.compile(rf"backupfw:(?P<since>{_UUID}):(?P<state>{_UUID})")


class NbdProvider(AdoptedOnly):
    """Exports of NBD servers.  Thread-safe."""

    API_VERSION: ClassVar[int] = 2

    def __init__(self, options: Any) -> None:
        """Take the options' values.

        :raises ConfigError: one of them cannot be used.
        """
        super().__init__(options)
        self._servers = tuple(options.servers)
        self._timeout = float(options.timeout)
        self._connections = int(options.connections)
        for name in ("tls_certificates", "tls_psk_file"):
            path = getattr(options, name)
            if path and not os.path.isabs(path):
                raise ConfigError(f"option {name}: {path!r} is not an absolute path")
        if options.tls_certificates and options.tls_psk_file:
            raise ConfigError("option tls_psk_file: there is tls_certificates, too; one of them is used")
        self._tls = Tls(
            options.tls_certificates or None, options.tls_psk_file or None, options.tls_username or None
        )

    @property
    def capabilities(self) -> Capabilities:
        """It knows what is allocated and what changed, where the server does, and writes."""
        return Capabilities(allocation=True, changes=True, writes=True)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return (
            cfg.ListOpt(
                "servers",
                default=[],
                help="Where volumes may be: HOST, HOST:PORT, a directory of Unix sockets. Empty: anywhere.",
            ),
            cfg.StrOpt(
                "tls_certificates",
                help="Directory with ca-cert.pem, and client-cert.pem and client-key.pem if servers want to "
                "know the client: for locations that begin with nbds. These need it, or tls_psk_file.",
            ),
            cfg.StrOpt(
                "tls_psk_file",
                help="File of USER:KEY lines, mode 0600: for locations that begin with nbds, instead of "
                "certificates. Unix sockets can have TLS in this way only.",
            ),
            cfg.StrOpt("tls_username", help="Which line of tls_psk_file (default: the service's user)."),
            cfg.FloatOpt(
                "timeout",
                default=60.0,
                min=1,
                help="Seconds without an answer after which a server counts as lost.",
            ),
            cfg.IntOpt(
                "connections",
                default=4,
                min=1,
                max=16,
                help="Connections for each opened export, where the server allows several.",
            ),
        )

    def adopt(
        self,
        path: str,
        *,
        own: Sequence[str] = (),
        to_copy: bool = False,  # noqa: ARG002
        any_format: bool = False,  # noqa: ARG002
        in_use: bool = False,  # noqa: ARG002
    ) -> Storage:
        """Look at an export.

        :param path: ``nbd://HOST[:PORT]/NAME`` or ``nbd+unix:///NAME?socket=PATH``, with ``nbds`` for TLS.
        """
        place = ExportPlace.parse(path)
        self._check_allowed(place)
        if place.socket is not None and any(_is_in(place.socket, directory) for directory in own):
            raise InvalidInput(f"{place} belongs to this service: it is among its own files.")
        try:
            client = self._connect(place)
        except ServerLost as error:
            raise InvalidInput(f"{place}: {error.strerror}.") from error
        except ConfigError as error:
            raise InvalidInput(f"{place}: {error}.") from error
        try:
            if client.length == 0:
                raise InvalidInput(f"{place} is empty.")
            return Storage(str(place), client.length)
        finally:
            client.close()

    def look(self, volume: VolumeRef) -> Storage:
        """Look at the volume's export."""
        client = self._opened(volume)
        client.close()
        return Storage(volume.location or "", client.length)

    def open_point(
        self,
        ref: VolumeRef | SnapshotRef,
        point_id: str,  # noqa: ARG002
        tick: Tick = no_tick,  # noqa: ARG002
    ) -> Point:
        """Connect; the server must show one state as long as it is read."""
        if isinstance(ref, SnapshotRef):
            raise OperationNotSupported("This volume back end takes no snapshots.")
        client = self._opened(ref)
        names = [match for one in client.contexts if (match := _BITMAP.fullmatch(one.removeprefix(BITMAP)))]
        states = {name["state"] for name in names}
        if not client.is_read_only or len(states) != 1:
            # Nothing says which state it is: a later attempt begins again.
            identity = f"nbd/{ref.id}/{client.length}/{secrets.token_hex(8)}"
            return BitmapPoint(client, identity, token=None, earlier={})

        def token(state: str) -> str:
            # With another length, no token of before is the same text.
            return f"nbd1 {ref.id} {client.length} {state}"

        now = token(states.pop())
        earlier = {token(name["since"]): Since(BITMAP + name[0], client.length) for name in names}
        return BitmapPoint(client, now, token=now, earlier=earlier)

    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:  # noqa: ARG002
        """Connect for writing; NBD has no lock, so only the lease keeps an earlier attempt out."""
        client = self._opened(volume)
        problem = None
        if client.is_read_only:
            problem = "The volume's server exports it for reading only."
        elif not client.can_flush:
            problem = "The volume's server cannot make written data durable."
        if problem is not None:
            client.close()
            raise OperationNotSupported(problem)
        return closing(NbdTarget(client))

    # -- helpers

    def _opened(self, volume: VolumeRef) -> Client:
        place = ExportPlace.parse(volume.location or "")
        try:
            self._check_allowed(place)
        except InvalidInput as error:
            raise changed(volume, "is on a server that is not in the option servers any more") from error
        try:
            client = self._connect(place)
        except ServerLost as error:
            unreadable = SourceUnreadable(f"The volume's server could not be used: {error.strerror}.")
            unreadable.may_pass = True
            raise unreadable from error
        if client.length < volume.length:
            client.close()
            raise changed(volume, shorter(client.length, volume.length))
        return client

    def _connect(self, place: ExportPlace) -> Client:
        server = Server(place.name, place.socket, place.host, place.port, self._tls if place.tls else None)
        return Client(
            [server.begin] * self._connections,
            contexts=[ALLOCATION],
            bitmaps=_BITMAP,
            timeout=self._timeout,
        )

    def _check_allowed(self, place: ExportPlace) -> None:
        if not self._servers:
            return
        names = {place.host, f"{place.host}:{place.port}"} if place.socket is None else set()
        for allowed in self._servers:
            if allowed in names or (place.socket is not None and _is_in(place.socket, allowed)):
                return
        raise InvalidInput("The location is on none of the servers of the option servers.")


def _is_in(path: str, directory: str) -> bool:
    """Return whether a socket is in a directory, links resolved."""
    if not os.path.isabs(directory):
        return False
    return os.path.realpath(path).startswith(os.path.realpath(directory).rstrip("/") + "/")
