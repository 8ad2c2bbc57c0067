"""Volumes that are attached to this host, as the provider ``local`` reads and writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

from oslo_log import log

from backupfw.errors import BackupfwError
from backupfw.volume.base import Extent, Point, VolumeProvider, VolumeRef
from backupfw_cinder.host import Host
from backupfw_cinder.volumes import Attachment, Volumes

LOG = log.getLogger(__name__)


class Attached:
    """Attaches and connects volumes.  Thread-safe."""

    def __init__(self, volumes: Volumes, host: Host) -> None:
        self._volumes = volumes
        self._host = host

    def open(
        self, volume: VolumeRef, attempt: int, stack: ExitStack
    ) -> tuple[Attachment, VolumeProvider, VolumeRef]:
        """Attach and connect a volume; the end of ``stack`` disconnects and detaches it.

        :param attempt: see :meth:`VolumeProvider.open_target`.
        :return: the attachment, the provider by which it is used, and the volume as that provider knows it.
        """
        connector = self._host.connector()
        attachment = self._volumes.attach(volume, attempt, connector)
        device: list[object] = []
        found: dict[str, object] = {}
        stack.callback(self._close, attachment, found, device)
        found.update(self._volumes.get(volume.id))
        with self._host.guard(found):
            connected = self._host.connect(attachment.info)
        device.append(connected.device)
        local = self._host.local(connected)
        return attachment, local, self._host.reference(volume, connected, local)

    def _close(self, attachment: Attachment, found: dict[str, object], device: list[object]) -> None:
        with self._host.guard(found):
            # A later attempt may have the same device by now.
            if device and not self._volumes.is_taken_over(attachment):
                try:
                    self._host.disconnect(attachment.info, device[0])
                except OSError:
                    self._host.disconnect(attachment.info, device[0], force=True)
            self._volumes.detach(attachment.id)


class HeldPoint(Point):
    """A volume that holds still, attached to this host.  Thread-safe.

    :param inner: reads it.
    :param identity: see :class:`Point`.
    :param attached: its end closes ``inner`` and detaches the volume; owned by this object.
    :param remove: removes what was made for the point.
    """

    def __init__(self, inner: Point, identity: str, attached: ExitStack, remove: Callable[[], None]) -> None:
        self.length = inner.length
        self.identity = identity
        self._inner = inner
        self._attached: ExitStack | None = attached
        self._remove = remove

    def extents(self, start: int, end: int, since: str | None = None) -> Iterator[Extent]:
        """Say where data and where holes are; a block device is all data."""
        return self._inner.extents(start, end, since)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset``."""
        self._inner.read_into(offset, buffer)

    def check_still(self) -> None:
        """Compare a file's times with those at its opening."""
        self._inner.check_still()

    def release_cache(self, offset: int, length: int) -> None:
        """Let the host drop this range from its page cache."""
        self._inner.release_cache(offset, length)

    def close(self, keep: bool = False) -> None:
        """Detach the volume; remove it unless it is kept."""
        attached, self._attached = self._attached, None
        if attached is None:
            return
        try:
            attached.close()
        except (BackupfwError, OSError):
            # What is read is read; who removes the volume detaches it, too.
            LOG.exception("A volume that was read is not detached")
        if not keep:
            self._remove()
