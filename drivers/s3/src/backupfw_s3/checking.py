"""What ``check`` tries: the round trip, and whether the server is what the options say of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore.base import Body, CheckItem, CheckReport
from backupfw.chunkstore.checks import round_trip, try_item
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
)
from backupfw_s3.errors import translated

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
            store.delete(container, [info.key for info in store.list(container, prefix)])


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
