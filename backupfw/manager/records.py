"""Export records: ``export_record`` returns them and ``import_record`` reads them.  Pure functions.

A record is base64 of a JSON object with the field names and string forms that clients, suites and
existing services know.  A record that is imported may be hostile: its length, depth and number of parts are
bounded, only the fields of :class:`Record` are read, and only :class:`~backupfw.errors.InvalidInput` is
raised.  The content of a record is not trusted: names in it are checked again where they are used
(``naming``, the chunk store's layers), and the manifest decides about the data.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn

import jsonschema

from backupfw import moments, naming
from backupfw.errors import InvalidInput
from backupfw.manager import rows

Schema = dict[str, Any]

#: Longest record, in characters of base64: some thousand metadata pairs of full length.
MAX_CHARACTERS = 4 << 20
#: Deepest nesting of objects and arrays; records have two levels, unknown fields may have a few more.
MAX_DEPTH = 16
#: Most objects and arrays; records have four.  Each takes up to a hundred times its characters in memory.
MAX_PARTS = 1000
#: Longest text field, as the API has it.
MAX_TEXT = 255
#: Longest ``service_metadata``: the length of an object key.
MAX_SERVICE_METADATA = 1024
#: Largest ``size`` in GiB: what the database's integer holds.
MAX_SIZE = (1 << 31) - 1
#: Largest ``object_count``.
MAX_OBJECTS = (1 << 63) - 1

# A string (its end may be missing, so that no text costs more than one visit) or a bracket.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_CLASS_NAME = re.compile(r"[A-Z]\w*", re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n")


def _matching(pattern: str) -> Schema:
    return {"type": ["string", "null"], "pattern": rf"\A{pattern}\Z"}


def _integer(least: int, most: int) -> Schema:
    return {"type": ["integer", "null"], "minimum": least, "maximum": most}


# NUL and lone surrogates have no place in a database's text; other control codes only in free text.
_CHARACTER, _FREE_CHARACTER = r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]", r"[^\x00\ud800-\udfff]"
_TEXT = _matching(f"{_CHARACTER}{{0,{MAX_TEXT}}}")
_FREE_TEXT = _matching(f"{_FREE_CHARACTER}{{0,{MAX_TEXT}}}")
_ID = _matching("[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Seconds' fractions and offsets are written by some services; the zone may be missing (then UTC).
_TIME = _matching(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,6})?(Z|[+-][0-9]{2}:?[0-9]{2})?"
)
_DATA_KEY = r"\A[0-9a-f]{32}\Z"
#: The fields that are read, in the order in which they are judged; null is the same as missing.
_PROPERTIES: dict[str, Schema] = {
    "id": _ID,
    "size": _integer(1, MAX_SIZE),
    "user_id": _TEXT,
    "project_id": _TEXT,
    "volume_id": _ID,
    "snapshot_id": _ID,
    "parent_id": _ID,
    "availability_zone": _TEXT,
    "container": _TEXT,
    "display_name": _FREE_TEXT,
    "display_description": _FREE_TEXT,
    "service": _TEXT,
    "service_metadata": _matching(f"{_CHARACTER}{{0,{MAX_SERVICE_METADATA}}}"),
    "object_count": _integer(0, MAX_OBJECTS),
    "encryption_key_id": _ID,
    "data_timestamp": _TIME,
    "created_at": _TIME,
    "metadata": {
        "type": ["object", "null"],
        # First: what has too many is refused before each of them is looked at.
        "maxProperties": naming.MAX_PAIRS,
        "patternProperties": {rf"\A{_CHARACTER}{{1,{MAX_TEXT}}}\Z": {**_FREE_TEXT, "type": "string"}},
        "additionalProperties": False,
    },
    "driver_info": {
        "type": ["object", "null"],
        "properties": {
            "store": _TEXT,
            "encryption": {
                "type": ["object", "null"],
                "required": ["data_key", "mac"],
                "properties": {key: {"type": "string", "pattern": _DATA_KEY} for key in ("data_key", "mac")},
            },
        },
    },
}
#: The fields that a manifest's record has, too.
_DESCRIBING = (
    "user_id",
    "snapshot_id",
    "parent_id",
    "availability_zone",
    "display_name",
    "display_description",
    "data_timestamp",
    "created_at",
    "metadata",
)
# By the fourth draft 1.0 is no integer.
_VALIDATOR = jsonschema.Draft4Validator({"properties": _PROPERTIES})


@dataclass(frozen=True, slots=True)
class Record:
    """What was read of a record.

    :ivar id: the backup's id (canonical, lower case).
    :ivar size: GiB.
    :ivar service_metadata: for our own format the manifest's key; unchecked beyond its length.
    :ivar container: a container name as some service wrote it; it may be one that no store takes here.
    :ivar store: the configured store's name where the record was made: a hint, nothing more.
    :ivar key_id: the id of the data key with which the data is encrypted; None: it is not, or the record is
        one of a release that did not say it.
    :ivar mac_id: the id of its key of the digests.
    :ivar created_at: naive UTC, as all times.
    """

    id: str
    size: int
    user_id: str | None = None
    project_id: str | None = None
    volume_id: str | None = None
    snapshot_id: str | None = None
    parent_id: str | None = None
    availability_zone: str | None = None
    container: str | None = None
    display_name: str | None = None
    display_description: str | None = None
    service: str | None = None
    service_metadata: str | None = None
    object_count: int = 0
    encryption_key_id: str | None = None
    data_timestamp: datetime | None = None
    created_at: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    store: str | None = None
    key_id: str | None = None
    mac_id: str | None = None


def volume_record(
    volume_type: str | None, bootable: bool, image_metadata: Mapping[str, str]
) -> dict[str, Any]:
    """Return the properties of its volume that a backup's record keeps, so that a restore can make an equal
    volume.

    An import reads them from the manifest, not from the record.
    """
    return {
        "volume_type": volume_type,
        "bootable": bootable,
        "image_metadata": dict(image_metadata),
    }


def encode(backup: rows.Backup, key_id: str | None = None, mac_id: str | None = None) -> str:
    """Return the record of a backup: ``backup_url`` of an export.

    :param key_id, mac_id: as :class:`Record` has them.
    """
    info: dict[str, Any] = {} if backup.store is None else {"store": backup.store}
    if backup.volume_record is not None:
        info["volume"] = dict(backup.volume_record)
    if key_id is not None:
        info["encryption"] = {"data_key": key_id, "mac": mac_id}
    record = {
        # The only field whose content each service defines for itself.
        "driver_info": info,
        "id": backup.id,
        "user_id": backup.user_id,
        "project_id": backup.project_id,
        "volume_id": backup.volume_id,
        "host": backup.host,
        "availability_zone": backup.availability_zone,
        "container": backup.container,
        "parent_id": backup.parent_id,
        "status": backup.status,
        "fail_reason": backup.fail_reason,
        "size": backup.size,
        "display_name": backup.display_name,
        "display_description": backup.display_description,
        "service_metadata": backup.service_metadata,
        "service": backup.service,
        "object_count": backup.object_count,
        "temp_volume_id": backup.temp_volume_id,
        "temp_snapshot_id": backup.temp_snapshot_id,
        "num_dependent_backups": backup.num_dependent_backups,
        "snapshot_id": backup.snapshot_id,
        "data_timestamp": _time_text(backup.data_timestamp),
        "restore_volume_id": backup.restore_volume_id,
        "metadata": dict(backup.metadata),
        "encryption_key_id": backup.encryption_key_id,
        "created_at": _time_text(backup.created_at),
        "updated_at": _time_text(backup.updated_at),
        # Only live backups are exported.
        "deleted_at": None,
        "deleted": False,
    }
    return base64.b64encode(json.dumps(record).encode("ascii")).decode("ascii")


def decode(text: str) -> Record:
    """Read a record (``backup_url`` of an import).

    It accepts both alphabets of base64, and white space.

    :raises InvalidInput: it cannot be decoded or parsed, or a field that is needed is missing, or one
        that is read has another type, form or length than it may have.
    """
    values = _parse(_decode_text(text))
    # Tests of clients compare these words.
    for name, words in (("id", "an id"), ("size", "size attribute")):
        if values.get(name) is None:
            raise InvalidInput(f"Provided backup record is missing {words}")
    if (error := next(_VALIDATOR.iter_errors(values), None)) is not None:
        if error.validator == "maxProperties":
            raise InvalidInput(f"The backup record has more than {naming.MAX_PAIRS} pairs of metadata.")
        path = [str(part) for part in error.absolute_path]
        raise _invalid(path[0] if path[0] == "metadata" else ".".join(path))
    given = {name: values[name] for name in _PROPERTIES if values.get(name) is not None}
    given = {name: _converted(name, value) for name, value in given.items()}
    info = given.pop("driver_info", {})
    encryption = info.get("encryption") or {}
    return Record(
        store=info.get("store"), key_id=encryption.get("data_key"), mac_id=encryption.get("mac"), **given
    )


def of_manifest(backup_id: str, size: int, values: Mapping[str, Any]) -> Record:
    """Return what the record in a manifest says of its backup; it may be hostile.

    Each field passes the checks of :func:`decode`; one that does not counts as missing.

    :param size: GiB, as the manifest's length says.
    :param values: the part ``backup`` of the manifest's record.
    """
    renamed = {"display_name": "name", "display_description": "description"}
    given: dict[str, Any] = {}
    for name in _DESCRIBING:
        value, schema = values.get(renamed.get(name, name)), _PROPERTIES[name]
        if value is None or not jsonschema.Draft4Validator(schema).is_valid(value):
            continue
        with contextlib.suppress(InvalidInput):
            given[name] = _converted(name, value)
    return Record(id=backup_id, size=size, **given)


def same_service(one: str, other: str) -> bool:
    """Say whether two values of ``backup_service`` name the same driver.

    A name may be given with or without its class: ``x.y.posix`` and ``x.y.posix.PosixBackupDriver``.
    """
    if one == other:
        return bool(one)
    short, long = sorted((one, other), key=len)
    module, dot, name = long.rpartition(".")
    return bool(dot) and module == short and bool(short) and _CLASS_NAME.fullmatch(name) is not None


def _time_text(value: datetime | None) -> str | None:
    return None if value is None else value.strftime("%Y-%m-%dT%H:%M:%SZ").rjust(20, "0")


def _decode_text(text: str) -> str:
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput("Can't decode backup record.")
    try:
        return base64.b64decode(text.translate(_URL_SAFE), validate=True).decode("utf-8")
    except (binascii.Error, ValueError) as error:
        raise InvalidInput("Can't decode backup record.") from error


def _parse(text: str) -> Mapping[str, Any]:
    try:
        depth, parts = _brackets(text)
        if depth > MAX_DEPTH or parts > MAX_PARTS:
            raise ValueError("nested too deeply, or into too many parts")
        value = json.loads(text, parse_constant=_refuse_constant)
    except ValueError as error:
        raise InvalidInput("Can't parse backup record.") from error
    if not isinstance(value, dict):
        raise InvalidInput("Can't parse backup record.")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _brackets(text: str) -> tuple[int, int]:
    """Return deepest nesting and number of parts of a JSON text: known before the parser takes them."""
    depth = deepest = parts = 0
    for match in _BRACKETS.finditer(text):
        char = match[0][0]
        if char in "[{":
            depth += 1
            parts += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest, parts


def _time(name: str, text: str) -> datetime:
    try:
        return moments.parse(text)
    except ValueError:
        raise _invalid(name) from None


def _converted(name: str, value: Any) -> Any:
    """Return a valid field's value as :class:`Record` has it."""
    if _PROPERTIES[name] is _ID:
        return value.lower()
    return _time(name, value) if _PROPERTIES[name] is _TIME else value


def _invalid(name: str) -> InvalidInput:
    return InvalidInput(f"The backup record has an invalid {name}.")
