"""Bodies of the backup calls."""

from __future__ import annotations

from typing import Any

from backupfw.api import versions
from backupfw.api.schemas import types
from backupfw.api.versions import V2

_CREATE: dict[str, Any] = {
    "volume_id": types.UUID,
    "container": types.TEXT_OR_NULL,
    "description": types.DESCRIPTION,
    "name": types.NAME,
    "incremental": types.BOOLEAN,
    "force": types.BOOLEAN,
    "snapshot_id": types.UUID_OR_NULL,
}


def _create(fields: dict[str, Any]) -> dict[str, Any]:
    return types.wrapped("backup", types.record(fields, required=["volume_id"]))


_CREATE_METADATA = {**_CREATE, "metadata": types.METADATA_OR_NULL}
#: ``POST /backups``.
create = types.by_version(
    (V2, _create(_CREATE)),
    (versions.BACKUP_METADATA, _create(_CREATE_METADATA)),
    (versions.BACKUP_AZ, _create({**_CREATE_METADATA, "availability_zone": types.TEXT_OR_NULL})),
)

_UPDATE: dict[str, Any] = {"name": types.NAME, "description": types.DESCRIPTION}
#: ``PUT /backups/{id}``.
update = types.by_version(
    (versions.BACKUP_UPDATE, types.wrapped("backup", types.record(_UPDATE))),
    (
        versions.BACKUP_METADATA,
        types.wrapped("backup", types.record({**_UPDATE, "metadata": types.METADATA})),
    ),
)

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

#: Action ``os-backupfw-cancel``.
cancel = types.always(
    types.wrapped("os-backupfw-cancel", types.record({"verification": {"type": "boolean"}}))
)

#: Action ``os-backupfw-verify``: an empty object, as an addition of this service may take more one day.
verify = types.always(types.wrapped("os-backupfw-verify", types.record({})))

_STORE = types.record({"store": {"type": "string", "minLength": 1, "maxLength": 255}}, required=["store"])

#: Action ``os-backupfw-copy``.
copy = types.always(types.wrapped("os-backupfw-copy", _STORE))

#: Action ``os-backupfw-remove_copy``.
remove_copy = types.always(types.wrapped("os-backupfw-remove_copy", _STORE))

#: Action ``os-reset_status``.
reset_status = types.always(
    types.wrapped(
        "os-reset_status",
        types.record({"status": {"type": "string", "format": "backup_status"}}, required=["status"]),
    )
)
