"""Volumes as answers show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from backupfw.api import versions
from backupfw.api.request import Request
from backupfw.api.views import timestamp
from backupfw.manager.listing import EVERY_HOST

if TYPE_CHECKING:
    from backupfw.manager.rows import Attachment, Volume


def summary(req: Request, volume: Volume) -> dict[str, Any]:
    """What the list shows."""
    return {"id": volume.id, "name": volume.display_name, "links": req.links.of("volumes", volume.id)}


def _attachment(attachment: Attachment, volume_id: str) -> dict[str, Any]:
    return {
        "id": volume_id,
        "attachment_id": attachment.id,
        "volume_id": volume_id,
        "server_id": attachment.instance_uuid,
        "host_name": attachment.host_name,
        "device": attachment.mountpoint,
        "attached_at": timestamp(attachment.attached_at),
    }


def created(req: Request, volume: Volume) -> dict[str, Any]:
    """What create shows."""
    body = {
        **summary(req, volume),
        "status": volume.status,
        "size": volume.size,
        "availability_zone": volume.availability_zone,
        "created_at": timestamp(volume.created_at),
        "updated_at": timestamp(volume.updated_at),
        "attachments": [_attachment(attachment, volume.id) for attachment in volume.attachments],
        "description": volume.display_description,
        "volume_type": volume.volume_type,
        "snapshot_id": volume.snapshot_id,
        "source_volid": volume.source_volid,
        "metadata": dict(volume.metadata),
        "user_id": volume.user_id,
        # A string, as clients expect it.
        "bootable": "true" if volume.bootable else "false",
        "encrypted": False,
        "multiattach": False,
        "replication_status": None,
        "consistencygroup_id": None,
    }
    if req.context.is_admin:
        body["migration_status"] = None
    return {**body, **_later(req, volume)}


def _later(req: Request, volume: Volume) -> dict[str, Any]:
    """The keys that microversions added; most stand for features that this service does not have."""
    version, is_admin = req.version, req.context.is_admin
    body: dict[str, Any] = {}
    if version >= versions.VOLUME_GROUP:
        body["group_id"] = None
    if version >= versions.VOLUME_PROVIDER_ID and is_admin:
        body["provider_id"] = None
    if version >= versions.VOLUME_SHARED_TARGETS:
        body["shared_targets"] = False
        body["service_uuid"] = None
    if version >= versions.VOLUME_CLUSTER_NAME and is_admin:
        body["cluster_name"] = None
    if version >= versions.VOLUME_TYPE_ID:
        body["volume_type_id"] = volume.volume_type_id
    if version >= versions.CONSUMES_QUOTA:
        body["consumes_quota"] = True
    return body


def updated(req: Request, volume: Volume) -> dict[str, Any]:
    """What update shows: published test suites refuse newer keys here."""
    late = ("cluster_name", "volume_type_id", "consumes_quota")
    return {key: value for key, value in created(req, volume).items() if key not in late}


def detail(req: Request, volume: Volume, shows_image: Callable[[str], bool]) -> dict[str, Any]:
    """What show and the detailed list show; administrators see the volume's host.

    :param shows_image: whether the caller may see the image metadata of a project's volumes.
    """
    body = {**created(req, volume), "os-vol-tenant-attr:tenant_id": volume.project_id}
    if volume.image_metadata and shows_image(volume.project_id):
        body["volume_image_metadata"] = dict(volume.image_metadata)
    if req.context.is_admin:
        # As clients expect it, HOST@BACKEND#POOL, no part of it empty.
        body["os-vol-host-attr:host"] = f"{volume.host or EVERY_HOST}@{volume.backend}#{volume.backend}"
        body["os-vol-mig-status-attr:migstat"] = None
        body["os-vol-mig-status-attr:name_id"] = None
    return body
