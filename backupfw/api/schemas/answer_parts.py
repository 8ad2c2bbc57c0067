"""Parts that the schemas of several answers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backupfw.api import versions
from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

#: The schema of an answer, by version.
AnswerOf = Callable[[ApiVersion], dict[str, Any]]

TEXT = {"type": "string"}
TEXT_OR_NULL = {"type": ["string", "null"]}
NUMBER = {"type": "integer"}
TIME = {"type": ["string", "null"], "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}$"}
FLAG = {"type": "boolean"}
NULL = {"type": "null"}
LINKS = {
    "type": "array",
    "items": types.record(
        {"href": {"type": "string", "format": "uri"}, "rel": TEXT}, required=["href", "rel"]
    ),
}
METADATA = {"type": "object", "additionalProperties": TEXT}


def exactly(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an object with all of these keys and no others."""
    return types.record(fields, required=list(fields))


def summary(_version: ApiVersion) -> dict[str, Any]:
    """Return the schema of an item in the plain listing of most resources."""
    return exactly({"id": types.UUID, "name": TEXT_OR_NULL, "links": LINKS})


def always(schema: dict[str, Any]) -> AnswerOf:
    """Return a schema that is the same in every version."""
    return lambda _version: schema


def one(key: str, inner: AnswerOf) -> AnswerOf:
    """Return the schema of one resource under its key."""
    return lambda version: exactly({key: inner(version)})


def page(key: str, inner: AnswerOf) -> AnswerOf:
    """Return the schema of a listing's page."""

    def schema(version: ApiVersion) -> dict[str, Any]:
        fields: dict[str, Any] = {key: {"type": "array", "items": inner(version)}, f"{key}_links": LINKS}
        if version >= versions.COUNT_INFO:
            fields["count"] = NUMBER
        return types.record(fields, required=[key])

    return schema
