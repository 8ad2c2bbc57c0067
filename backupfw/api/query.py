"""Query parameters: how they are parsed, and those that every listing has."""

from __future__ import annotations

import json
import re
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oslo_utils import strutils

from backupfw import errors as core_errors
from backupfw import naming
from backupfw.api import errors, versions
from backupfw.api.versions import V2, ApiVersion
from backupfw.errors import ConfigError

MAX_OFFSET = 2147483647
#: Most parameters of a query; no client sends so many.
MAX_FIELDS = 200

_INTEGER = re.compile(r"[+-]?[0-9]{1,30}", re.ASCII)


def boolean(value: str | bool, name: str) -> bool:
    """Read a boolean word, in upper or lower case; a boolean is returned as it is.

    :param name: of the parameter, for the message.
    :raises BadRequest: it is no boolean word.
    """
    try:
        return bool(strutils.bool_from_string(value, strict=True))
    except ValueError as error:
        raise errors.BadRequest(f"Invalid input received: {name} must be a boolean, not '{value}'") from error


class Query:
    """The parameters of one request.  If a name stands there twice, the last one counts."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = tuple(pairs)
        self._last = dict(pairs)

    @classmethod
    def parse(cls, text: str) -> Query:
        """Parse a query string of a WSGI environment, which has its bytes as Latin-1.

        :raises BadRequest: it is not UTF-8, it has too many parameters, or one of them is refused by
            :func:`naming.input_problem`.
        """
        try:
            pairs = urllib.parse.parse_qsl(
                # Some servers pass on bytes that should be percent-encoded.
                naming.received(text),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=MAX_FIELDS,
            )
        except ValueError as error:
            raise errors.BadRequest("Malformed query string") from error
        for key, value in pairs:
            for part in (key, value):
                if (problem := naming.input_problem(part, naming.MAX_FIELD)) is not None:
                    raise errors.BadRequest(f"Malformed query string: {key[:80]!a}: {problem}")
        return cls(pairs)

    def get(self, name: str) -> str | None:
        """Return a parameter's value, or None when it is absent."""
        return self._last.get(name)

    def flag(self, name: str, default: bool = False) -> bool:
        """Return a boolean parameter.

        :raises BadRequest: its value is no boolean word.
        """
        value = self._last.get(name)
        return default if value is None else boolean(value, name)

    def items(self) -> Mapping[str, str]:
        """Return every parameter."""
        return dict(self._last)


@dataclass(frozen=True, slots=True)
class Listing:
    """What a request for a listing asks for.

    :ivar limit: page size, already capped; 0 is an empty page.
    :ivar marker: id of the last item of the page before.
    :ivar sort: ``(column, "asc" | "desc")``, the most significant first.
    :ivar all_tenants: whether every project's items are wanted (administrators only).
    :ivar filters: column -> value; a column that ends in ``~`` asks for a part of the text.
    :ivar with_count: whether the number of all items is wanted.
    """

    limit: int
    marker: str | None
    offset: int
    sort: tuple[tuple[str, str], ...]
    all_tenants: bool
    filters: Mapping[str, str]
    with_count: bool = False


@dataclass(frozen=True, slots=True)
class ListingRules:
    """What the query of a resource's listing may have.

    :ivar sort_keys: sort key of the query -> column.
    :ivar filter_keys: filter of the query -> column.  Before 3.31 all others are ignored.
    :ivar late_sort_keys: sort key -> the first version that has it; those of all versions are missing.
    :ivar resource: its name in ``resource_filters_file``; empty where operators cannot choose its filters.
    """

    sort_keys: Mapping[str, str]
    filter_keys: Mapping[str, str]
    late_sort_keys: Mapping[str, ApiVersion] = field(default_factory=dict)
    resource: str = ""

    def sort_keys_of(self, version: ApiVersion) -> Mapping[str, str]:
        """Return the sort keys that a version has."""
        return {
            key: column
            for key, column in self.sort_keys.items()
            if self.late_sort_keys.get(key, version) <= version
        }


#: The filters that everybody may use from 3.31 on, by resource, where the operator chooses none.
FILTERS: Mapping[str, Sequence[str]] = {
    "backup": ("name", "status", "volume_id"),
    "volume": (
        "name",
        "status",
        "metadata",
        "bootable",
        "availability_zone",
        "size",
        "created_at",
        "updated_at",
    ),
    "snapshot": ("name", "status", "volume_id", "metadata"),
    "message": ("resource_uuid", "resource_type", "event_id", "request_id", "message_level"),
    "volume_type": ("is_public",),
}


def load_filters(path: str | None) -> Mapping[str, Sequence[str]]:
    """Read the file with the filters that everybody may use; without a file they are :data:`FILTERS`.

    The file is JSON: resource -> list of filters; a filter that ends in ``~`` (from 3.34 on) asks for a part
    of the text.  A resource that is not in the file has no filters.

    :raises ConfigError: the file cannot be read, or has another form.
    """
    if not path:
        return FILTERS
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"section [api], option resource_filters_file: {path} cannot be read as JSON"
        ) from error
    well_formed = isinstance(found, dict) and all(
        isinstance(filters, list) and all(isinstance(name, str) for name in filters)
        for filters in found.values()
    )
    if not well_formed:
        raise ConfigError(
            f"section [api], option resource_filters_file: {path} is not an object of lists of filters"
        )
    return {resource: tuple(filters) for resource, filters in found.items()}


#: Parameters that are not filters.
_RESERVED = frozenset({"limit", "marker", "offset", "sort", "sort_key", "sort_dir", "all_tenants"})


def _limit(query: Query, highest: int) -> int:
    text = query.get("limit")
    if text is None:
        return highest
    if _INTEGER.fullmatch(text.strip()) is None:
        raise errors.BadRequest("limit param must be an integer")
    limit = int(text)
    if limit < 0:
        raise errors.BadRequest("limit param must be positive")
    return min(limit, highest)


def _offset(query: Query) -> int:
    text = query.get("offset")
    if text is None:
        return 0
    if _INTEGER.fullmatch(text.strip()) is None or not 0 <= int(text) <= MAX_OFFSET:
        raise core_errors.InvalidInput(f"offset must be an integer from 0 to {MAX_OFFSET}")
    return int(text)


def _sort(query: Query, keys: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    combined = query.get("sort")
    single_key, single_dir = query.get("sort_key"), query.get("sort_dir")
    pairs: list[tuple[str, str]] = []
    if combined is not None:
        if single_key is not None or single_dir is not None:
            raise errors.BadRequest("sort cannot be used together with sort_key or sort_dir")
        for part in combined.split(","):
            key, _, direction = part.partition(":")
            pairs.append((key.strip(), direction.strip() or "desc"))
    else:
        sort_keys = [key.strip() for key in (single_key or "created_at").split(",")]
        directions = [word.strip() for word in (single_dir or "desc").split(",")]
        if len(directions) > len(sort_keys):
            raise core_errors.InvalidInput("Sort direction array size exceeds sort key array size.")
        directions += directions[-1:] * (len(sort_keys) - len(directions))
        pairs = list(zip(sort_keys, directions, strict=True))
    result: list[tuple[str, str]] = []
    for key, direction in pairs:
        if direction not in ("asc", "desc"):
            raise core_errors.InvalidInput("Unknown sort direction, must be 'desc' or 'asc'.")
        if key not in keys:
            raise core_errors.InvalidInput(f"Sort key supplied is invalid: {key}")
        column = keys[key]
        if all(column != seen for seen, _ in result):
            result.append((column, direction))
    return tuple(result)


def _filters(
    query: Query, rules: ListingRules, is_admin: bool, version: ApiVersion, allowed: Collection[str]
) -> Mapping[str, str]:
    counted = version >= versions.COUNT_INFO
    filters: dict[str, str] = {}
    refused: list[str] = []
    for name, value in query.items().items():
        if name in _RESERVED or (counted and name == "with_count"):
            continue
        word = name.removesuffix("~")
        part = word != name
        column = rules.filter_keys.get(word, word)
        if part and version < versions.LIKE_FILTER:
            # No column has such a name, so the filter finds nothing, like any unknown one.
            known, column = False, name + "~"
        elif version < versions.RESOURCE_FILTER:
            known = name in rules.filter_keys
        else:
            known, column = name in allowed, column + "~" if part else column
        if known or is_admin:
            filters[column] = value
        elif version >= versions.RESOURCE_FILTER:
            refused.append(name)
    if refused:
        raise errors.BadRequest(f"Invalid filters {','.join(refused)} are found in query options.")
    return filters


def listing(
    query: Query,
    rules: ListingRules,
    *,
    is_admin: bool,
    max_limit: int,
    version: ApiVersion = V2,
    allowed: Collection[str] = (),
) -> Listing:
    """Read the parameters of a listing.

    ``all_tenants`` is ignored for everybody but administrators.  Before 3.31, filters that are not in the
    rules are ignored, too; from 3.31 on, a filter that the operator does not allow is refused.  An
    administrator may filter by any name; one that is no column finds nothing.

    :param allowed: the filters that the operator allows, from 3.31 on.
    :raises BadRequest, InvalidInput: a value is malformed, or a filter is not allowed.
    """
    everybody = query.get("all_tenants")
    # People type "?all_tenants", so an empty value means yes.
    all_tenants = everybody == "" or (everybody is not None and boolean(everybody, "all_tenants"))
    return Listing(
        limit=_limit(query, max_limit),
        marker=query.get("marker") or None,
        offset=_offset(query),
        sort=_sort(query, rules.sort_keys_of(version)),
        all_tenants=all_tenants and is_admin,
        filters=_filters(query, rules, is_admin, version, allowed),
        with_count=version >= versions.COUNT_INFO and query.flag("with_count"),
    )
