"""Bodies of the service calls."""

from __future__ import annotations

from backupfw.api.schemas import types

_NAME = {"type": "string", "minLength": 1, "maxLength": 255}
_REASON = {"type": "string", "minLength": 1, "maxLength": 255, "format": "printable"}

#: ``PUT /os-services/enable`` and ``/disable``.
choice = types.always(
    types.record(
        {"host": _NAME, "binary": _NAME, "disabled_reason": {"type": ["string", "null"]}},
        required=["host", "binary"],
    )
)
#: ``PUT /os-services/freeze`` and ``/thaw``.
host = types.always(types.record({"host": _NAME}, required=["host"]))
#: ``PUT /os-services/disable-log-reason``.
with_reason = types.always(
    types.record(
        {"host": _NAME, "binary": _NAME, "disabled_reason": _REASON},
        required=["host", "binary", "disabled_reason"],
    )
)
