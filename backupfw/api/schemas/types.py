"""Parts that several schemas share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backupfw import naming
from backupfw.api.versions import ApiVersion

#: The schema of a body, by version.
SchemaOf = Callable[[ApiVersion], dict[str, Any]]

UUID: dict[str, Any] = {"type": "string", "format": "uuid"}
UUID_OR_NULL: dict[str, Any] = {"type": ["string", "null"], "format": "uuid"}
NAME: dict[str, Any] = {"type": ["string", "null"], "minLength": 0, "maxLength": 255}
TEXT_OR_NULL = NAME
DESCRIPTION: dict[str, Any] = {
    "type": ["string", "null"],
    "minLength": 0,
    "maxLength": 255,
    "format": "printable",
}

_WORDS = ["true", "false", "on", "off", "yes", "no"]
#: The short words are allowed in lower case only.
BOOLEAN: dict[str, Any] = {
    "type": ["boolean", "string"],
    "enum": [
        True,
        False,
        *("1", "0", "y", "n", "t", "f"),
        *_WORDS,
        *(word.capitalize() for word in _WORDS),
        *(word.upper() for word in _WORDS),
    ],
}

METADATA: dict[str, Any] = {
    "type": "object",
    # First: what has too many is refused before each of them is looked at.
    "maxProperties": naming.MAX_PAIRS,
    "patternProperties": {r"^[a-zA-Z0-9-_:. /]{1,255}\Z": {"type": "string", "maxLength": 255}},
    "additionalProperties": False,
}
METADATA_OR_NULL: dict[str, Any] = {**METADATA, "type": ["object", "null"]}


def wrapped(key: str, inner: dict[str, Any], *, extra: bool = False) -> dict[str, Any]:
    """Return the schema of ``{key: inner}``.

    :param extra: whether other keys beside it are ignored; else they are refused.
    """
    return {
        "type": "object",
        "properties": {key: inner},
        "required": [key],
        "additionalProperties": extra,
    }


def record(
    properties: dict[str, Any], *, required: list[str] | None = None, extra: bool = False
) -> dict[str, Any]:
    """Return the schema of an object with these properties."""
    schema: dict[str, Any] = {"type": "object", "properties": properties, "additionalProperties": extra}
    if required:
        schema["required"] = required
    return schema


def always(schema: dict[str, Any]) -> SchemaOf:
    """Return the schema of a body that is the same in every version."""
    return lambda _version: schema


def by_version(*steps: tuple[ApiVersion, dict[str, Any]]) -> SchemaOf:
    """Return the schema of a body that changed.

    :param steps: first version and schema, oldest first; the first schema holds for earlier versions, too,
        although no route asks for it.
    """

    def schema_of(version: ApiVersion) -> dict[str, Any]:
        return next((schema for since, schema in reversed(steps) if since <= version), steps[0][1])

    return schema_of
