"""Bodies of the backup calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

_CREATE: dict[str, Any] = {
    "volume_id": types.UUID,
    "container": types.TEXT_OR_NULL,
    "description": types.DESCRIPTION,
    "name": types.NAME,
    "incremental": types.BOOLEAN,
    "force": types.BOOLEAN,
    "snapshot_id": types.UUID_OR_NULL,
}
_CREATE_SCHEMA = types.wrapped("backup", types.record(_CREATE, required=["volume_id"]))

_RESTORE_SCHEMA = types.wrapped(
    "restore", types.record({"volume_id": types.UUID_OR_NULL, "name": types.NAME})
)

_IMPORT_SCHEMA = types.wrapped(
    "backup-record",
    types.record(
        {
            "backup_service": {"type": "string", "minLength": 0, "maxLength": 255},
            "backup_url": {"type": "string", "minLength": 1, "format": "base64"},
        },
        required=["backup_service", "backup_url"],
    ),
)

_FORCE_DELETE_SCHEMA = types.wrapped("os-force_delete", {})

_RESET_STATUS_SCHEMA = types.wrapped(
    "os-reset_status",
    types.record({"status": {"type": "string", "format": "backup_status"}}, required=["status"]),
)


def create(version: ApiVersion) -> dict[str, Any]:
    """``POST /backups``."""
    del version
    return _CREATE_SCHEMA


def restore(version: ApiVersion) -> dict[str, Any]:
    """``POST /backups/{id}/restore``."""
    del version
    return _RESTORE_SCHEMA


def import_record(version: ApiVersion) -> dict[str, Any]:
    """``POST /backups/import_record``."""
    del version
    return _IMPORT_SCHEMA


def force_delete(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-force_delete``: any value."""
    del version
    return _FORCE_DELETE_SCHEMA


def reset_status(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-reset_status``."""
    del version
    return _RESET_STATUS_SCHEMA
