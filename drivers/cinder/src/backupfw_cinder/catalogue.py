"""What a Block Storage service says of its volumes, asked in the name of a caller."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import urlencode

from oslo_log import log

from backupfw.errors import (
    Forbidden,
    InvalidInput,
    InvalidVolume,
    QuotaExceeded,
    ServiceUnavailable,
    SnapshotNotFound,
    VolumeNotFound,
)
from backupfw.volume.catalogue import Caller, Catalogue, ForeignSnapshot, ForeignVolume
from backupfw_cinder.client import Client, Refused, key_of, unavailable, understood
from backupfw_cinder.temporary import OF_KEY
from backupfw_cinder.volumes import REQUEST_KEY, Volumes

LOG = log.getLogger(__name__)

# Seconds between two requests for a deletion, and for which a volume that is not made yet is waited for.
_POLL = 0.5
_PATIENCE = 30.0

# How many volumes are listed at a time; a service may give fewer.
_PAGE = 1000

# The keys of the owner's project.
_OWNER_OF_VOLUME = "os-vol-tenant-attr:tenant_id"
_OWNER_OF_SNAPSHOT = "os-extended-snapshot-attributes:project_id"


_ONLY_A_COPY = (
    "The backup is of an encrypted volume, and only a copy of volume {} has its key."
    " The Block Storage service does not make one: {}"
)

_NO_LIST = "The Block Storage service does not list a project's volumes for this service's user."


class CinderCatalogue(Catalogue):
    """The catalogue of one Block Storage service.  Thread-safe."""

    lists: ClassVar[bool] = True

    def __init__(self, client: Client, volumes: Volumes) -> None:
        self._client = client
        self._volumes = volumes

    @understood()
    def volume(self, caller: Caller, volume_id: str) -> ForeignVolume:
        """Return a volume."""
        try:
            found = self._found("volume", volume_id, _OWNER_OF_VOLUME, caller)
        except Refused as error:
            raise _refusal(error, VolumeNotFound(volume_id)) from error
        return _volume(found)

    def volumes(self, project_id: str) -> Iterator[ForeignVolume]:
        """Yield all volumes of a project, page by page, as the service's user sees them."""
        wanted: dict[str, Any] = {"all_tenants": 1, "project_id": project_id}
        wanted |= {"sort": "id:asc", "limit": _PAGE}
        while True:
            with understood():
                found, more = self._page(wanted, project_id)
            yield from found
            if more is None:
                return
            wanted["marker"] = more

    def _page(self, wanted: Mapping[str, Any], project_id: str) -> tuple[list[ForeignVolume], str | None]:
        """Return a page of a project's volumes, and the last id of it if there is one more page."""
        try:
            answer = self._client.call("GET", f"/volumes/detail?{urlencode(wanted)}")
        except Refused as error:
            LOG.error("The volumes of project %s cannot be listed: %s", project_id, error)
            raise unavailable(_NO_LIST) from error
        page = answer["volumes"]
        if any(one[_OWNER_OF_VOLUME] != project_id for one in page):
            # It has left out what was asked for, so it may have left out volumes, too.
            raise unavailable(_NO_LIST)
        found = [_volume(one) for one in page if OF_KEY not in (one.get("metadata") or {})]
        if not page or (len(page) < wanted["limit"] and not answer.get("volumes_links")):
            return found, None
        if page[-1]["id"] == wanted.get("marker"):
            raise unavailable(_NO_LIST)
        return found, page[-1]["id"]

    @understood()
    def snapshot(self, caller: Caller, snapshot_id: str) -> ForeignSnapshot:
        """Return a snapshot."""
        try:
            found = self._found("snapshot", snapshot_id, _OWNER_OF_SNAPSHOT, caller)
        except Refused as error:
            raise _refusal(error, SnapshotNotFound(snapshot_id)) from error
        created = datetime.fromisoformat(found["created_at"])
        return ForeignSnapshot(
            id=found["id"],
            volume_id=found["volume_id"],
            project_id=found[_OWNER_OF_SNAPSHOT],
            status=found["status"],
            size=int(found["size"]),
            created_at=created if created.tzinfo is None else created.astimezone(UTC).replace(tzinfo=None),
            name=found.get("name") or None,
        )

    @understood()
    def create_volume(
        self,
        caller: Caller,
        *,
        size: int,
        name: str,
        volume_type: str | None,
        availability_zone: str | None,
        metadata: Mapping[str, str],
        request: str,
        copy_of: str | None = None,
    ) -> ForeignVolume:
        """Make a volume in the caller's project, empty or a copy; its metadata names the request.

        :raises InvalidVolume: it cannot be a copy of that volume.
        """
        if caller.user_token is None:
            raise InvalidInput(
                "A new volume belongs to the user who asks for it through the API; name an existing volume."
            )
        wanted: dict[str, Any] = {"name": name, "metadata": {**metadata, REQUEST_KEY: request}}
        if copy_of is not None:
            # It gets size, type and availability zone, too.
            wanted["source_volid"] = copy_of
        else:
            wanted["size"] = size
            if volume_type is not None:
                wanted["volume_type"] = volume_type
            if availability_zone is not None:
                wanted["availability_zone"] = availability_zone
        try:
            made = self._made(caller, request, name) or self._create(caller, request, wanted)
        except Refused as error:
            if error.status == 413:
                raise QuotaExceeded("volumes", error.text) from error
            if copy_of is not None:
                raise _refusal(error, InvalidVolume(_ONLY_A_COPY.format(copy_of, error.text))) from error
            raise _refusal(error, InvalidInput(error.text)) from error
        return _volume({**made, _OWNER_OF_VOLUME: caller.project_id})

    def _create(self, caller: Caller, request: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return dict(self._client.call("POST", "/volumes", {"volume": dict(wanted)}, caller)["volume"])
        except ServiceUnavailable:
            # Only the answer may be lost.
            if (made := self._made(caller, request, wanted["name"])) is None:
                raise
            return made

    def _made(self, caller: Caller, request: str, name: str) -> dict[str, Any] | None:
        """Return the volume that an earlier request of that id has made, with this name; nobody uses it."""
        mark = {REQUEST_KEY: request}
        try:
            path = f"/volumes/detail?{urlencode({'metadata': str(mark)})}"
            listed = self._client.call("GET", path, caller=caller)["volumes"]
        except Refused as error:
            # An operator can forbid to look for metadata.
            LOG.warning("It is not known whether volume %s was made already: %s", name, error)
            return None
        for one in listed:
            if (one.get("metadata") or {}).get(REQUEST_KEY) == request and one["status"] in (
                "creating",
                "available",
            ):
                if one["name"] != name:
                    self._client.call("PUT", f"/volumes/{one['id']}", {"volume": {"name": name}}, caller)
                return {**one, "name": name}
        return None

    def delete_volume(self, caller: Caller, volume_id: str) -> None:
        """Delete a volume; one that is not made yet is waited for."""
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                self._client.call("DELETE", f"/volumes/{volume_id}", caller=caller)
            except Refused as error:
                if error.status == 404:
                    return
                if error.status != 400 or time.monotonic() >= give_up:
                    raise
            else:
                return
            time.sleep(_POLL)

    def spoil_volume(self, volume_id: str, owner: str) -> None:
        """Let a volume be in error."""
        self._volumes.spoil(volume_id, owner)

    def _found(self, kind: str, one: str, owner: str, caller: Caller) -> dict[str, Any]:
        """Return a volume or snapshot that the caller sees, with its owner.

        Some services show the owner to administrators only, and who sees it need not be its owner.

        :param kind: ``volume`` or ``snapshot``.
        :param owner: the key of its owner's project.
        """
        path = f"/{kind}s/{one}"
        found = dict(self._client.call("GET", path, caller=caller)[kind])
        if not found.get(owner):
            found[owner] = self._client.call("GET", path)[kind].get(owner)
        if not found[owner]:
            raise unavailable(f"The Block Storage service does not say whose {kind} {one} is.")
        return found


def _refusal(error: Refused, otherwise: Exception) -> Exception:
    return Forbidden("the Block Storage service's rule") if error.status in (401, 403) else otherwise


def _volume(found: Mapping[str, Any]) -> ForeignVolume:
    return ForeignVolume(
        id=found["id"],
        project_id=found[_OWNER_OF_VOLUME],
        status=found["status"],
        size=int(found["size"]),
        user_id=found.get("user_id"),
        name=found.get("name") or None,
        description=found.get("description") or None,
        volume_type=found.get("volume_type") or None,
        availability_zone=found.get("availability_zone") or None,
        bootable=found.get("bootable") == "true",
        encryption_key_id=key_of(found),
        metadata=dict(found.get("metadata") or {}),
        image_metadata=dict(found.get("volume_image_metadata") or {}),
    )
