"""The provider ``qemu``: disks of running machines, by their monitor, dirty bitmaps and NBD."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar

from oslo_config import cfg

from backupfw.errors import ConfigError, InvalidInput, OperationNotSupported, SourceUnreadable, StorageChanged
from backupfw.volume.base import (
    BlockTarget,
    Capabilities,
    Needed,
    Point,
    SnapshotRef,
    Storage,
    Tick,
    VolumeRef,
    no_tick,
)
from backupfw.volume.nbd.client import ALLOCATION, BITMAP, Client, Server, ServerLost
from backupfw_nbd.adopted import AdoptedOnly, changed, shorter
from backupfw_nbd.bitmaps import BitmapPoint, Since
from backupfw_nbd.fleece import PREFIX, Begun, Disk, Fleece, length_of, point_of
from backupfw_nbd.places import DiskPlace
from backupfw_nbd.qmp import Monitor, MonitorAway

_TOKEN = "qemu1 "  # noqa: S105  (begins tokens of points)
_CONNECTIONS = 4


class QemuProvider(AdoptedOnly):
    """Disks of machines of this host.  Thread-safe."""

    API_VERSION: ClassVar[int] = 2

    def __init__(self, options: Any) -> None:
        """Take the options' values.

        :raises ConfigError: one of them cannot be used.
        """
        super().__init__(options)
        self._scratch = str(options.scratch_dir)
        self._timeout = float(options.timeout)
        if not os.path.isabs(self._scratch):
            raise ConfigError(f"option scratch_dir: {self._scratch!r} is not an absolute path")
        if len(os.fsencode(_socket_in(self._scratch, "/"))) > 107:
            raise ConfigError("option scratch_dir: the path is too long for a socket in it")
        if not os.path.isdir(self._scratch):
            raise ConfigError(f"option scratch_dir: {self._scratch!r} is no directory")

    @property
    def capabilities(self) -> Capabilities:
        """It knows what is allocated and what changed, of one moment; it writes nothing."""
        return Capabilities(allocation=True, changes=True, live=True)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the provider's options."""
        return (
            cfg.StrOpt(
                "scratch_dir",
                required=True,
                help="Directory of this host for the temporary overlays and sockets of points. The machines' "
                "QEMU processes must be able to open files in it. While a disk is backed up, as much room as "
                "the disk is long is reserved there; without it, the backup fails.",
            ),
            cfg.FloatOpt(
                "timeout", default=60.0, min=1, help="Seconds in which a machine must answer, or is off."
            ),
        )

    def adopt(
        self,
        path: str,
        *,
        own: Sequence[str] = (),  # noqa: ARG002
        to_copy: bool = False,  # noqa: ARG002
        any_format: bool = False,  # noqa: ARG002
        in_use: bool = False,  # noqa: ARG002
    ) -> Storage:
        """Look at a disk of a running machine.

        :param path: ``qemu+unix:///NODE?monitor=PATH``.
        """
        place = DiskPlace.parse(path)
        try:
            with self._fleece(place) as (fleece, machine):
                disk = fleece.disk()
                if disk is not None and disk.length:
                    return Storage(str(place), disk.length, _storage_id(disk, machine))
        except MonitorAway as error:
            raise InvalidInput(f"{place}: {error}") from error
        raise InvalidInput(f"{place}: the machine has no disk of this name, or it is empty.")

    def look(self, volume: VolumeRef) -> Storage:
        """Look at the volume's disk."""
        with self._looked(volume) as (_, disk, storage_id):
            return Storage(volume.location or "", disk.length, storage_id)

    def open_point(
        self,
        ref: VolumeRef | SnapshotRef,
        point_id: str,
        tick: Tick = no_tick,  # noqa: ARG002
    ) -> Point:
        """Freeze the disk as it is now, and open it; its machine goes on."""
        if isinstance(ref, SnapshotRef):
            raise OperationNotSupported("This volume back end takes no snapshots.")
        place = DiskPlace.parse(ref.location or "")
        with self._looked(ref) as (fleece, disk, storage_id):
            begun = fleece.begin(disk, point_id)
        try:
            return QemuPoint(
                self._client(place, begun),
                begun,
                lambda: self._forget(ref, begun),
                volume=ref,
                storage_id=storage_id,
            )
        except ServerLost as error:
            raise MonitorAway("The machine's NBD server does not answer.") from error

    def keep_points(self, volume: VolumeRef, needed: Callable[[], Needed]) -> None:
        """Keep bitmaps of needed points; end what is left of all others.

        :raises MonitorAway: the machine is off: what is left in it goes when it runs again.
        """
        try:
            with self._looked(volume) as (fleece, disk, _):
                known = frozenset((*disk.bitmaps, *disk.broken))
                if not known:
                    # Perhaps an overlay, of a call that was killed before it made a bitmap.
                    fleece.end()
                    return
        except (StorageChanged, InvalidInput):
            return
        # Not while we hold the monitor: a point may begin meanwhile.
        now = needed()
        points = frozenset(one for name in known if (one := point_of(name)) is not None)
        others = points - now.unneeded(points) - now.compared
        with self._looked(volume) as (fleece, _, _):
            fleece.keep(known, now.compared, now.read | others)

    def open_target(self, volume: VolumeRef, attempt: int) -> AbstractContextManager[BlockTarget]:  # noqa: ARG002
        """Refuse it: a machine runs on the disk.

        :raises OperationNotSupported: always.
        """
        raise OperationNotSupported(
            "The disk of a running machine is not written. Restore to a new volume or a file, or adopt the"
            " disk's image when the machine is off."
        )

    # -- helpers

    @contextmanager
    def _fleece(self, place: DiskPlace) -> Iterator[tuple[Fleece, str]]:
        """Lend the disk, and the machine's id."""
        with Monitor(place.monitor, self._timeout) as monitor:
            machine = str(monitor.run("query-uuid")["UUID"])
            socket = _socket_in(self._scratch, place.monitor)
            yield Fleece(monitor, place.node, self._scratch, socket), machine

    @contextmanager
    def _looked(self, volume: VolumeRef) -> Iterator[tuple[Fleece, Disk, str]]:
        """Lend a volume's disk, if it agrees with the catalogue."""
        with self._fleece(DiskPlace.parse(volume.location or "")) as (fleece, machine):
            disk = fleece.disk()
            if disk is None:
                raise changed(volume, "is gone: the machine has no disk of this name")
            storage_id = _storage_id(disk, machine)
            if volume.storage_id is not None and volume.storage_id != storage_id:
                raise changed(volume, "is another one than was adopted")
            if disk.length < volume.length:
                raise changed(volume, shorter(disk.length, volume.length))
            yield fleece, disk, storage_id

    def _client(self, place: DiskPlace, begun: Begun) -> Client:
        server = Server(export=begun.export, socket=_socket_in(self._scratch, place.monitor))
        contexts = [ALLOCATION, *(BITMAP + name for name in sorted(begun.earlier))]
        return Client([server.begin] * _CONNECTIONS, contexts=contexts, timeout=self._timeout)

    def _forget(self, volume: VolumeRef, begun: Begun) -> None:
        """Remove everything of a point."""
        with self._looked(volume) as (fleece, _, _):
            fleece.forget(begun)


class QemuPoint(BitmapPoint):
    """A disk as it was at one moment.  Thread-safe.

    :param client: connected to its export; owned by this object.
    :param forget: removes everything that QEMU has for it.
    """

    def __init__(
        self, client: Client, begun: Begun, forget: Callable[[], None], *, volume: VolumeRef, storage_id: str
    ) -> None:
        super().__init__(
            client,
            f"qemu/{volume.id}/{begun.bitmap}",
            token=_TOKEN + begun.bitmap,
            earlier={_TOKEN + name: Since(BITMAP + name, length_of(name)) for name in begun.earlier},
            storage_id=storage_id,
        )
        self._forget = forget
        self._is_open = True

    def close(self, keep: bool = False) -> None:
        """End the connections, and what QEMU has for the point unless it is kept."""
        if not self._is_open:
            return
        self._is_open = False
        super().close()
        if not keep:
            # What is left goes with the next call of keep_points.
            with contextlib.suppress(SourceUnreadable):
                self._forget()


def _storage_id(disk: Disk, machine: str) -> str:
    return f"{machine} {disk.node[:64]} {hashlib.sha256(disk.file.encode()).hexdigest()[:32]}"


def _socket_in(scratch: str, monitor: str) -> str:
    """Return where the NBD server of a machine listens."""
    return os.path.join(scratch, f"{PREFIX}{hashlib.sha256(monitor.encode()).hexdigest()[:16]}.sock")
