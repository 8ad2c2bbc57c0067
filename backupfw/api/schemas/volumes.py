"""Bodies of the volume calls.  Unknown keys of a volume are ignored: clients send many."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

#: The longest digit string that a size can be: more is refused before it is made a number.
_DIGITS = {"type": "string", "pattern": r"^[0-9]{1,10}\Z"}
_SIZE = {"anyOf": [{"type": "integer"}, _DIGITS, {"type": "null"}]}

_CREATE_SCHEMA = types.wrapped(
    "volume",
    types.record(
        {
            "size": _SIZE,
            "name": types.NAME,
            "display_name": types.NAME,
            "description": types.TEXT_OR_NULL,
            "display_description": types.TEXT_OR_NULL,
            "metadata": types.METADATA_OR_NULL,
            "snapshot_id": types.UUID_OR_NULL,
            "source_volid": types.UUID_OR_NULL,
            "volume_type": types.TEXT_OR_NULL,
            "availability_zone": types.TEXT_OR_NULL,
            "imageRef": types.TEXT_OR_NULL,
            "consistencygroup_id": types.UUID_OR_NULL,
            "multiattach": {"anyOf": [types.BOOLEAN, {"type": "null"}]},
        },
        extra=True,
    ),
    extra=True,
)

_UPDATE_SCHEMA = types.wrapped(
    "volume",
    {
        **types.record(
            {
                "name": types.NAME,
                "display_name": types.NAME,
                "description": types.TEXT_OR_NULL,
                "display_description": types.TEXT_OR_NULL,
                "metadata": types.METADATA_OR_NULL,
            }
        ),
        "minProperties": 1,
    },
)

_ATTACH_SCHEMA = types.wrapped(
    "os-attach",
    types.record(
        {
            "instance_uuid": types.UUID_OR_NULL,
            "mountpoint": {"type": "string", "minLength": 1, "maxLength": 255},
            "host_name": {"type": ["string", "null"], "maxLength": 255},
            "mode": {"enum": ["rw", "ro"]},
        },
        required=["mountpoint"],
    ),
)
_DETACH_SCHEMA = types.wrapped(
    "os-detach",
    {**types.record({"attachment_id": types.UUID_OR_NULL}), "type": ["object", "null"]},
)
_EXTEND_SCHEMA = types.wrapped(
    "os-extend",
    types.record({"new_size": {"anyOf": [{"type": "integer"}, _DIGITS]}}, required=["new_size"]),
)
_RESET_STATUS_SCHEMA = types.wrapped(
    "os-reset_status",
    {
        **types.record(
            {
                "status": {"type": ["string", "null"], "maxLength": 255},
                "attach_status": {"type": ["string", "null"], "maxLength": 255},
                "migration_status": {"type": ["string", "null"], "maxLength": 255},
            }
        ),
        "minProperties": 1,
    },
)
_FORCE_DELETE_SCHEMA = types.wrapped("os-force_delete", {})


def create(version: ApiVersion) -> dict[str, Any]:
    """``POST /volumes``."""
    del version
    return _CREATE_SCHEMA


def update(version: ApiVersion) -> dict[str, Any]:
    """``PUT /volumes/{id}``."""
    del version
    return _UPDATE_SCHEMA


def attach(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-attach``."""
    del version
    return _ATTACH_SCHEMA


def detach(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-detach``."""
    del version
    return _DETACH_SCHEMA


def extend(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-extend``."""
    del version
    return _EXTEND_SCHEMA


def reset_status(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-reset_status``."""
    del version
    return _RESET_STATUS_SCHEMA


def force_delete(version: ApiVersion) -> dict[str, Any]:
    """Action ``os-force_delete``: any value."""
    del version
    return _FORCE_DELETE_SCHEMA
