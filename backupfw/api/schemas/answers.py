"""Bodies of answers, for the description of the API: method and path behind the project -> schema.

Keys that clients and suites check are all named; what is not in the table is described as an object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from backupfw.api import microversions
from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

AnswerOf = Callable[[ApiVersion], dict[str, Any]]

_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}
_NUMBER = {"type": "integer"}
_TIME = {"type": ["string", "null"], "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$"}
_FLAG = {"type": "boolean"}
_LINKS = {
    "type": "array",
    "items": types.record(
        {"href": {"type": "string", "format": "uri"}, "rel": _TEXT}, required=["href", "rel"]
    ),
}
_METADATA = {"type": "object", "additionalProperties": _TEXT}

_RESOURCES = (
    "volumes",
    "snapshots",
    "gigabytes",
    "backups",
    "backup_gigabytes",
    "per_volume_gigabytes",
    "groups",
)
_ABSOLUTE = (
    "maxTotalVolumes",
    "maxTotalSnapshots",
    "maxTotalVolumeGigabytes",
    "maxTotalBackups",
    "maxTotalBackupGigabytes",
    "totalVolumesUsed",
    "totalSnapshotsUsed",
    "totalGigabytesUsed",
    "totalBackupsUsed",
    "totalBackupGigabytesUsed",
)

#: Any refusal: one key for its kind.  The identity service's 401 has a title as well.
FAULT: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": types.record(
        {"code": _NUMBER, "message": _TEXT, "title": _TEXT, "retryAfter": _TEXT}, required=["code", "message"]
    ),
}


def _exactly(fields: dict[str, Any]) -> dict[str, Any]:
    """An object with all of these keys and no others."""
    return types.record(fields, required=list(fields))


def _backup_summary(_version: ApiVersion) -> dict[str, Any]:
    return _exactly({"id": types.UUID, "name": _TEXT_OR_NULL, "links": _LINKS})


def _backup(version: ApiVersion) -> dict[str, Any]:
    always = {
        "id": types.UUID,
        "name": _TEXT_OR_NULL,
        "links": _LINKS,
        "status": _TEXT,
        "size": _NUMBER,
        "object_count": _NUMBER,
        "availability_zone": _TEXT_OR_NULL,
        "container": _TEXT_OR_NULL,
        "created_at": _TIME,
        "updated_at": _TIME,
        "description": _TEXT_OR_NULL,
        "fail_reason": _TEXT_OR_NULL,
        "volume_id": types.UUID,
        "is_incremental": _FLAG,
        "has_dependent_backups": _FLAG,
        "snapshot_id": types.UUID_OR_NULL,
        "data_timestamp": _TIME,
    }
    by_policy: dict[str, Any] = {}
    if version >= microversions.BACKUP_PROJECT:
        by_policy["os-backup-project-attr:project_id"] = _TEXT
    if version >= microversions.BACKUP_METADATA:
        always["metadata"] = _METADATA
    if version >= microversions.BACKUP_USER_ID:
        by_policy["user_id"] = _TEXT
    if version >= microversions.ENCRYPTION_KEY_ID:
        by_policy["encryption_key_id"] = _TEXT
    return types.record({**always, **by_policy}, required=list(always))


def _one(key: str, inner: AnswerOf) -> AnswerOf:
    return lambda version: _exactly({key: inner(version)})


def _page(key: str, inner: AnswerOf) -> AnswerOf:
    def schema(version: ApiVersion) -> dict[str, Any]:
        fields: dict[str, Any] = {key: {"type": "array", "items": inner(version)}, f"{key}_links": _LINKS}
        if version >= microversions.COUNT_INFO:
            fields["count"] = _NUMBER
        return types.record(fields, required=[key])

    return schema


def _always(schema: dict[str, Any]) -> AnswerOf:
    return lambda _version: schema


def _message(_version: ApiVersion) -> dict[str, Any]:
    texts = ("event_id", "user_message", "message_level", "resource_type", "request_id")
    return _exactly(
        {
            "id": types.UUID,
            **dict.fromkeys(texts, _TEXT),
            "resource_uuid": _TEXT_OR_NULL,
            "created_at": _TIME,
            "guaranteed_until": _TIME,
            "links": _LINKS,
        }
    )


_LIMITS = _exactly(dict.fromkeys(_RESOURCES, _NUMBER))
_USAGE = _exactly({"limit": _NUMBER, "in_use": _NUMBER, "reserved": _NUMBER})
_NAMED_LIMITS = _exactly({"id": _TEXT, **dict.fromkeys(_RESOURCES, _NUMBER)})
_NAMED_USAGE = _exactly({"id": _TEXT, **dict.fromkeys(_RESOURCES, _USAGE)})
_RESTORE = _exactly({"backup_id": types.UUID, "volume_id": types.UUID, "volume_name": _TEXT})
_RECORD = _exactly({"backup_service": _TEXT, "backup_url": _TEXT})
_ITEM = _exactly({"meta": {"type": "object", "additionalProperties": _TEXT, "maxProperties": 1}})


def _metadata(collection: str, name: str) -> dict[str, AnswerOf]:
    whole = f"/{collection}/{{{name}}}/metadata"
    all_of_it = _always(_exactly({"metadata": _METADATA}))
    return {
        f"GET {whole}": all_of_it,
        f"POST {whole}": all_of_it,
        f"PUT {whole}": all_of_it,
        f"GET {whole}/{{key}}": _always(_ITEM),
        f"PUT {whole}/{{key}}": _always(_ITEM),
    }


#: ``METHOD path`` -> schema of the answer when all went well.
ANSWERS: Mapping[str, AnswerOf] = {
    "GET /backups": _page("backups", _backup_summary),
    "GET /backups/detail": _page("backups", _backup),
    "POST /backups": _one("backup", _backup_summary),
    "GET /backups/{backup_id}": _one("backup", _backup),
    "PUT /backups/{backup_id}": _one("backup", _backup_summary),
    "POST /backups/{backup_id}/restore": _always(_exactly({"restore": _RESTORE})),
    "GET /backups/{backup_id}/export_record": _always(_exactly({"backup-record": _RECORD})),
    "POST /backups/import_record": _one("backup", _backup_summary),
    "POST /backups/{backup_id}/import_record": _one("backup", _backup_summary),
    **_metadata("backups", "backup_id"),
    **_metadata("volumes", "id"),
    **_metadata("snapshots", "id"),
    "GET /limits": _always(
        _exactly(
            {
                "limits": _exactly(
                    {"rate": {"type": "array"}, "absolute": _exactly(dict.fromkeys(_ABSOLUTE, _NUMBER))}
                )
            }
        )
    ),
    "GET /os-quota-sets/{target}": _always(_exactly({"quota_set": {"anyOf": [_NAMED_LIMITS, _NAMED_USAGE]}})),
    "PUT /os-quota-sets/{target}": _always(_exactly({"quota_set": _LIMITS})),
    "GET /os-quota-sets/{target}/defaults": _always(_exactly({"quota_set": _NAMED_LIMITS})),
    "GET /os-quota-class-sets/{name}": _always(_exactly({"quota_class_set": _NAMED_LIMITS})),
    "PUT /os-quota-class-sets/{name}": _always(_exactly({"quota_class_set": _LIMITS})),
    "GET /messages": _page("messages", _message),
    "GET /messages/{message_id}": _one("message", _message),
}
