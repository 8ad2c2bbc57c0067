"""What ``check`` tries: the round trip, and whether the server is what the options say of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from backupfw.chunkstore.base import Body, CheckItem, CheckReport, ChunkStore
from backupfw.chunkstore.checks import Caution, round_trip, try_item
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    NotSupported,
)
from backupfw_s3.errors import code_of, translated
from backupfw_s3.locking import NO_LOCK

#: MD5 of something else than what is sent with it, base64.
_WRONG_MD5 = "1B2M2Y8AsgTpgAmY7PhCfg=="
#: In the order of their UTF-8 bytes; servers that keep folders list the second last.
_ORDERED = ("a", "a!", "a-b", "a/b", "a0", "\u00e9", "\uffee", "\U0001f642")
#: Tries something with keys below a prefix of its own; returns a remark, and raises what is wrong.
_Action = Callable[[str, str], str | None]


class Checking:
    """Tries one store, and compares its server with the options.

    :param store: the store, which does most of what is tried.
    :param client: the SDK's client, for what a store does not do.
    :param options: the store's options, as configured.
    :param put_arguments: what every put says of how the object is to be kept.
    :param locks: objects are to be locked, and new buckets are made for it.
    """

    def __init__(
        self, store: ChunkStore, client: Any, options: Any, put_arguments: Mapping[str, Any], locks: bool
    ) -> None:
        self._store = store
        self._client = client
        self._put_arguments = put_arguments
        self._bucket: str | None = options.check_bucket
        self._bulk_delete_size: int = options.bulk_delete_size
        self._deletes_versions: bool = options.delete_versions
        self._locks = locks
        self._lock_mode: str = options.lock_mode.upper()

    def check(self) -> CheckReport:
        """Try the store; leaves nothing behind and raises no ChunkStoreError."""
        container = self._bucket or f"backupfw-check-{secrets.token_hex(12)}"
        if self._bucket:
            items = [try_item("container", lambda: self._find(container))]
        else:
            items = [try_item("container", lambda: self._make(container))]
        if not items[0].ok:
            return CheckReport(tuple(items))
        items += round_trip(self._store, container)
        if all(item.ok for item in items):
            for name, action in (
                ("order", self._order),
                ("checksum", self._checksum),
                ("conditional-put", self._conditional_put),
                ("bulk-delete", self._bulk_delete),
            ):
                items.append(self._with_object(name, container, action))
        if not self._bucket:
            items.append(try_item("remove-container", lambda: self._remove(container)))
        return CheckReport(tuple(items))

    def _find(self, container: str) -> str | None:
        next(self._store.list(container), None)
        return f"the bucket {container} is there"

    def _make(self, container: str) -> str | None:
        self._store.ensure_container(container)
        return "a bucket was made for this check"

    def _remove(self, container: str) -> str | None:
        with translated(self._store.name, container):
            self._client.delete_bucket(Bucket=container)
        return None

    def _with_object(self, name: str, container: str, action: _Action) -> CheckItem:
        prefix = f"backupfw-check/{secrets.token_hex(16)}/"
        try:
            return try_item(name, lambda: action(container, prefix))
        finally:
            with suppress(ChunkStoreError):
                self._store.erase(container, prefix)

    def _order(self, container: str, prefix: str) -> str | None:
        expected = [prefix + end for end in _ORDERED]
        for key in reversed(expected):
            self._store.put(container, key, Body.from_bytes(b"x"))
        try:
            found = [info.key for info in self._store.list(container, prefix)]
        finally:
            self._store.delete(container, expected)
        if sorted(found) != expected and self._store.capabilities.listing_lag:
            return "the listing lags, as declared: nothing can be said of its order"
        if sorted(found) != expected:
            raise ChunkStoreError(
                "the listing does not show what was just written (listing_lag)", store=self._store.name
            )
        if found == expected:
            return (
                "sorted" if self._store.capabilities.sorted_listing else "sorted: sorted_listing may be true"
            )
        if self._store.capabilities.sorted_listing:
            raise ChunkStoreError(
                "the listing is not sorted: set sorted_listing = false", store=self._store.name
            )
        return "not sorted, as declared"

    def _checksum(self, container: str, prefix: str) -> str | None:
        key = prefix + "wrong"
        try:
            with translated(self._store.name, container, key):
                self._client.put_object(
                    Bucket=container, Key=key, Body=b"damaged", ContentMD5=_WRONG_MD5, **self._put_arguments
                )
        except IntegrityError:
            return "damaged bytes are refused"
        self._store.delete(container, [key])
        raise ChunkStoreError(
            "the store takes bytes that do not match their Content-MD5: set verify_puts = true",
            store=self._store.name,
        )

    def _bulk_delete(self, container: str, prefix: str) -> str | None:
        keys = [prefix + "one", prefix + "two"]
        for key in keys:
            self._store.put(container, key, Body.from_bytes(b"x"))
        self._store.delete(container, keys)
        if self._bulk_delete_size > 1 and self._store.capabilities.bulk_delete == 1:
            raise Caution(
                "the store takes no requests that delete many objects: set bulk_delete_size = 1, or the "
                "first delete of each process finds it out"
            )
        return f"{self._bulk_delete_size} keys per request"

    def _conditional_put(self, container: str, prefix: str) -> str | None:
        key = prefix + "once"
        declared = self._store.capabilities.if_absent
        arguments: dict[str, Any] = {
            "Bucket": container,
            "Key": key,
            "IfNoneMatch": "*",
            **self._put_arguments,
        }
        try:
            with translated(self._store.name, container, key):
                self._client.put_object(Body=b"first", **arguments)
                self._client.put_object(Body=b"second", **arguments)
        except AlreadyExists:
            has = True
        except ChunkStoreError as error:
            if error.temporary:
                raise
            has = False
        else:
            has = False
        finally:
            self._store.delete(container, [key])
        if declared and not has:
            raise ChunkStoreError(
                "the store has no conditional put: set conditional_put = no", store=self._store.name
            )
        if has and not declared:
            return "the store has it: conditional_put = yes may be set"
        return "as declared" if has else "the store does not have it"

    def inspect(self, container: str) -> tuple[CheckItem, ...]:
        """Ask for versioning and object lock, and say what they will do."""
        return (
            try_item("versions", lambda: self._versions(container)),
            try_item("object-lock", lambda: self._object_lock(container)),
        )

    def _versions(self, container: str) -> str | None:
        status = self._asked(container, self._client.get_bucket_versioning).get("Status")
        if status == "Enabled":
            if self._deletes_versions:
                return "the bucket keeps old versions, deletes reach them all (delete_versions)"
            raise Caution(
                "the bucket keeps old versions, so deletes free nothing: what is deleted stays stored and "
                "billed; set delete_versions = true, or give the bucket a lifecycle rule for noncurrent "
                "versions"
            )
        if status == "Suspended":
            if self._deletes_versions:
                return "versioning is suspended; older versions go with their objects (delete_versions)"
            raise Caution(
                "versioning is suspended: objects from before stay stored when they are deleted; set "
                "delete_versions = true, or give the bucket a lifecycle rule for noncurrent versions"
            )
        if self._deletes_versions:
            return "the bucket keeps none: delete_versions costs a listing for each delete and is not needed"
        return "the bucket keeps none"

    def _object_lock(self, container: str) -> str | None:
        answer = self._asked(container, self._client.get_object_lock_configuration)
        found = answer.get("ObjectLockConfiguration") or {}
        if found.get("ObjectLockEnabled") != "Enabled":
            if self._locks:
                raise Caution(
                    "the bucket has none, but lock_days is set, so no backup can be stored: make another "
                    "bucket with object lock (ObjectLockEnabledForBucket; backupfw makes its own so)"
                )
            return "the bucket has none"
        rule = (found.get("Rule") or {}).get("DefaultRetention")
        if self._locks and not rule:
            return f"objects are locked as lock_days says ({self._lock_mode})"
        freed = (
            "deletes fail with that reason and are tried again until then"
            if self._deletes_versions
            else "deletes hide objects and free nothing"
        )
        if not rule:
            raise Caution(f"object lock is on, without a default: of what somebody locks, {freed}")
        period = f"{rule['Days']} days" if rule.get("Days") else f"{rule.get('Years')} years"
        raise Caution(f"every new object is locked for {period} ({rule.get('Mode')}): before that, {freed}")

    def _asked(self, container: str, question: Callable[..., Any]) -> Any:
        """Ask for a setting; an empty answer from a server without it.

        :raises Caution: it may not be asked for.
        """
        try:
            with translated(self._store.name, container):
                return question(Bucket=container)
        except NotSupported:
            return {}
        except ChunkStoreError as error:
            if code_of(error)[0] in NO_LOCK:
                return {}
            raise Caution(
                f"the setting cannot be asked for, so nobody knows what deletes will free: {error.reason}"
            ) from error
