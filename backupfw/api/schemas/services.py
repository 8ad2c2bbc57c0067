"""Bodies of the service calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types

_NAME = {"type": "string", "minLength": 1, "maxLength": 255}
_REASON = {"type": "string", "minLength": 1, "maxLength": 255, "format": "printable"}
#: The keys that choose a service.  There are no clusters; ``service`` is an older name of ``binary``.
_CHOICE: dict[str, Any] = {"host": _NAME, "binary": _NAME, "service": _NAME, "cluster": {"type": "null"}}


def _choice(more: dict[str, Any], required: list[str]) -> dict[str, Any]:
    return {
        **types.record({**_CHOICE, **more}, required=["host", *required]),
        "anyOf": [{"required": ["binary"]}, {"required": ["service"]}],
    }


#: ``PUT /os-services/enable`` and ``/disable``.
choice = types.always(_choice({"disabled_reason": {"type": ["string", "null"], "maxLength": 255}}, []))
#: ``PUT /os-services/freeze`` and ``/thaw``.
host = types.always(types.record({"host": _NAME, "cluster": {"type": "null"}}, required=["host"]))
#: ``PUT /os-services/disable-log-reason``.
with_reason = types.always(_choice({"disabled_reason": _REASON}, ["disabled_reason"]))
