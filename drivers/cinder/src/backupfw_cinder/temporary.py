"""Holds volumes still while they are read: snapshots, and volumes made of them, in the service's project.

Nothing has to be written down before it is made: its name contains the point's id, and the volume that it
belongs to is in its metadata, so whoever comes later finds it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

from oslo_log import log

from backupfw.volume.base import SnapshotRef, Tick, VolumeRef
from backupfw.volume.taking import taking_point
from backupfw_cinder.client import Client, Refused, unavailable
from backupfw_cinder.volumes import ATTACHED, Volumes

LOG = log.getLogger(__name__)

# Begins the names of all that is made; the point's id follows.
_NAME = "backupfw-"
#: The key of the metadata that has the id of the volume which is held still.
OF_KEY = "backupfw_of"

# Seconds between two looks at a status.
_POLL = 0.25
# Seconds for which a snapshot, or a deletion, is waited for; and a copy: storage that cannot share blocks
# copies all of them.
_PATIENCE = 600.0
_COPY = 24 * 3600.0

# How often a deletion may fail in the storage.
_TRIES = 3

_MADE = ("available", "detaching", *ATTACHED)

_STAYS = "The Block Storage service does not delete what a backup has left."


class Temporary:
    """Makes, finds and removes what holds volumes still.  Thread-safe."""

    def __init__(self, client: Client, volumes: Volumes) -> None:
        self._client = client
        self._volumes = volumes

    def points(self, volume_id: str) -> set[str]:
        """Return the ids of the points for which there is something."""
        listed = (*self._listed("volumes", volume_id), *self._listed("snapshots", volume_id))
        return {one["name"].removeprefix(_NAME) for one in listed}

    def hold(self, ref: VolumeRef | SnapshotRef, point_id: str, tick: Tick) -> dict[str, Any]:
        """Return the temporary volume of a point: that of an earlier call, or a new one.

        :raises StorageChanged: the volume or snapshot is gone.
        """
        volume_id = ref.volume.id if isinstance(ref, SnapshotRef) else ref.id
        found = self._named("volumes", volume_id, point_id)
        if found is None:
            source = ref.id if isinstance(ref, SnapshotRef) else self._snapshot(volume_id, point_id, tick)
            wanted = {"snapshot_id": source, "name": _NAME + point_id, "metadata": {OF_KEY: volume_id}}
            found = self._made("volumes", {"volume": wanted}, volume_id, tick)
        found = self._finished("volumes", found["id"], volume_id, _COPY, tick)
        # While it is there, its owner cannot delete the volume.  Some storage needs it to the end.
        for one in self._listed("snapshots", volume_id):
            if one["name"] == _NAME + point_id and one["status"] == "available":
                self._asked(f"/snapshots/{one['id']}", force=False)
        return found

    def remove(self, volume_id: str, points: Iterable[str]) -> None:
        """Remove what there is for points, and wait until it is gone.

        :raises ServiceUnavailable: something does not go now.
        """
        names = {_NAME + point_id for point_id in points}
        # Storage may make a volume depend on its snapshot.
        for kind in ("volumes", "snapshots"):
            doomed = [one["id"] for one in self._listed(kind, volume_id) if one["name"] in names]
            for one in doomed:
                self._remove(kind, one)

    def _snapshot(self, volume_id: str, point_id: str, tick: Tick) -> str:
        found = self._named("snapshots", volume_id, point_id)
        if found is None:
            # Of a volume in use, too: by this version of the API it needs no force.
            wanted = {"volume_id": volume_id, "name": _NAME + point_id, "metadata": {OF_KEY: volume_id}}
            # The service says when it has begun, but not when between that and its end the moment is.
            with taking_point():
                found = self._made("snapshots", {"snapshot": wanted}, volume_id, tick)
                return str(self._finished("snapshots", found["id"], volume_id, _PATIENCE, tick)["id"])
        return str(self._finished("snapshots", found["id"], volume_id, _PATIENCE, tick)["id"])

    def _named(self, kind: str, volume_id: str, point_id: str) -> dict[str, Any] | None:
        """Return what an earlier call has made; what it could not make is removed."""
        for one in self._listed(kind, volume_id):
            if one["name"] == _NAME + point_id:
                if one["status"] in ("creating", *_MADE):
                    return one
                self._remove(kind, one["id"])
        return None

    def _listed(self, kind: str, volume_id: str) -> list[dict[str, Any]]:
        """Return what there is for a volume in the service's project, the oldest first."""
        filters = quote(str({OF_KEY: volume_id}))
        found = self._client.call("GET", f"/{kind}/detail?metadata={filters}")[kind]
        # A service that ignores the filter would show everything.
        mine = [
            one
            for one in found
            if one.get("metadata", {}).get(OF_KEY) == volume_id and str(one["name"]).startswith(_NAME)
        ]
        return sorted(mine, key=lambda one: (one["created_at"], one["id"]))

    def _made(self, kind: str, body: Mapping[str, Any], volume_id: str, tick: Tick) -> dict[str, Any]:
        give_up = time.monotonic() + _PATIENCE
        while True:
            tick()
            try:
                (found,) = self._client.call("POST", f"/{kind}", body).values()
            except Refused as error:
                if error.status == 413:
                    LOG.warning("The quota of the service's project is used up: %s", error.text)
                    raise unavailable(
                        "The quota of this service's own project in the Block Storage service is used up."
                    ) from error
                # It is gone, or in a status in which this is refused now; or the request is wrong.
                self._volumes.get(volume_id)
                if error.status not in (400, 404, 409) or time.monotonic() >= give_up:
                    raise
            else:
                assert isinstance(found, dict)
                return found
            time.sleep(_POLL)

    def _finished(self, kind: str, one: str, volume_id: str, patience: float, tick: Tick) -> dict[str, Any]:
        give_up = time.monotonic() + patience
        while time.monotonic() < give_up:
            tick()
            found = self._get(kind, one)
            if found is not None and found["status"] in _MADE:
                return found
            if found is None or found["status"] != "creating":
                # The tenant has deleted the volume with all its snapshots; or it cannot be made.
                self._volumes.get(volume_id)
                LOG.warning("%s %s could not be made for a backup of volume %s", kind, one, volume_id)
                raise unavailable("The Block Storage service could not make a snapshot, or a volume of it.")
            time.sleep(_POLL)
        raise unavailable("The Block Storage service did not make a snapshot, or a volume of it, in time.")

    def _get(self, kind: str, one: str) -> dict[str, Any] | None:
        try:
            (found,) = self._client.call("GET", f"/{kind}/{one}").values()
        except Refused as error:
            if error.status != 404:
                raise
            return None
        assert isinstance(found, dict)
        return found

    def _remove(self, kind: str, one: str) -> None:
        give_up = time.monotonic() + _PATIENCE
        tries = 0
        while (found := self._get(kind, one)) is not None:
            status = found["status"]
            if kind == "volumes" and status in ATTACHED:
                self._volumes.detach_all(one)
            elif status == "available" or status.startswith("error"):
                if tries == _TRIES:
                    raise unavailable(_STAYS)
                tries += self._asked(f"/{kind}/{one}", force=status != "available")
            if time.monotonic() >= give_up:
                raise unavailable(_STAYS)
            time.sleep(_POLL)

    def _asked(self, path: str, *, force: bool) -> bool:
        """Ask for a deletion; False: it is refused now, while something else is done with it."""
        try:
            if force:
                # What could not be deleted before.
                self._client.call("POST", f"{path}/action", {"os-force_delete": {}})
            else:
                self._client.call("DELETE", path)
        except Refused as error:
            if error.status not in (400, 404, 409):
                raise
            return False
        return True
