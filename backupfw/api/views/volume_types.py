"""Volume types as answers show them."""

from __future__ import annotations

import uuid
from typing import Any

#: The one volume type there is: volumes differ in nothing that a type could say.
DEFAULT: dict[str, Any] = {
    "id": str(uuid.uuid5(uuid.NAMESPACE_URL, "backupfw:volume-type:default")),
    "name": "__DEFAULT__",
    "description": "Default Volume Type",
    "is_public": True,
    "os-volume-type-access:is_public": True,
    "qos_specs_id": None,
    "extra_specs": {},
}


def id_of(volume_type: str | None) -> str | None:
    """Return the id of the type that a volume was given by name or id; None for any other text."""
    known: str = DEFAULT["id"]
    return known if volume_type in (known, DEFAULT["name"]) else None
