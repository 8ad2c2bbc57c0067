"""Bodies of the calls about transfers."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types

_CREATE: dict[str, Any] = {"volume_id": types.UUID, "name": types.NAME}


def _create(fields: dict[str, Any]) -> types.SchemaOf:
    return types.always(types.wrapped("transfer", types.record(fields, required=["volume_id"])))


#: ``POST /os-volume-transfer``.
create = _create(_CREATE)
#: ``POST /volume-transfers``.
create_with_snapshots = _create({**_CREATE, "no_snapshots": types.BOOLEAN})
#: ``POST …/{id}/accept``.
accept = types.always(
    types.wrapped(
        "accept",
        types.record(
            {"auth_key": {"type": "string", "minLength": 1, "maxLength": 255}}, required=["auth_key"]
        ),
    )
)
