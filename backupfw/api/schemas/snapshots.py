"""Bodies of the snapshot calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

_CREATE_SCHEMA = types.wrapped(
    "snapshot",
    types.record(
        {
            "volume_id": types.UUID,
            "name": types.NAME,
            "display_name": types.NAME,
            "description": types.TEXT_OR_NULL,
            "display_description": types.TEXT_OR_NULL,
            "force": types.BOOLEAN,
            "metadata": types.METADATA_OR_NULL,
        },
        required=["volume_id"],
        extra=True,
    ),
    extra=True,
)
_UPDATE_SCHEMA = types.wrapped(
    "snapshot",
    {
        **types.record(
            {
                "name": types.NAME,
                "display_name": types.NAME,
                "description": types.TEXT_OR_NULL,
                "display_description": types.TEXT_OR_NULL,
            }
        ),
        "minProperties": 1,
    },
)
_RESET_STATUS_SCHEMA = types.wrapped(
    "os-reset_status",
    types.record({"status": {"type": "string", "minLength": 1, "maxLength": 255}}, required=["status"]),
)
_FORCE_DELETE_SCHEMA = types.wrapped("os-force_delete", {})


def create(version: ApiVersion) -> dict[str, Any]:
    """``POST /snapshots``."""
    del version
    return _CREATE_SCHEMA


def update(version: ApiVersion) -> dict[str, Any]:
    """``PUT /snapshots/{id}``."""
    del version
    return _UPDATE_SCHEMA


def reset_status(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-reset_status``."""
    del version
    return _RESET_STATUS_SCHEMA


def force_delete(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-force_delete``: any value."""
    del version
    return _FORCE_DELETE_SCHEMA
