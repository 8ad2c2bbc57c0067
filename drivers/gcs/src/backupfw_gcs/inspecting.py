"""What a bucket's settings do to deletes: object versioning, soft delete, retention."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from backupfw.chunkstore.base import CheckItem
from backupfw.chunkstore.checks import Caution, try_item
from backupfw.chunkstore.errors import ChunkStoreError
from backupfw_gcs.errors import translated
from backupfw_gcs.link import Link

_FIELDS = "versioning,softDeletePolicy,retentionPolicy,defaultEventBasedHold"
_DAY = 86400


def inspect(link: Link, store: str, container: str) -> tuple[CheckItem, ...]:
    """Return one item for each setting, a warning where deletes do not free space at once."""
    try:
        with translated(store, container, needs="storage.buckets.get"):
            path = f"/storage/v1/b/{quote(container, safe='')}?fields={_FIELDS}"
            settings = link.request("GET", path, headers={}).json()
    except ChunkStoreError as error:
        detail = (
            f"the bucket's settings cannot be asked for, so nobody knows what deletes free: {error.reason}"
        )
        return (CheckItem("versions", True, detail, warning=True),)
    return (
        try_item("versions", lambda: _versions(settings)),
        try_item("soft-delete", lambda: _soft_delete(settings)),
        try_item("retention", lambda: _retention(settings)),
    )


def _versions(settings: Mapping[str, Any]) -> str:
    if (settings.get("versioning") or {}).get("enabled"):
        raise Caution(
            "the bucket keeps old versions, so deletes free nothing: what is deleted stays stored "
            "and billed; switch object versioning off, or let a lifecycle rule remove noncurrent versions"
        )
    return "the bucket keeps none"


def _soft_delete(settings: Mapping[str, Any]) -> str:
    seconds = int((settings.get("softDeletePolicy") or {}).get("retentionDurationSeconds") or 0)
    if seconds:
        raise Caution(
            f"what is deleted stays stored and billed for {seconds / _DAY:g} days more (soft delete); "
            "backups do not need that"
        )
    return "off"


def _retention(settings: Mapping[str, Any]) -> str:
    seconds = int((settings.get("retentionPolicy") or {}).get("retentionPeriod") or 0)
    if seconds:
        raise Caution(
            f"no object can be deleted for {seconds / _DAY:g} days after it was written: deletes fail with "
            "that reason and are tried again until then"
        )
    if settings.get("defaultEventBasedHold"):
        raise Caution("every new object is held: deletes fail until somebody releases it")
    return "none"
