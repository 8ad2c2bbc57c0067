"""Bodies of the backup calls."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types

_CREATE: dict[str, Any] = {
    "volume_id": types.UUID,
    "container": types.TEXT_OR_NULL,
    "description": types.DESCRIPTION,
    "name": types.NAME,
    "incremental": types.BOOLEAN,
    "force": types.BOOLEAN,
    "snapshot_id": types.UUID_OR_NULL,
}
#: ``POST /backups``.
create = types.always(types.wrapped("backup", types.record(_CREATE, required=["volume_id"])))

#: ``POST /backups/{id}/restore``.
restore = types.always(
    types.wrapped("restore", types.record({"volume_id": types.UUID_OR_NULL, "name": types.NAME}))
)

#: ``POST /backups/import_record``.
import_record = types.always(
    types.wrapped(
        "backup-record",
        types.record(
            {
                "backup_service": {"type": "string", "minLength": 0, "maxLength": 255},
                "backup_url": {"type": "string", "minLength": 1, "format": "base64"},
            },
            required=["backup_service", "backup_url"],
        ),
    )
)

#: Action ``os-force_delete``: any value.
force_delete = types.always(types.wrapped("os-force_delete", {}))

#: Action ``os-reset_status``.
reset_status = types.always(
    types.wrapped(
        "os-reset_status",
        types.record({"status": {"type": "string", "format": "backup_status"}}, required=["status"]),
    )
)
