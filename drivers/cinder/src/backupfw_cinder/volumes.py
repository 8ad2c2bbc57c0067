"""Volumes of a Block Storage service as the service's user sees and changes them."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from typing import Any

from oslo_log import log

from backupfw.errors import StorageChanged, TargetError
from backupfw.volume.base import Restored
from backupfw_cinder.client import Client, Refused

LOG = log.getLogger(__name__)

# What the attachments of the service name as their device, with the number of the attempt behind it; an
# attachment has no other name.
_DEVICE = "backupfw-"

# Seconds between two looks at a status, and for which a volume is waited for.
_POLL = 0.5
_PATIENCE = 600.0
# How often the service may refuse to attach a volume that is available: other attempts may try, too.
_REFUSALS = 20

_PASSING = ("creating", "downloading", "detaching")
_ATTACHED = ("in-use", "reserved", "attaching")


class Volumes:
    """Changes volumes; thread-safe."""

    def __init__(self, client: Client) -> None:
        self._client = client

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

    def attach(self, volume_id: str, attempt: int) -> str:
        """Attach an available volume to this host, so that nobody else can; returns the attachment's id.

        What an earlier attempt attached is detached first.

        :param attempt: see :meth:`VolumeProvider.open_target`.
        :raises StorageChanged: the volume is gone, or could not be made.
        :raises TargetError: somebody else has it, or a later attempt.
        """
        give_up = time.monotonic() + _PATIENCE
        refusals = 0
        while True:
            status = self.get(volume_id)["status"]
            if status == "error":
                hint = "The Block Storage service could not make the volume, or an earlier restore failed."
                raise StorageChanged(f"volume {volume_id}", "is in error", hint)
            if status == "available":
                try:
                    return self._attach(volume_id, attempt)
                except Refused as error:
                    refusals += 1
                    if refusals == _REFUSALS or error.status not in (400, 404, 409):
                        raise TargetError(f"Volume {volume_id} cannot be attached: {error.text}") from error
            elif status not in (*_PASSING, *_ATTACHED) or (
                status in _ATTACHED and not self._detach_earlier(volume_id, attempt)
            ):
                raise TargetError(f"Somebody else uses volume {volume_id}: its status is {status}.")
            if time.monotonic() >= give_up:
                raise TargetError(f"Volume {volume_id} does not become available.")
            time.sleep(_POLL)

    def _attach(self, volume_id: str, attempt: int) -> str:
        body = {"volume_uuid": volume_id, "connector": _connector(attempt), "mode": "rw"}
        made = str(self._client.call("POST", "/attachments", {"attachment": body})["attachment"]["id"])
        try:
            self._client.call("POST", f"/attachments/{made}/action", {"os-complete": {}})
        except BaseException:
            self.detach(made)
            raise
        return made

    def detach(self, attachment_id: str) -> None:
        """Delete an attachment; one that is gone counts as deleted."""
        try:
            self._client.call("DELETE", f"/attachments/{attachment_id}")
        except Refused as error:
            if error.status != 404:
                raise

    def _detach_earlier(self, volume_id: str, attempt: int | None) -> bool:
        """Delete what earlier attempts have attached, and left; a missing volume has nothing.

        An attachment that was not completed has no device yet.  Nova's has a server, and nobody but this
        service attaches a volume that it restores, so one without a server is ours.

        :param attempt: None: it is later than all others.
        :return: whether all attachments were ours.
        :raises TargetError: a later attempt has the volume.
        """
        listed = self._client.call("GET", f"/attachments/detail?volume_id={volume_id}&all_tenants=1")
        mine = True
        for one in listed["attachments"]:
            if one["volume_id"] != volume_id:
                continue
            number = self._attempt_of(volume_id, one["id"]) if one["status"] == "attached" else 0
            if one.get("instance") or number is None:
                mine = False
            elif attempt is not None and number > attempt:
                raise TargetError(f"A later attempt writes volume {volume_id}.")
            else:
                LOG.warning("Deleting attachment %s of volume %s, which was left", one["id"], volume_id)
                self.detach(one["id"])
        return mine

    def _attempt_of(self, volume_id: str, attachment_id: str) -> int | None:
        """Return the number of the attempt that made an attachment; None: it is not ours."""
        for one in self.get(volume_id)["attachments"]:
            device = one["device"] or ""
            if one["attachment_id"] == attachment_id and device.startswith(_DEVICE):
                number = device.removeprefix(_DEVICE)
                return int(number) if number.isascii() and number.isdigit() else None
        return None

    def describe(self, volume_id: str, source: Restored) -> None:
        """Give a volume what belongs to its new bytes."""
        present = self.get(volume_id)
        if source.metadata:
            self._client.call("POST", f"/volumes/{volume_id}/metadata", {"metadata": dict(source.metadata)})
        self._act(volume_id, "os-set_bootable", {"bootable": source.bootable})
        for key in set(present.get("volume_image_metadata", {})) - set(source.image_metadata):
            self._act(volume_id, "os-unset_image_metadata", {"key": key})
        if source.image_metadata:
            self._act(volume_id, "os-set_image_metadata", {"metadata": dict(source.image_metadata)})

    def spoil(self, volume_id: str) -> None:
        """Let a volume be in error, so that nobody takes it for a good one; a missing one is left so.

        One that somebody else has attached is left alone: it was taken before this service could write.
        """
        if not self._detach_earlier(volume_id, None):
            return
        try:
            self._act(volume_id, "os-reset_status", {"status": "error"})
        except Refused as error:
            if error.status != 404:
                raise

    def _act(self, volume_id: str, action: str, body: Mapping[str, Any]) -> None:
        self._client.call("POST", f"/volumes/{volume_id}/action", {action: dict(body)})


def _connector(attempt: int) -> dict[str, Any]:
    """Return what a Block Storage service must know of a host; enough for volumes in Ceph."""
    return {
        "host": socket.gethostname(),
        "ip": "127.0.0.1",
        "platform": "x86_64",
        "os_type": "linux",
        "multipath": False,
        "do_local_attach": False,
        "mountpoint": f"{_DEVICE}{attempt}",
    }
