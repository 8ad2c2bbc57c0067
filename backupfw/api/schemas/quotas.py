"""Bodies of the quota calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types

#: Limits are -1 (no limit) or a number; some clients send digits as text.
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
                "force": {"anyOf": [types.BOOLEAN, {"type": "null"}]},
                "skip_validation": {},
                "class_name": {"type": "string", "maxLength": 255},
                "id": {"type": "string", "maxLength": 255},
            },
            # The manager knows which resources there are.
            "additionalProperties": _LIMIT,
            "minProperties": 1,
        },
        extra=True,
    )


#: ``PUT /os-quota-sets/{project}``.
quota_set = types.always(_limits("quota_set"))
#: ``PUT /os-quota-class-sets/{name}``.
quota_class_set = types.always(_limits("quota_class_set"))
