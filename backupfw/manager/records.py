"""Export records: ``export_record`` returns them and ``import_record`` reads them.  Pure functions.

A record is base64 of a JSON object with the field names and string forms that clients, suites and
existing services know.  A record that comes in is hostile: everything about it is bounded, only the
fields of :class:`Record` are read, and nothing but :class:`~backupfw.errors.InvalidInput` is raised.
The content of a record is not trusted: names in it are checked again where they are used
(``naming``, the chunk store's layers), and the manifest decides about the data.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NoReturn, Protocol, TypeVar

from backupfw import naming
from backupfw.errors import InvalidInput

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

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# Seconds' fractions and offsets are written by some services; the zone may be missing (then UTC).
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:?\d\d)?", re.ASCII)
# A string (its end may be missing, so that no text costs more than one visit) or a bracket.
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
_CLASS_NAME = re.compile(r"[A-Z]\w*", re.ASCII)
_URL_SAFE = str.maketrans("-_", "+/", " \t\r\n")


_T = TypeVar("_T")


class Exportable(Protocol):
    """What :func:`encode` reads of a backup (``manager.rows.Backup`` is one).  Times: naive UTC."""

    @property
    def id(self) -> str: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def project_id(self) -> str: ...
    @property
    def volume_id(self) -> str: ...
    @property
    def host(self) -> str | None: ...
    @property
    def availability_zone(self) -> str | None: ...
    @property
    def container(self) -> str | None: ...
    @property
    def store(self) -> str | None: ...
    @property
    def service(self) -> str | None: ...
    @property
    def parent_id(self) -> str | None: ...
    @property
    def status(self) -> str: ...
    @property
    def fail_reason(self) -> str | None: ...
    @property
    def size(self) -> int: ...
    @property
    def display_name(self) -> str | None: ...
    @property
    def display_description(self) -> str | None: ...
    @property
    def service_metadata(self) -> str | None: ...
    @property
    def object_count(self) -> int: ...
    @property
    def temp_volume_id(self) -> str | None: ...
    @property
    def temp_snapshot_id(self) -> str | None: ...
    @property
    def num_dependent_backups(self) -> int: ...
    @property
    def snapshot_id(self) -> str | None: ...
    @property
    def data_timestamp(self) -> datetime | None: ...
    @property
    def restore_volume_id(self) -> str | None: ...
    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def volume_record(self) -> Mapping[str, Any] | None: ...
    @property
    def encryption_key_id(self) -> str | None: ...
    @property
    def created_at(self) -> datetime: ...
    @property
    def updated_at(self) -> datetime | None: ...


@dataclass(frozen=True, slots=True)
class Record:
    """What was read of a record.

    :ivar id: the backup's id (canonical, lower case).
    :ivar size: GiB.
    :ivar service_metadata: for our own format the manifest's key; unchecked beyond its length.
    :ivar container: a container name as some service wrote it; it may be one that no store takes here.
    :ivar store: the configured store's name where the record was made: a hint, nothing more.
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


def encode(backup: Exportable) -> str:
    """Return the record of a backup: ``backup_url`` of an export."""
    info: dict[str, Any] = {} if backup.store is None else {"store": backup.store}
    if backup.volume_record is not None:
        info["volume"] = dict(backup.volume_record)
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
    fields = _Fields(_parse(_decode_text(text)))
    return Record(
        # This text is what the clients' own tests look for.
        id=fields.needed("an id", fields.uuid("id")),
        size=fields.needed("size attribute", fields.integer("size", 1, MAX_SIZE)),
        user_id=fields.text("user_id"),
        project_id=fields.text("project_id"),
        volume_id=fields.uuid("volume_id"),
        snapshot_id=fields.uuid("snapshot_id"),
        parent_id=fields.uuid("parent_id"),
        availability_zone=fields.text("availability_zone"),
        container=fields.text("container"),
        display_name=fields.text("display_name", free=True),
        display_description=fields.text("display_description", free=True),
        service=fields.text("service"),
        service_metadata=fields.text("service_metadata", MAX_SERVICE_METADATA),
        object_count=fields.integer("object_count", 0, MAX_OBJECTS) or 0,
        encryption_key_id=fields.uuid("encryption_key_id"),
        data_timestamp=fields.time("data_timestamp"),
        created_at=fields.time("created_at"),
        metadata=fields.pairs("metadata"),
        store=_Fields(fields.object("driver_info"), "driver_info.").text("store"),
    )


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


class _Fields:
    """Reads typed fields of a parsed object; a missing field and null are the same: None."""

    def __init__(self, values: Mapping[str, Any], prefix: str = "") -> None:
        self._values = values
        self._prefix = prefix

    def _bad(self, name: str) -> NoReturn:
        raise InvalidInput(f"The backup record has an invalid {self._prefix}{name}.")

    def needed(self, what: str, value: _T | None) -> _T:
        if value is None:
            raise InvalidInput(f"Provided backup record is missing {what}")
        return value

    def text(self, name: str, longest: int = MAX_TEXT, *, free: bool = False) -> str | None:
        """Return a text; a ``free`` one may hold control characters other than NUL (line breaks)."""
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or len(value) > longest or _bad_characters(value, free):
            self._bad(name)
        return value

    def uuid(self, name: str) -> str | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not _UUID.fullmatch(value):
            self._bad(name)
        return value.lower()

    def integer(self, name: str, least: int, most: int) -> int | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            self._bad(name)
        return value

    def time(self, name: str) -> datetime | None:
        value = self._values.get(name)
        if value is None:
            return None
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            self._bad(name)
        try:
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
        except (ValueError, OverflowError):
            self._bad(name)

    def object(self, name: str) -> Mapping[str, Any]:
        value = self._values.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self._bad(name)
        return value

    def pairs(self, name: str) -> dict[str, str]:
        pairs = self.object(name)
        for key, value in pairs.items():
            if not isinstance(value, str) or not key or max(len(key), len(value)) > MAX_TEXT:
                self._bad(name)
            if _bad_characters(key, False) or _bad_characters(value, True):
                self._bad(name)
        return dict(pairs)


def _bad_characters(text: str, free: bool) -> bool:
    # NUL and lone surrogates have no place in a database's text; other control codes only in free text.
    if free:
        return naming.text_problem(text) is not None
    return any(unicodedata.category(char) in ("Cc", "Cs") for char in text)
