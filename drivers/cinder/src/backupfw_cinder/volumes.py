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

#: What the attachments of the service name as their device; an attachment has no name otherwise.
DEVICE = "backupfw"

# Seconds between two looks at a status, and for which a new volume, or a detached one, is waited for.
_POLL = 0.5
_PATIENCE = 600.0


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

    def attach(self, volume_id: str) -> str:
        """Attach an available volume to this host, so that nobody else can; returns the attachment's id.

        What an earlier attempt attached is detached first.

        :raises StorageChanged: the volume is gone, or could not be made.
        :raises TargetError: somebody else has it.
        """
        self.detach_ours(volume_id)
        give_up = time.monotonic() + _PATIENCE
        while (status := self.get(volume_id)["status"]) in ("creating", "downloading", "detaching"):
            if time.monotonic() >= give_up:
                raise TargetError(f"Volume {volume_id} does not become available.")
            time.sleep(_POLL)
        if status == "error":
            raise StorageChanged(
                f"volume {volume_id}", "is in error", "The Block Storage service could not make the volume."
            )
        if status != "available":
            raise TargetError(f"Somebody else uses volume {volume_id}: its status is {status}.")
        body = {"volume_uuid": volume_id, "connector": _connector(), "mode": "rw"}
        try:
            made = self._client.call("POST", "/attachments", {"attachment": body})["attachment"]["id"]
            self._client.call("POST", f"/attachments/{made}/action", {"os-complete": {}})
        except Refused as error:
            self.detach_ours(volume_id)
            raise TargetError(f"Volume {volume_id} cannot be attached: {error.text}") from error
        return str(made)

    def detach(self, attachment_id: str) -> None:
        """Delete an attachment; one that is gone counts as deleted."""
        try:
            self._client.call("DELETE", f"/attachments/{attachment_id}")
        except Refused as error:
            if error.status != 404:
                raise

    def detach_ours(self, volume_id: str) -> None:
        """Delete the attachments that attempts of ours have made and left; a missing volume has none.

        An attachment that was not completed has no device yet.  Nova's has a server, and nobody but this
        service attaches a volume that it restores, so one without a server is ours.
        """
        found = self._client.call("GET", f"/attachments/detail?volume_id={volume_id}&all_tenants=1")
        for one in found["attachments"]:
            if one["volume_id"] != volume_id or one.get("instance"):
                continue
            if one["status"] == "attached" and not self._is_ours(volume_id, one["id"]):
                continue
            LOG.warning("Deleting attachment %s of volume %s, which was left", one["id"], volume_id)
            self.detach(one["id"])

    def _is_ours(self, volume_id: str, attachment_id: str) -> bool:
        return any(
            one["attachment_id"] == attachment_id and one["device"] == DEVICE
            for one in self.get(volume_id)["attachments"]
        )

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
        """Let a volume be in error, so that nobody takes it for a good one; a missing one is left so."""
        self.detach_ours(volume_id)
        try:
            self._act(volume_id, "os-reset_status", {"status": "error"})
        except Refused as error:
            if error.status != 404:
                raise

    def _act(self, volume_id: str, action: str, body: Mapping[str, Any]) -> None:
        self._client.call("POST", f"/volumes/{volume_id}/action", {action: dict(body)})


def _connector() -> dict[str, Any]:
    """Return what a Block Storage service must know of a host; enough for volumes in Ceph."""
    return {
        "host": socket.gethostname(),
        "ip": "127.0.0.1",
        "platform": "x86_64",
        "os_type": "linux",
        "multipath": False,
        "do_local_attach": False,
        "mountpoint": DEVICE,
    }
