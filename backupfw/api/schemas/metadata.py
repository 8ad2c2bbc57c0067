"""Bodies of the metadata calls of volumes and snapshots."""

from __future__ import annotations

from backupfw.api.schemas import types

#: ``{"metadata": {…}}``.
whole = types.always(types.wrapped("metadata", types.METADATA))
#: ``{"meta": {key: value}}``: exactly one key.
item = types.always(types.wrapped("meta", {**types.METADATA, "minProperties": 1, "maxProperties": 1}))
