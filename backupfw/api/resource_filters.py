"""Which filters everybody may use in listings: the operator's choice from 3.31 on.

The file is JSON: resource -> list of filters; a filter that ends in ``~`` (from 3.34 on) asks for a part
of the text.  What the file does not name has no filters.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from backupfw.errors import ConfigError

#: What is allowed without a file.
DEFAULT: Mapping[str, Sequence[str]] = {
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


def load(path: str | None) -> Mapping[str, Sequence[str]]:
    """Read the file; the default where there is none.

    :raises ConfigError: it cannot be read, or is not of that form.
    """
    if not path:
        return DEFAULT
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
