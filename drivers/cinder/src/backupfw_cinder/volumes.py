"""Volumes of a Block Storage service as the service's user sees and changes them."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from oslo_log import log

from backupfw.errors import BackupfwError, InvalidVolume, StorageChanged, TargetError
from backupfw.volume.base import HEADER, BlockTarget, Restored, VolumeRef
from backupfw_cinder.client import FIXED_KEY, Client, Refused, key_of
from backupfw_cinder.host import Host

LOG = log.getLogger(__name__)

#: The metadata of a volume that was made for a restore, until that is done: the id of the request.
REQUEST_KEY = "backupfw_request"

# What the attachments of the service name as their device, with the number of the attempt behind it.
_DEVICE = "backupfw-"

# Seconds between two looks at a status, and for which a volume is waited for.
_POLL = 0.5
_PATIENCE = 600.0
# For which a reservation is waited for that nobody seems to have made: it may be one of ours that begins.
_BEGINNING = 15.0
# How often the service may refuse to attach a volume that is available: other attempts may try, too.
_REFUSALS = 20

# The status of an attachment that is of no use to anybody.
_FAILED = "error_attaching"
_MAKING = ("creating", "downloading")
_PASSING = ("detaching", *_MAKING)
_RESERVED = "reserved"
#: Statuses of a volume that somebody has.
ATTACHED = ("in-use", _RESERVED, "attaching")
#: The type of connections, and the protocol of back ends, of volumes in Ceph.
_RBD, _CEPH = "rbd", "ceph"

_NOT_AVAILABLE = "Volume {} does not become available."


@dataclass(frozen=True, slots=True)
class Attachment:
    """A volume that is attached to this host.

    :ivar info: how the host reaches it.
    """

    id: str
    volume_id: str
    info: Mapping[str, Any]


class Volumes:
    """Changes volumes; thread-safe.

    :param host: what left attachments may be connected to.
    """

    def __init__(self, client: Client, host: Host) -> None:
        self._client = client
        self._host = host
        self._lock = threading.Lock()
        self._protocols: dict[str, frozenset[str]] = {}

    def get(self, volume_id: str) -> dict[str, Any]:
        """Return a volume as the service describes it.

        :raises StorageChanged: it is gone.
        """
        try:
            found = self._client.call("GET", f"/volumes/{volume_id}")["volume"]
        except Refused as error:
            if error.status != 404:
                raise
            raise StorageChanged(
                f"volume {volume_id}", "is gone", "The Block Storage service does not have the volume."
            ) from error
        assert isinstance(found, dict)
        return found

    def made(self, volume_id: str) -> dict[str, Any]:
        """Return a volume as :meth:`get` does, once it is made: before, it has no place.

        :raises StorageChanged: it is gone.
        :raises TargetError: that takes too long.
        """
        give_up = time.monotonic() + _PATIENCE
        while (found := self.get(volume_id))["status"] in _MAKING:
            if time.monotonic() >= give_up:
                raise TargetError(_NOT_AVAILABLE.format(volume_id))
            time.sleep(_POLL)
        return found

    def check_owner(self, volume: VolumeRef) -> None:
        """Make sure that a volume still has the owner that it had when the operation was asked for.

        :raises StorageChanged: it has another owner, or is gone.
        """
        if volume.project_id is not None and _has_another_owner(self.get(volume.id), volume.project_id):
            hint = "It was transferred in the Block Storage service."
            raise StorageChanged(f"volume {volume.id}", "belongs to another project now", hint)

    def check_key(self, volume: VolumeRef) -> None:
        """Make sure that a volume that is read is still encrypted as when the backup was asked for.

        :raises InvalidVolume: it is not.
        """
        key = key_of(self.get(volume.id))
        if key != (None if volume.encryption is None else volume.encryption.key_id):
            raise InvalidVolume(f"Volume {volume.id} was encrypted anew while its backup waited.")

    def check_bytes(self, volume: VolumeRef, target: BlockTarget) -> None:
        """Make sure that the key of a volume opens what will be written to it.

        Before anything is written, its key is the one of the bytes, or opens a header that is the same.

        :raises InvalidVolume: it is not encrypted as the bytes are.
        """
        key, wanted = key_of(self.get(volume.id)), volume.encryption
        if key is None and wanted is None:
            return
        if key is not None and wanted is not None:
            if key == wanted.key_id != FIXED_KEY:
                return
            header = bytearray(min(HEADER, target.length))
            target.read_into(0, memoryview(header))
            if wanted.header == hashlib.sha256(header).hexdigest():
                return
        raise InvalidVolume(f"Volume {volume.id} has another key than the bytes of the backup.")

    def in_ceph(self, found: Mapping[str, Any]) -> bool | None:
        """Return whether a volume's storage is Ceph; None: the service does not say that now.

        :param found: the volume as the service describes it.
        """
        place = str(found.get("os-vol-host-attr:host") or "")
        with self._lock:
            known = self._protocols.get(place)
        if known is None:
            listed = self._client.call("GET", "/scheduler-stats/get_pools?detail=true")["pools"]
            protocols = {one["name"]: _protocols(one["capabilities"]) for one in listed}
            with self._lock:
                # A place never gets storage of another kind; one that does not answer now is not listed.
                self._protocols.update(protocols)
                known = self._protocols.get(place)
        return _CEPH in known if known else None

    def attach(self, volume: VolumeRef, attempt: int, reach: Mapping[str, Any] | None = None) -> Attachment:
        """Attach an available volume to this host, so that nobody else can.

        What an earlier attempt attached is detached first.

        :param attempt: see :meth:`VolumeProvider.open_target`.
        :param reach: what the service must know of this host; None: enough for volumes in Ceph.
        :raises StorageChanged: the volume is gone, could not be made, or has another owner now.
        :raises TargetError: somebody else has it, or a later attempt.
        """
        volume_id = volume.id
        begun = time.monotonic()
        give_up, settled = begun + _PATIENCE, begun + _BEGINNING
        refusals = 0
        while True:
            status = self.get(volume_id)["status"]
            if status == "error":
                hint = "The Block Storage service could not make the volume, or an earlier restore failed."
                raise StorageChanged(f"volume {volume_id}", "is in error", hint)
            if status == "available":
                try:
                    return self._attach(volume, attempt, reach)
                except Refused as error:
                    refusals += 1
                    # Of requests for one volume at the same moment, some are answered with 500.
                    if refusals == _REFUSALS or error.status not in (400, 404, 409, 500):
                        raise TargetError(f"Volume {volume_id} cannot be attached: {error.text}") from error
            elif status not in (*_PASSING, *ATTACHED) or (
                status in ATTACHED
                and not self._detach_earlier(volume_id, attempt)
                and not (status == _RESERVED and time.monotonic() < settled)
            ):
                raise TargetError(f"Somebody else uses volume {volume_id}: its status is {status}.")
            if time.monotonic() >= give_up:
                raise TargetError(_NOT_AVAILABLE.format(volume_id))
            time.sleep(_POLL)

    def _attach(self, volume: VolumeRef, attempt: int, reach: Mapping[str, Any] | None) -> Attachment:
        # An attachment has no other name.
        named = {**(reach or _reach_of_ceph()), "mountpoint": f"{_DEVICE}{attempt}"}
        body = {"volume_uuid": volume.id, "connector": named, "mode": "rw"}
        made = self._client.call("POST", "/attachments", {"attachment": body})["attachment"]
        try:
            self._client.call("POST", f"/attachments/{made['id']}/action", {"os-complete": {}})
            # Nobody can transfer it while it is attached.
            self.check_owner(volume)
        except BaseException:
            self.detach(made["id"])
            raise
        return Attachment(made["id"], volume.id, made["connection_info"])

    def check_alone(self, attachment: Attachment) -> None:
        """Make sure that nobody else had a volume while it was attached here.

        Several can attach a volume of a type with ``multiattach``, and its owner may delete our attachment.
        A later attempt has one of ours, too.

        :raises InvalidVolume: somebody may have written to it meanwhile.
        """
        devices = [str(one["device"]) for one in self.get(attachment.volume_id)["attachments"]]
        if not devices or not all(one.startswith(_DEVICE) for one in devices):
            # Not tried again: what is written already would count.
            raise InvalidVolume(f"Volume {attachment.volume_id} was not ours alone while it was written.")

    def detach(self, attachment_id: str) -> None:
        """Delete an attachment; one that is gone counts as deleted."""
        try:
            self._client.call("DELETE", f"/attachments/{attachment_id}")
        except Refused as error:
            if error.status != 404:
                raise

    def is_taken_over(self, attachment: Attachment) -> bool:
        """Return whether a later attempt has attached the volume to this host."""
        try:
            found = self.get(attachment.volume_id)["attachments"]
        except StorageChanged:
            return False
        here = socket.gethostname()
        return any(one["attachment_id"] != attachment.id and one.get("host_name") == here for one in found)

    def detach_all(self, volume_id: str) -> None:
        """Delete all attachments of a volume that is the service's own."""
        self._detach_earlier(volume_id, None, temporary=True)

    def _detach_earlier(self, volume_id: str, attempt: int | None, *, temporary: bool = False) -> bool:
        """Delete what earlier attempts have attached, and left; a missing volume has nothing.

        :param attempt: None: it is later than all others.
        :param temporary: the volume is the service's own, and so all its attachments are.
        :return: whether all attachments were ours.
        :raises TargetError: a later attempt has the volume.
        """
        path = f"/attachments/detail?volume_id={volume_id}&all_tenants=1"
        mine = True
        for one in self._client.call("GET", path)["attachments"]:
            if one["volume_id"] != volume_id:
                continue
            number: int | None = None
            host = None
            if one["status"] == "attached":
                number, host = self._attempt_of(volume_id, one["id"])
            elif temporary or one["status"] == _FAILED or self._is_begun(path, one["id"]):
                number = 0
            # Nova's has a server.
            if one.get("instance") or number is None:
                mine = False
            elif attempt is not None and number > attempt:
                raise TargetError(f"A later attempt writes volume {volume_id}.")
            else:
                LOG.warning("Deleting attachment %s of volume %s, which was left", one["id"], volume_id)
                if host == socket.gethostname():
                    self._disconnect(volume_id, one["connection_info"])
                self.detach(one["id"])
        return mine

    def _is_begun(self, path: str, attachment_id: str) -> bool:
        """Return whether an attachment that is not complete is one of ours.

        Its device is shown nowhere, but administrators can ask for those whose device contains something.

        :param path: of the attachments among which it is.
        """
        ours = self._client.call("GET", f"{path}&mountpoint~={_DEVICE}")["attachments"]
        return any(one["id"] == attachment_id for one in ours)

    def _attempt_of(self, volume_id: str, attachment_id: str) -> tuple[int | None, str | None]:
        """Return the number of the attempt that made an attachment, None if it is not ours; and its host."""
        for one in self.get(volume_id)["attachments"]:
            device = one["device"] or ""
            if one["attachment_id"] == attachment_id and device.startswith(_DEVICE):
                number = device.removeprefix(_DEVICE)
                return (int(number) if number.isascii() and number.isdigit() else None), one.get("host_name")
        return None, None

    def _disconnect(self, volume_id: str, info: Mapping[str, Any]) -> None:
        """Remove what a killed process has connected to this host."""
        if not info or info.get("driver_volume_type") == _RBD:
            return
        try:
            self._host.disconnect(info, force=True)
        except (BackupfwError, OSError):
            LOG.exception("What is left of volume %s on this host is not disconnected", volume_id)

    def describe(self, volume: VolumeRef, source: Restored) -> None:
        """Give a volume what belongs to its new bytes; that of another owner is left alone.

        :raises StorageChanged: it is gone.
        """
        volume_id = volume.id
        present = self.get(volume_id)
        if _has_another_owner(present, volume.project_id):
            return
        if source.metadata:
            self._client.call("POST", f"/volumes/{volume_id}/metadata", {"metadata": dict(source.metadata)})
        if REQUEST_KEY in present.get("metadata", {}):
            self._client.call("DELETE", f"/volumes/{volume_id}/metadata/{REQUEST_KEY}")
        self._act(volume_id, "os-set_bootable", {"bootable": source.bootable})
        for key in set(present.get("volume_image_metadata", {})) - set(source.image_metadata):
            self._act(volume_id, "os-unset_image_metadata", {"key": key})
        if source.image_metadata:
            self._act(volume_id, "os-set_image_metadata", {"metadata": dict(source.image_metadata)})

    def spoil(self, volume_id: str, owner: str | None) -> None:
        """Let a volume be in error, so that nobody takes it for a good one; a missing one is left so.

        One that has another owner now, or that somebody else has attached, is left alone: it was taken
        before this service could write.

        :param owner: see :attr:`VolumeRef.project_id`.
        """
        try:
            if _has_another_owner(self.get(volume_id), owner):
                return
        except StorageChanged:
            return
        if not self._detach_earlier(volume_id, None):
            return
        try:
            self._act(volume_id, "os-reset_status", {"status": "error"})
        except Refused as error:
            if error.status != 404:
                raise

    def _act(self, volume_id: str, action: str, body: Mapping[str, Any]) -> None:
        self._client.call("POST", f"/volumes/{volume_id}/action", {action: dict(body)})


def _has_another_owner(found: Mapping[str, Any], before: str | None) -> bool:
    """Return whether a volume was transferred since an operation was asked for; if that is known."""
    owner = found.get("os-vol-tenant-attr:tenant_id")
    return bool(owner and before) and owner != before


def _protocols(capabilities: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of a back end's protocol: one, or all that it is known by."""
    found = capabilities.get("storage_protocol") or ()
    return frozenset((found,) if isinstance(found, str) else found)


def _reach_of_ceph() -> dict[str, Any]:
    """Return what a Block Storage service must know of a host; enough for volumes in Ceph."""
    return {
        "host": socket.gethostname(),
        "ip": "127.0.0.1",
        "platform": "x86_64",
        "os_type": "linux",
        "multipath": False,
        "do_local_attach": False,
    }
