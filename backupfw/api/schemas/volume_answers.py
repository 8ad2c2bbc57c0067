"""Bodies of answers about volumes and snapshots, with the keys that versions added."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backupfw.api import versions
from backupfw.api.schemas import types
from backupfw.api.schemas.answer_parts import (
    FLAG,
    LINKS,
    METADATA,
    NULL,
    NUMBER,
    TEXT,
    TEXT_OR_NULL,
    TIME,
    AnswerOf,
    always,
    exactly,
    one,
    page,
    summary,
)
from backupfw.api.versions import ApiVersion

_ATTACHMENT = exactly(
    {
        "id": types.UUID,
        "attachment_id": types.UUID,
        "volume_id": types.UUID,
        "server_id": types.UUID_OR_NULL,
        "host_name": TEXT_OR_NULL,
        "device": TEXT_OR_NULL,
        "attached_at": TIME,
    }
)
_VOLUME: Mapping[str, Any] = {
    "id": types.UUID,
    "name": TEXT_OR_NULL,
    "links": LINKS,
    "status": TEXT,
    "size": NUMBER,
    "availability_zone": TEXT_OR_NULL,
    "created_at": TIME,
    "updated_at": TIME,
    "attachments": {"type": "array", "items": _ATTACHMENT},
    "description": TEXT_OR_NULL,
    "volume_type": TEXT_OR_NULL,
    "snapshot_id": types.UUID_OR_NULL,
    "source_volid": types.UUID_OR_NULL,
    "metadata": METADATA,
    "user_id": TEXT,
    "bootable": {"enum": ["true", "false"]},
    "encrypted": FLAG,
    "multiattach": FLAG,
    "replication_status": NULL,
    "consistencygroup_id": NULL,
}


def _volume(version: ApiVersion, *, shown: bool, late: bool = True) -> dict[str, Any]:
    """Return the schema of a volume in an answer.

    :param shown: whether the answer shows it; else it was made or changed.
    :param late: whether the answer has the newer keys.
    """
    fields = dict(_VOLUME)
    to_administrators: dict[str, Any] = {"migration_status": NULL}
    if shown:
        fields["os-vol-tenant-attr:tenant_id"] = TEXT
        to_administrators["os-vol-host-attr:host"] = TEXT
        to_administrators["os-vol-mig-status-attr:migstat"] = NULL
        to_administrators["os-vol-mig-status-attr:name_id"] = NULL
    if version >= versions.VOLUME_GROUP:
        fields["group_id"] = NULL
    if version >= versions.VOLUME_PROVIDER_ID:
        to_administrators["provider_id"] = NULL
    if version >= versions.VOLUME_SHARED_TARGETS:
        fields |= {"shared_targets": FLAG, "service_uuid": NULL}
    if late and version >= versions.VOLUME_CLUSTER_NAME:
        to_administrators["cluster_name"] = NULL
    if late and version >= versions.VOLUME_TYPE_ID:
        fields["volume_type_id"] = types.UUID_OR_NULL
    if late and version >= versions.CONSUMES_QUOTA:
        fields["consumes_quota"] = FLAG
    # If the volume has image metadata and the policy allows the caller to see it.
    sometimes = {"volume_image_metadata": METADATA} if shown else {}
    return types.record({**fields, **to_administrators, **sometimes}, required=list(fields))


def _made(version: ApiVersion) -> dict[str, Any]:
    return _volume(version, shown=False)


def _updated(version: ApiVersion) -> dict[str, Any]:
    return _volume(version, shown=False, late=False)


def _shown(version: ApiVersion) -> dict[str, Any]:
    return _volume(version, shown=True)


def _totals(version: ApiVersion) -> dict[str, Any]:
    fields: dict[str, Any] = {"total_count": NUMBER, "total_size": NUMBER}
    if version >= versions.VOLUME_SUMMARY_METADATA:
        fields["metadata"] = {
            "type": "object",
            "additionalProperties": {"type": "array", "items": TEXT},
        }
    return exactly(fields)


_SNAPSHOT: Mapping[str, Any] = {
    "id": types.UUID,
    "name": TEXT_OR_NULL,
    "description": TEXT_OR_NULL,
    "volume_id": types.UUID,
    "status": TEXT,
    "size": NUMBER,
    "created_at": TIME,
    "updated_at": TIME,
    "metadata": METADATA,
}


def _snapshot(_version: ApiVersion) -> dict[str, Any]:
    return exactly(dict(_SNAPSHOT))


def _snapshot_shown(version: ApiVersion) -> dict[str, Any]:
    fields = {
        **_SNAPSHOT,
        "os-extended-snapshot-attributes:progress": TEXT,
        "os-extended-snapshot-attributes:project_id": TEXT,
    }
    if version >= versions.SNAPSHOT_GROUP:
        fields["group_snapshot_id"] = NULL
    if version >= versions.SNAPSHOT_USER_ID:
        fields["user_id"] = TEXT
    if version >= versions.CONSUMES_QUOTA:
        fields["consumes_quota"] = FLAG
    return exactly(fields)


#: Part of :data:`backupfw.api.schemas.answers.ANSWERS`.
ANSWERS: Mapping[str, AnswerOf] = {
    "GET /volumes": page("volumes", summary),
    "GET /volumes/detail": page("volumes", _shown),
    "POST /volumes": one("volume", _made),
    "GET /volumes/summary": one("volume-summary", _totals),
    "GET /volumes/{volume_id}": one("volume", _shown),
    "POST /volumes/{volume_id}/action (os-show_image_metadata)": always(exactly({"metadata": METADATA})),
    "POST /volumes/{volume_id}/action (os-set_image_metadata)": always(exactly({"metadata": METADATA})),
    "POST /volumes/{volume_id}/action (os-unset_image_metadata)": always(exactly({})),
    "POST /volumes/{volume_id}/action (os-set_bootable)": always(exactly({})),
    "PUT /volumes/{volume_id}": one("volume", _updated),
    "GET /snapshots": page("snapshots", _snapshot),
    "GET /snapshots/detail": page("snapshots", _snapshot_shown),
    "POST /snapshots": one("snapshot", _snapshot),
    "GET /snapshots/{snapshot_id}": one("snapshot", _snapshot_shown),
    "PUT /snapshots/{snapshot_id}": one("snapshot", _snapshot),
}
