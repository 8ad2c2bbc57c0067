"""What ``check`` tries: the round trip, and whether the server is what the options say of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore.base import Body, CheckItem, CheckReport
from backupfw.chunkstore.checks import Caution, round_trip, try_item
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    NotSupported,
)
from backupfw_s3.errors import code_of, translated
from backupfw_s3.locking import NO_LOCK

if TYPE_CHECKING:
    from backupfw_s3.store import S3Store

#: MD5 of something else than what is sent with it, base64.
_WRONG_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="
#: In the order of their UTF-8 bytes; servers that keep folders list the second last.
_ORDERED = ("a", "a!", "a-b", "a/b", "a0", "\u00e9", "\uffee", "\U0001f642")


def check(store: S3Store) -> CheckReport:
    """Try the store; leaves nothing behind and raises no ChunkStoreError."""
    container = store.check_bucket or f"backupfw-check-{secrets.token_hex(12)}"
    if store.check_bucket:
        items = [try_item("container", lambda: _find(store, container))]
    else:
        items = [try_item("container", lambda: _make(store, container))]
    if not items[0].ok:
        return CheckReport(tuple(items))
    items += round_trip(store, container)
    if all(item.ok for item in items):
        for name, action in (
            ("order", _order),
            ("checksum", _checksum),
            ("conditional-put", _conditional_put),
            ("bulk-delete", _bulk_delete),
        ):
            items.append(_with_object(name, store, container, action))
    if not store.check_bucket:
        items.append(try_item("remove-container", lambda: _remove(store, container)))
    return CheckReport(tuple(items))


def _find(store: S3Store, container: str) -> str | None:
    store.require_open()
    with translated(store.name, container):
        store.client.list_objects_v2(Bucket=container, MaxKeys=1)
    return f"the bucket {container} is there"


def _make(store: S3Store, container: str) -> str | None:
    store.ensure_container(container)
    return "a bucket was made for this check"


def _remove(store: S3Store, container: str) -> str | None:
    with translated(store.name, container):
        store.client.delete_bucket(Bucket=container)
    return None


#: Tries something with keys below a prefix of its own; returns a remark, and raises what is wrong.
_Action = Callable[["S3Store", str, str], str | None]


def _with_object(name: str, store: S3Store, container: str, action: _Action) -> CheckItem:
    prefix = f"backupfw-check/{secrets.token_hex(16)}/"
    try:
        return try_item(name, lambda: action(store, container, prefix))
    finally:
        with suppress(ChunkStoreError):
            store.erase(container, prefix)


def _order(store: S3Store, container: str, prefix: str) -> str | None:
    expected = [prefix + end for end in _ORDERED]
    for key in reversed(expected):
        store.put(container, key, Body.from_bytes(b"x"))
    try:
        found = [info.key for info in store.list(container, prefix)]
    finally:
        store.delete(container, expected)
    if sorted(found) != expected and store.capabilities.listing_lag:
        return "the listing lags, as declared: nothing can be said of its order"
    if sorted(found) != expected:
        raise ChunkStoreError(
            "the listing does not show what was just written (listing_lag)", store=store.name
        )
    if found == expected:
        return "sorted" if store.capabilities.sorted_listing else "sorted: sorted_listing may be true"
    if store.capabilities.sorted_listing:
        raise ChunkStoreError("the listing is not sorted: set sorted_listing = false", store=store.name)
    return "not sorted, as declared"


def _checksum(store: S3Store, container: str, prefix: str) -> str | None:
    key = prefix + "wrong"
    try:
        with translated(store.name, container, key):
            store.client.put_object(
                Bucket=container, Key=key, Body=b"damaged", ContentMD5=_WRONG_MD5, **store.put_arguments
            )
    except IntegrityError:
        return "damaged bytes are refused"
    store.delete(container, [key])
    raise ChunkStoreError(
        "the store takes bytes that do not match their Content-MD5: set verify_puts = true", store=store.name
    )


def _bulk_delete(store: S3Store, container: str, prefix: str) -> str | None:
    keys = [prefix + "one", prefix + "two"]
    for key in keys:
        store.put(container, key, Body.from_bytes(b"x"))
    store.delete(container, keys)
    if store.bulk_delete_size > 1 and store.capabilities.bulk_delete == 1:
        raise Caution(
            "the store takes no requests that delete many objects: set bulk_delete_size = 1, or the first "
            "delete of each process finds it out"
        )
    return f"{store.bulk_delete_size} keys per request"


def _conditional_put(store: S3Store, container: str, prefix: str) -> str | None:
    key = prefix + "once"
    declared = store.capabilities.if_absent
    arguments: dict[str, Any] = {"Bucket": container, "Key": key, "IfNoneMatch": "*", **store.put_arguments}
    try:
        with translated(store.name, container, key):
            store.client.put_object(Body=b"first", **arguments)
            store.client.put_object(Body=b"second", **arguments)
    except AlreadyExists:
        has = True
    except ChunkStoreError as error:
        if error.temporary:
            raise
        has = False
    else:
        has = False
    finally:
        store.delete(container, [key])
    if declared and not has:
        raise ChunkStoreError("the store has no conditional put: set conditional_put = no", store=store.name)
    if has and not declared:
        return "the store has it: conditional_put = yes may be set"
    return "as declared" if has else "the store does not have it"


# ---- a bucket's settings -----------------------------------------------------------------------------


def inspect(store: S3Store, container: str) -> tuple[CheckItem, ...]:
    """Ask for versioning and object lock, and say what they will do."""
    return (
        try_item("versions", lambda: _versions(store, container)),
        try_item("object-lock", lambda: _object_lock(store, container)),
    )


def _versions(store: S3Store, container: str) -> str | None:
    status = _asked(store, container, store.client.get_bucket_versioning).get("Status")
    if status == "Enabled":
        if store.deletes_versions:
            return "the bucket keeps old versions, deletes reach them all (delete_versions)"
        raise Caution(
            "the bucket keeps old versions, so deletes free nothing: what is deleted stays stored and "
            "billed; set delete_versions = true, or give the bucket a lifecycle rule for noncurrent versions"
        )
    if status == "Suspended":
        if store.deletes_versions:
            return "versioning is suspended; older versions go with their objects (delete_versions)"
        raise Caution(
            "versioning is suspended: objects from before stay stored when they are deleted; set "
            "delete_versions = true, or give the bucket a lifecycle rule for noncurrent versions"
        )
    if store.deletes_versions:
        return "the bucket keeps none: delete_versions costs a listing for each delete and is not needed"
    return "the bucket keeps none"


def _object_lock(store: S3Store, container: str) -> str | None:
    answer = _asked(store, container, store.client.get_object_lock_configuration)
    found = answer.get("ObjectLockConfiguration") or {}
    if found.get("ObjectLockEnabled") != "Enabled":
        if store.locks:
            raise Caution(
                "the bucket has none, but lock_days is set, so no backup can be stored: make another bucket "
                "with object lock (ObjectLockEnabledForBucket; backupfw makes its own so)"
            )
        return "the bucket has none"
    rule = (found.get("Rule") or {}).get("DefaultRetention")
    if store.locks and not rule:
        return f"objects are locked as lock_days says ({store.lock_mode})"
    freed = (
        "deletes fail with that reason and are tried again until then"
        if store.deletes_versions
        else "deletes hide objects and free nothing"
    )
    if not rule:
        raise Caution(f"object lock is on, without a default: of what somebody locks, {freed}")
    period = f"{rule['Days']} days" if rule.get("Days") else f"{rule.get('Years')} years"
    raise Caution(f"every new object is locked for {period} ({rule.get('Mode')}): before that, {freed}")


def _asked(store: S3Store, container: str, question: Callable[..., Any]) -> Any:
    """Ask for a setting; an empty answer from a server without it.

    :raises Caution: it may not be asked for.
    """
    try:
        with translated(store.name, container):
            return question(Bucket=container)
    except NotSupported:
        return {}
    except ChunkStoreError as error:
        if code_of(error)[0] in NO_LOCK:
            return {}
        raise Caution(
            f"the setting cannot be asked for, so nobody knows what deletes will free: {error.reason}"
        ) from error
