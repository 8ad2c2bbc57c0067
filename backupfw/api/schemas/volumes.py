"""Bodies of the volume calls.  Unknown keys of a volume are ignored: clients send many."""

from __future__ import annotations

from typing import Any

from backupfw.api import versions
from backupfw.api.schemas import types
from backupfw.api.versions import V2

#: GiB, as a number or as digits; the pattern limits how many.
_SIZE = {"type": ["integer", "string"], "minimum": 1, "pattern": r"^[0-9]{1,10}\Z"}
_SIZE_OR_NULL = {**_SIZE, "type": ["integer", "string", "null"]}

_CREATE = {
    "size": _SIZE_OR_NULL,
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
}


def _create(fields: dict[str, Any]) -> dict[str, Any]:
    return types.wrapped("volume", types.record(fields, extra=True), extra=True)


_CREATE_IN_GROUP = {**_CREATE, "group_id": types.UUID_OR_NULL}
#: ``POST /volumes``.
create = types.by_version(
    (V2, _create(_CREATE)),
    (versions.VOLUME_GROUP, _create(_CREATE_IN_GROUP)),
    (
        versions.VOLUME_FROM_BACKUP,
        _create({**_CREATE_IN_GROUP, "backup_id": types.UUID_OR_NULL}),
    ),
)

#: ``PUT /volumes/{id}``.
update = types.always(
    types.wrapped(
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
)

#: Action ``os-attach``.
attach = types.always(
    types.wrapped(
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
)
#: Action ``os-detach``.
detach = types.always(
    types.wrapped(
        "os-detach",
        {**types.record({"attachment_id": types.UUID_OR_NULL}), "type": ["object", "null"]},
    )
)
#: Action ``os-extend``.
extend = types.always(
    types.wrapped(
        "os-extend",
        types.record({"new_size": _SIZE}, required=["new_size"]),
    )
)
#: Action ``os-reset_status``.
reset_status = types.always(
    types.wrapped(
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
)
#: Action ``os-force_delete``: any value.
force_delete = types.always(types.wrapped("os-force_delete", {}))
#: Action ``os-retype``.
retype = types.always(
    types.wrapped(
        "os-retype",
        types.record(
            {
                "new_type": {"type": "string", "minLength": 1, "maxLength": 255, "format": "printable"},
                "migration_policy": {"enum": ["on-demand", "never", None]},
            },
            required=["new_type"],
        ),
    )
)
#: Action ``os-set_bootable``.
set_bootable = types.always(
    types.wrapped("os-set_bootable", types.record({"bootable": types.BOOLEAN}, required=["bootable"]))
)
#: Action ``os-set_image_metadata``.
set_image_metadata = types.always(
    types.wrapped("os-set_image_metadata", types.record({"metadata": types.METADATA}, required=["metadata"]))
)
#: Action ``os-show_image_metadata``: any value.
show_image_metadata = types.always(types.wrapped("os-show_image_metadata", {}))
#: Action ``os-unset_image_metadata``.
unset_image_metadata = types.always(
    types.wrapped(
        "os-unset_image_metadata",
        types.record({"key": {"type": "string", "minLength": 1, "maxLength": 255}}, required=["key"]),
    )
)
