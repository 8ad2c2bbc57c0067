"""Bodies of answers, for the description of the API: method and path behind the project -> schema.

The table has every answer with a body, with all keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from backupfw.api import versions
from backupfw.api.schemas import backup_policies, types, volume_answers
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

#: Any refusal has one key, by status.  A 401 of keystonemiddleware has a title, too.
FAULT: dict[str, Any] = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": types.record(
        {"code": NUMBER, "message": TEXT, "title": TEXT, "retryAfter": TEXT}, required=["code", "message"]
    ),
}


def _backup(version: ApiVersion) -> dict[str, Any]:
    always = {
        "id": types.UUID,
        "name": TEXT_OR_NULL,
        "links": LINKS,
        "status": TEXT,
        "size": NUMBER,
        "object_count": NUMBER,
        "availability_zone": TEXT_OR_NULL,
        "container": TEXT_OR_NULL,
        "created_at": TIME,
        "updated_at": TIME,
        "description": TEXT_OR_NULL,
        "fail_reason": TEXT_OR_NULL,
        "volume_id": types.UUID,
        "is_incremental": FLAG,
        "has_dependent_backups": FLAG,
        "snapshot_id": types.UUID_OR_NULL,
        "data_timestamp": TIME,
    }
    by_policy: dict[str, Any] = {}
    if version >= versions.BACKUP_PROJECT:
        by_policy["os-backup-project-attr:project_id"] = TEXT
    if version >= versions.BACKUP_METADATA:
        always["metadata"] = METADATA
    if version >= versions.BACKUP_USER_ID:
        by_policy["user_id"] = TEXT
    if version >= versions.ENCRYPTION_KEY_ID:
        by_policy["encryption_key_id"] = TEXT
    return types.record({**always, **by_policy}, required=list(always))


def _service(version: ApiVersion) -> dict[str, Any]:
    fields = {
        "binary": TEXT,
        "host": TEXT,
        "zone": TEXT,
        "status": {"enum": ["enabled", "disabled"]},
        "state": {"enum": ["up", "down"]},
        "updated_at": TIME,
        "disabled_reason": TEXT_OR_NULL,
        "frozen": FLAG,
    }
    if version >= versions.SERVICE_CLUSTER:
        fields["cluster"] = NULL
    return exactly(fields)


def _services(version: ApiVersion) -> dict[str, Any]:
    return exactly({"services": _list(_service(version))})


def _list(inner: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": inner}


def _message(_version: ApiVersion) -> dict[str, Any]:
    texts = ("event_id", "user_message", "message_level", "resource_type", "request_id")
    return exactly(
        {
            "id": types.UUID,
            **dict.fromkeys(texts, TEXT),
            "resource_uuid": TEXT_OR_NULL,
            "created_at": TIME,
            "guaranteed_until": TIME,
            "links": LINKS,
        }
    )


def _limits(fields: dict[str, Any], each: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of limits; one for volumes of a type, or of our own, is there if it is set."""
    if_set = {"^(volumes|snapshots|gigabytes)_|^backup_policies$": each}
    return {**exactly({**fields, **dict.fromkeys(_RESOURCES, each)}), "patternProperties": if_set}


_LIMITS = _limits({}, NUMBER)
_USAGE = exactly({"limit": NUMBER, "in_use": NUMBER, "reserved": NUMBER})
_NAMED_LIMITS = _limits({"id": TEXT}, NUMBER)
_NAMED_USAGE = _limits({"id": TEXT}, _USAGE)
_RESTORE = exactly({"backup_id": types.UUID, "volume_id": types.UUID, "volume_name": TEXT})
_RECORD = exactly({"backup_service": TEXT, "backup_url": TEXT})
_PROGRESS = exactly(
    {
        "phase": TEXT,
        "bytes_done": {"type": ["integer", "null"]},
        "bytes_total": {"type": ["integer", "null"]},
        "bytes_per_second": {"type": ["integer", "null"]},
        "seconds_left": {"type": ["integer", "null"]},
        "waits_until": TEXT_OR_NULL,
        "comparison": TEXT_OR_NULL,
    }
)
_COPY = exactly(
    {
        **dict.fromkeys(("store", "container", "status", "created_at"), TEXT),
        **dict.fromkeys(("fail_reason", "updated_at"), TEXT_OR_NULL),
    }
)
_SWITCHED = {"host": TEXT, "service": TEXT, "binary": TEXT, "disabled": FLAG, "status": TEXT}
_SWITCHED_WITH_REASON = exactly({**_SWITCHED, "disabled_reason": TEXT_OR_NULL})
_HOST = exactly(
    {
        **dict.fromkeys(("host_name", "service", "zone"), TEXT),
        "service-status": {"enum": ["available", "unavailable"]},
        "service-state": {"enum": ["enabled", "disabled"]},
        "last-update": TIME,
    }
)
_HOST_USAGE = exactly(
    dict.fromkeys(
        ("host", "project", "volume_count", "total_volume_gb", "snapshot_count", "total_snapshot_gb"), TEXT
    )
)
_ZONE = exactly({"zoneName": TEXT, "zoneState": exactly({"available": FLAG})})
_TYPE_FIELDS: dict[str, Any] = {
    "id": types.UUID,
    "name": TEXT,
    "description": TEXT_OR_NULL,
    "is_public": FLAG,
    "os-volume-type-access:is_public": FLAG,
    "extra_specs": METADATA,
}
_TYPE = exactly({**_TYPE_FIELDS, "qos_specs_id": NULL})
_TYPE_CHANGED = always(
    exactly(
        {
            "volume_type": exactly(
                {key: value for key, value in _TYPE_FIELDS.items() if not key.startswith("os-")}
            )
        }
    )
)
_TYPE_MADE = always(exactly({"volume_type": exactly(_TYPE_FIELDS)}))
_EXTRA_SPECS = always(exactly({"extra_specs": METADATA}))
_EXTRA_SPEC = {"type": "object", "additionalProperties": TEXT, "minProperties": 1, "maxProperties": 1}
_DEFAULT_TYPE = exactly({"project_id": TEXT, "volume_type_id": types.UUID})
_EXTENSION = exactly({"alias": TEXT, "name": TEXT, "description": TEXT, "updated": TEXT, "links": LINKS})
_FILTERS = exactly({"resource": TEXT, "filters": _list(TEXT)})
_ITEM = exactly({"meta": {"type": "object", "additionalProperties": TEXT, "maxProperties": 1}})


_TRANSFER: dict[str, Any] = {"id": types.UUID, "name": TEXT_OR_NULL, "volume_id": types.UUID, "links": LINKS}


def _transfer_fields(version: ApiVersion) -> dict[str, Any]:
    fields: dict[str, Any] = {**_TRANSFER, "created_at": TIME}
    if version >= versions.TRANSFERS:
        fields["no_snapshots"] = FLAG
    if version >= versions.TRANSFER_PROJECTS:
        fields |= {"source_project_id": TEXT, "destination_project_id": NULL, "accepted": FLAG}
    return fields


def _transfer(version: ApiVersion) -> dict[str, Any]:
    return exactly(_transfer_fields(version))


def _transfer_made(version: ApiVersion) -> dict[str, Any]:
    return exactly({**_transfer_fields(version), "auth_key": TEXT})


def _types(version: ApiVersion) -> dict[str, Any]:
    fields: dict[str, Any] = {"volume_types": _list(_TYPE), "volume_type_links": LINKS}
    if version >= versions.COUNT_INFO:
        fields["count"] = NUMBER
    return types.record(fields, required=["volume_types"])


def _metadata(collection: str, name: str) -> dict[str, AnswerOf]:
    whole = f"/{collection}/{{{name}}}/metadata"
    all_of_it = always(exactly({"metadata": METADATA}))
    return {
        f"GET {whole}": all_of_it,
        f"POST {whole}": all_of_it,
        f"PUT {whole}": all_of_it,
        f"GET {whole}/{{key}}": always(_ITEM),
        f"PUT {whole}/{{key}}": always(_ITEM),
    }


#: ``METHOD path`` -> schema of the successful answer.
ANSWERS: Mapping[str, AnswerOf] = {
    **{
        line: answer
        for path in ("/os-volume-transfer", "/volume-transfers")
        for line, answer in (
            (f"GET {path}", page("transfers", always(exactly(_TRANSFER)))),
            (f"GET {path}/detail", page("transfers", _transfer)),
            (f"POST {path}", one("transfer", _transfer_made)),
            (f"GET {path}/{{transfer_id}}", one("transfer", _transfer)),
            (f"POST {path}/{{transfer_id}}/accept", one("transfer", always(exactly(_TRANSFER)))),
        )
    },
    "GET /backups": page("backups", summary),
    "GET /backups/detail": page("backups", _backup),
    "POST /backups": one("backup", summary),
    "GET /backups/{backup_id}": one("backup", _backup),
    "PUT /backups/{backup_id}": one("backup", summary),
    "POST /backups/{backup_id}/restore": always(exactly({"restore": _RESTORE})),
    "GET /backups/{backup_id}/export_record": always(exactly({"backup-record": _RECORD})),
    "POST /backups/import_record": one("backup", summary),
    "POST /backups/{backup_id}/import_record": one("backup", summary),
    **_metadata("backups", "backup_id"),
    **_metadata("volumes", "volume_id"),
    **_metadata("snapshots", "snapshot_id"),
    **volume_answers.ANSWERS,
    **backup_policies.ANSWERS,
    "GET /backups/{backup_id}/progress": always(exactly({"progress": _PROGRESS})),
    "GET /backups/{backup_id}/copies": always(exactly({"copies": _list(_COPY)})),
    "GET /os-services": _services,
    "PUT /os-services/enable": always(_SWITCHED_WITH_REASON),
    "PUT /os-services/disable": always(exactly(_SWITCHED)),
    "PUT /os-services/disable-log-reason": always(_SWITCHED_WITH_REASON),
    "GET /os-hosts": always(exactly({"hosts": _list(_HOST)})),
    "GET /os-hosts/{host}": always(exactly({"host": _list(exactly({"resource": _HOST_USAGE}))})),
    "GET /os-availability-zone": always(exactly({"availabilityZoneInfo": _list(_ZONE)})),
    "GET /types": _types,
    "POST /types": _TYPE_MADE,
    "GET /types/{type_id}": always(exactly({"volume_type": _TYPE})),
    "PUT /types/{type_id}": _TYPE_CHANGED,
    "GET /types/{type_id}/extra_specs": _EXTRA_SPECS,
    "POST /types/{type_id}/extra_specs": _EXTRA_SPECS,
    "GET /types/{type_id}/extra_specs/{key}": always(_EXTRA_SPEC),
    "PUT /types/{type_id}/extra_specs/{key}": always(_EXTRA_SPEC),
    "GET /types/{type_id}/os-volume-type-access": always(
        exactly({"volume_type_access": _list(_DEFAULT_TYPE)})
    ),
    "GET /types/{type_id}/encryption": always(exactly({})),
    "GET /default-types": always(exactly({"default_types": _list(_DEFAULT_TYPE)})),
    "GET /default-types/{target}": always(exactly({"default_type": _DEFAULT_TYPE})),
    "PUT /default-types/{target}": always(exactly({"default_type": _DEFAULT_TYPE})),
    "GET /qos-specs": always(exactly({"qos_specs": {"type": "array", "maxItems": 0}})),
    "GET /extensions": always(exactly({"extensions": _list(_EXTENSION)})),
    "GET /extensions/{alias}": always(exactly({"extension": _EXTENSION})),
    **{
        f"GET /{path}{detail}": always(exactly({key: {"type": "array", "maxItems": 0}}))
        for path, key in (
            ("groups", "groups"),
            ("group_snapshots", "group_snapshots"),
        )
        for detail in ("", "/detail")
    },
    "GET /resource_filters": always(exactly({"resource_filters": _list(_FILTERS)})),
    "GET /limits": always(
        exactly(
            {
                "limits": exactly(
                    {"rate": {"type": "array"}, "absolute": exactly(dict.fromkeys(_ABSOLUTE, NUMBER))}
                )
            }
        )
    ),
    "GET /os-quota-sets/{target}": always(exactly({"quota_set": {"anyOf": [_NAMED_LIMITS, _NAMED_USAGE]}})),
    "PUT /os-quota-sets/{target}": always(exactly({"quota_set": _LIMITS})),
    "GET /os-quota-sets/{target}/defaults": always(exactly({"quota_set": _NAMED_LIMITS})),
    "GET /os-quota-class-sets/{name}": always(exactly({"quota_class_set": _NAMED_LIMITS})),
    "PUT /os-quota-class-sets/{name}": always(exactly({"quota_class_set": _LIMITS})),
    "GET /messages": page("messages", _message),
    "GET /messages/{message_id}": one("message", _message),
}
