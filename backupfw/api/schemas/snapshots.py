"""Bodies of the snapshot calls."""

from __future__ import annotations

from backupfw.api.schemas import types

#: ``POST /snapshots``.
create = types.always(
    types.wrapped(
        "snapshot",
        types.record(
            {
                # Null names no volume: 404.
                "volume_id": types.UUID_OR_NULL,
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
)
#: ``PUT /snapshots/{id}``.
update = types.always(
    types.wrapped(
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
)
#: Action ``os-reset_status``.
reset_status = types.always(
    types.wrapped(
        "os-reset_status",
        types.record({"status": {"type": "string", "minLength": 1, "maxLength": 255}}, required=["status"]),
    )
)
#: Action ``os-force_delete``: any value.
force_delete = types.always(types.wrapped("os-force_delete", {}))
#: Action ``os-update_snapshot_status``.
update_status = types.always(
    types.wrapped(
        "os-update_snapshot_status",
        types.record(
            {
                "status": {"type": "string", "minLength": 1, "maxLength": 255},
                "progress": {"type": ["string", "null"], "pattern": r"^(?:100|[0-9]{1,2})%?\Z"},
            },
            required=["status"],
        ),
    )
)
