"""Bodies of the service calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

_NAME = {"type": "string", "minLength": 1, "maxLength": 255}
_REASON = {"type": "string", "minLength": 1, "maxLength": 255, "format": "printable"}

_CHOICE_SCHEMA = types.record(
    {"host": _NAME, "binary": _NAME, "disabled_reason": {"type": ["string", "null"]}},
    required=["host", "binary"],
)
_REASON_SCHEMA = types.record(
    {"host": _NAME, "binary": _NAME, "disabled_reason": _REASON},
    required=["host", "binary", "disabled_reason"],
)


def choice(version: ApiVersion) -> dict[str, Any]:
    """``PUT /os-services/enable`` and ``/disable``."""
    del version
    return _CHOICE_SCHEMA


def with_reason(version: ApiVersion) -> dict[str, Any]:
    """``PUT /os-services/disable-log-reason``."""
    del version
    return _REASON_SCHEMA
