"""Bodies of the metadata calls of volumes and snapshots."""

from __future__ import annotations

from typing import Any

from backupfw.api.schemas import types
from backupfw.api.versions import ApiVersion

_MAP_SCHEMA = types.wrapped("metadata", types.METADATA)
_ITEM_SCHEMA = types.wrapped("meta", {**types.METADATA, "minProperties": 1, "maxProperties": 1})


def whole(version: ApiVersion) -> dict[str, Any]:
    """``{"metadata": {…}}``."""
    del version
    return _MAP_SCHEMA


def item(version: ApiVersion) -> dict[str, Any]:
    """``{"meta": {key: value}}``: exactly one key."""
    del version
    return _ITEM_SCHEMA
