"""Bodies of the calls about volume types."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types

_NAME: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 255, "format": "printable"}
_NAME_OR_NULL: dict[str, Any] = {**_NAME, "type": ["string", "null"]}
_SPEC: dict[str, Any] = {"type": "string", "maxLength": 255}
_SPECS: dict[str, Any] = {
    "type": "object",
    "patternProperties": {r"^[a-zA-Z0-9-_:. ]{1,255}\Z": _SPEC},
    "additionalProperties": False,
}
_PROJECT: dict[str, Any] = {"type": "string", "minLength": 1, "maxLength": 255, "format": "printable"}

#: ``POST /types``.
create = types.always(
    types.wrapped(
        "volume_type",
        types.record(
            {
                "name": _NAME,
                "description": types.DESCRIPTION,
                "extra_specs": {**_SPECS, "type": ["object", "null"]},
                "os-volume-type-access:is_public": types.BOOLEAN,
            },
            required=["name"],
            extra=True,
        ),
    )
)
#: ``PUT /types/{id}``.
update = types.always(
    types.wrapped(
        "volume_type",
        {
            **types.record(
                {
                    "name": _NAME_OR_NULL,
                    "description": types.DESCRIPTION,
                    "is_public": {"anyOf": [types.BOOLEAN, {"type": "null"}]},
                }
            ),
            "minProperties": 1,
        },
    )
)
#: ``POST /types/{id}/extra_specs``.
extra_specs = types.always(types.wrapped("extra_specs", _SPECS))
#: ``PUT /types/{id}/extra_specs/{key}``.
extra_spec = types.always({**_SPECS, "minProperties": 1, "maxProperties": 1})


def _access(name: str) -> types.SchemaOf:
    return types.always(types.wrapped(name, types.record({"project": _PROJECT}, required=["project"])))


#: Actions ``addProjectAccess`` and ``removeProjectAccess``.
allow, refuse = _access("addProjectAccess"), _access("removeProjectAccess")
#: ``PUT /default-types/{project}``.
default = types.always(
    types.wrapped("default_type", types.record({"volume_type": _NAME}, required=["volume_type"]))
)
