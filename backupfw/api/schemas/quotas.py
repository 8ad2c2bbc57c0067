"""Bodies of the quota calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

#: Limits are -1 (none) or a number; strings of digits are what some command lines send.
_LIMIT = {
    "anyOf": [
        {"type": "integer", "minimum": -1, "maximum": 2147483647},
        {"type": "string", "pattern": r"^(?:-1|[0-9]{1,9})\Z"},
    ]
}


def _limits(key: str) -> dict[str, Any]:
    return types.wrapped(
        key,
        {
            "type": "object",
            "properties": {
                "tenant_id": {"type": "string", "maxLength": 255},
                "force": {},
                "skip_validation": {},
                "class_name": {"type": "string", "maxLength": 255},
                "id": {"type": "string", "maxLength": 255},
            },
            # Which resources there are is the manager's to say.
            "additionalProperties": _LIMIT,
            "minProperties": 1,
        },
        extra=True,
    )


_QUOTA_SET = _limits("quota_set")
_QUOTA_CLASS_SET = _limits("quota_class_set")


def quota_set(version: ApiVersion) -> dict[str, Any]:
    """``PUT /os-quota-sets/{project}``."""
    del version
    return _QUOTA_SET


def quota_class_set(version: ApiVersion) -> dict[str, Any]:
    """``PUT /os-quota-class-sets/{name}``."""
    del version
    return _QUOTA_CLASS_SET
