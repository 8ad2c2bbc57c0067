"""Deleting: in bulk requests where the server has them, by version where the options ask for it."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from backupfw.chunkstore.errors import (
    ChunkStoreError,
    NotFound,
    NotSupported,
    PermissionDenied,
    Retained,
    Unavailable,
)
from backupfw_s3.errors import CODES, code_of, of_key, translated
from backupfw_s3.locking import retention

LOG = logging.getLogger(__name__)

#: Characters that keys may hold and XML may not: such keys are deleted one by one.
_NOT_IN_XML = re.compile("[\ufffe\uffff]")
#: Statuses with which servers refuse a bulk request that they do not have, or not in this form.
_NO_BULK = frozenset((400, 404, 405, 411, 501))


class Target(NamedTuple):
    """What one entry of a request deletes.

    :ivar version: None for the object as it is now: a versioned bucket keeps its bytes.
    """

    key: str
    version: str | None = None

    def entry(self) -> dict[str, str]:
        """Return the SDK's form."""
        return {"Key": self.key} if self.version is None else {"Key": self.key, "VersionId": self.version}


class _Version(NamedTuple):
    """An entry of a listing of versions.

    :ivar marker: it is a delete marker, without bytes.
    """

    target: Target
    marker: bool


class Deleting:
    """Deletes objects of one store.  Thread-safe.

    :param client: the SDK's client.
    :param store: the store's name, for errors.
    :param bulk: keys per request; 1 for servers without the bulk request.
    :param by_version: delete every version of a key, and its delete markers.
    :param sorted_listing: the server lists sorted, so that a listing can be left where the keys end.
    :ivar bulk: falls to 1 when the server turns out to have no bulk request.
    """

    def __init__(self, client: Any, store: str, bulk: int, by_version: bool, sorted_listing: bool) -> None:
        self._client = client
        self._store = store
        self._by_version = by_version
        self._sorted = sorted_listing
        self._lock = threading.Lock()
        self.bulk = bulk

    def delete(self, container: str, keys: Sequence[str]) -> dict[str, ChunkStoreError]:
        """Delete the keys; returns those that remain, each with its error.

        By version it costs one listing request per thousand versions, and never more than two per key.

        :raises ChunkStoreError: the only request failed as a whole.
        """
        unique = list(dict.fromkeys(keys))
        try:
            if self._by_version:
                # In parts as large as a request: the versions of one part are deleted before the next part.
                errors: dict[str, ChunkStoreError] = {}
                for start in range(0, len(unique), 1000):
                    errors.update(
                        self._delete(container, self._versions_of(container, unique[start : start + 1000]))
                    )
                return errors
            return self._delete(container, [Target(key) for key in unique])
        except NotFound as error:
            if code_of(error)[0] != "NoSuchBucket":
                # The server does not know the request; that does not mean that there is nothing to delete.
                raise NotSupported(
                    "the store has no listing of versions (delete_versions)",
                    store=self._store,
                    container=container,
                ) from error
            # No container, no objects.
            return {}

    def erase(self, container: str, prefix: str) -> None:
        """Delete all versions of everything below a prefix.

        :raises ChunkStoreError: something remains, or may remain.
        """
        found = [version for page in self._version_pages(container, prefix) for version in page]
        if errors := self._delete(container, _oldest_first(found)):
            raise next(iter(errors.values()))

    # ---- requests ------------------------------------------------------------------------------------

    def _delete(self, container: str, targets: Sequence[Target]) -> dict[str, ChunkStoreError]:
        batches = self._batches(targets)
        errors: dict[str, ChunkStoreError] = {}
        for batch in batches:
            try:
                errors.update(self._delete_batch(container, batch))
            except NotFound:
                raise
            except ChunkStoreError as error:
                if len(batches) == 1:
                    raise
                errors.update({target.key: error for target in batch})
        return errors

    def _batches(self, targets: Sequence[Target]) -> Sequence[Sequence[Target]]:
        alone = [target for target in targets if _NOT_IN_XML.search(target.key)]
        rest = [target for target in targets if not _NOT_IN_XML.search(target.key)]
        return [
            *(rest[start : start + self.bulk] for start in range(0, len(rest), self.bulk)),
            *([target] for target in alone),
        ]

    def _delete_batch(self, container: str, targets: Sequence[Target]) -> dict[str, ChunkStoreError]:
        """Delete with one request where there is such; returns the keys that remain."""
        if self.bulk == 1 or _NOT_IN_XML.search(targets[0].key):
            return self._one_by_one(container, targets)
        try:
            return self._delete_many(container, targets)
        except ChunkStoreError as error:
            if not _has_no_bulk(error):
                raise
            errors = self._one_by_one(container, targets)
            if all(target.key in errors for target in targets):
                # Single requests failed, too, so it is not known whether the server lacks bulk requests.
                raise next(iter(errors.values())) from error
            self._do_without_bulk(error)
            return errors

    def _delete_many(self, container: str, targets: Sequence[Target]) -> dict[str, ChunkStoreError]:
        with translated(self._store, container):
            answer = self._client.delete_objects(
                Bucket=container,
                Delete={"Objects": [target.entry() for target in targets], "Quiet": False},
            )
        deleted = {target for entry in answer.get("Deleted", ()) for target in _targets_of(entry)}
        codes = {
            target: entry.get("Code", "")
            for entry in answer.get("Errors", ())
            for target in _targets_of(entry)
        }
        errors: dict[str, ChunkStoreError] = {}
        for target in targets:
            error: ChunkStoreError | None = None
            if target in codes:
                operation = "DeleteObjects" if target.version is None else "DeleteObjectVersion"
                error = of_key(codes[target], operation, self._store, container, target.key)
            elif target not in deleted:
                error = Unavailable(
                    "the store does not say whether it was deleted",
                    store=self._store,
                    container=container,
                    key=target.key,
                )
            if error is not None and target.key not in errors:
                errors[target.key] = self._explained(error, container, target, errors)
        return errors

    def _one_by_one(self, container: str, targets: Sequence[Target]) -> dict[str, ChunkStoreError]:
        errors: dict[str, ChunkStoreError] = {}
        for number, target in enumerate(targets):
            try:
                with suppress(NotFound), translated(self._store, container, target.key):
                    self._client.delete_object(Bucket=container, **target.entry())
            except Unavailable as error:
                if len(targets) == 1:
                    raise
                # The other keys would fail in the same way, each after its own timeout.
                errors.update({other.key: error for other in targets[number:] if other.key not in errors})
                break
            except ChunkStoreError as error:
                if len(targets) == 1 and target.version is None:
                    raise
                errors.setdefault(target.key, self._explained(error, container, target, errors))
        return errors

    def _do_without_bulk(self, error: ChunkStoreError) -> None:
        with self._lock:
            if self.bulk == 1:
                return
            self.bulk = 1
        LOG.warning(
            "Store %s takes no requests that delete many objects (%s): deleting one by one from now on; "
            "bulk_delete_size = 1 does so from the start",
            self._store,
            error.reason,
        )

    def _explained(
        self,
        error: ChunkStoreError,
        container: str,
        target: Target,
        others: Mapping[str, ChunkStoreError],
    ) -> ChunkStoreError:
        """Find out whether a lock or a missing permission is the reason: servers use one code for both.

        It asks about one object of a call; the others that are refused get the same answer.
        """
        if target.version is None or not isinstance(error, PermissionDenied) or error.temporary:
            return error
        asked = [other for other in others.values() if isinstance(other, PermissionDenied)]
        if asked and not isinstance(asked[0], Retained):
            return error
        if asked:
            reason: str | None = asked[0].reason
            until = asked[0].until if isinstance(asked[0], Retained) else None
        else:
            reason, until = self._lock_of(container, target)
        if reason is None:
            return error
        made = Retained(reason, until=until, store=self._store, container=container, key=target.key)
        made.__cause__ = error
        return made

    def _lock_of(self, container: str, target: Target) -> tuple[str | None, datetime | None]:
        """Say what keeps a version from being deleted, and until when.

        Both are None if it is no lock, or if that cannot be asked for; a hold has no end.
        """
        where = {"Bucket": container, **target.entry()}
        with suppress(ChunkStoreError), translated(self._store, container, target.key):
            mode, until = retention(self._client.get_object_retention(**where))
            if until is not None:
                until = until.astimezone(UTC)
                return f"the store's object lock keeps it until {until:%Y-%m-%d %H:%M} UTC ({mode})", until
        with suppress(ChunkStoreError), translated(self._store, container, target.key):
            found = self._client.get_object_legal_hold(**where).get("LegalHold") or {}
            if found.get("Status") == "ON":
                return "a legal hold keeps it until somebody takes it away", None
        return None, None

    # ---- versions ------------------------------------------------------------------------------------

    def _versions_of(self, container: str, keys: Sequence[str]) -> Sequence[Target]:
        """Return every version of the keys.

        One listing has them all, and what lies between them: keys of one call mostly are neighbours.  If they
        are not, each key gets a listing of its own.
        """
        wanted = frozenset(keys)
        last = max(wanted)
        found: list[_Version] = []
        budget = len(wanted)
        for page in self._version_pages(container, _common(keys)):
            found += [version for version in page if version.target.key in wanted]
            if self._sorted and page and max(version.target.key for version in page) > last:
                break
            budget -= 1
            if not budget and len(wanted) > 1:
                return [target for key in keys for target in self._versions_of(container, [key])]
        return _oldest_first(found)

    def _version_pages(self, container: str, prefix: str) -> Iterator[Sequence[_Version]]:
        """Yield pages of versions, the newest of each key first."""
        for page in version_pages(self._client, self._store, container, prefix):
            yield [
                _Version(Target(entry["Key"], entry.get("VersionId") or "null"), is_marker)
                for entry, is_marker in page
                if entry["Key"].startswith(prefix)
            ]


def version_pages(
    client: Any, store: str, container: str, prefix: str = ""
) -> Iterator[Sequence[tuple[Mapping[str, Any], bool]]]:
    """Yield the versions in a bucket by pages, the newest of each key first.

    :param client: boto3's.
    :param store: its name, for errors.
    :param prefix: of the keys.
    :returns: of each version, what the server says of it, and whether it is a delete marker.
    :raises ChunkStoreError: the server does not answer, or cuts the listing off.
    """
    where = {"Bucket": container, **({"Prefix": prefix} if prefix else {})}
    arguments = where
    while True:
        with translated(store, container):
            page = client.list_object_versions(**arguments)
        yield [
            (entry, kind == "DeleteMarkers")
            for kind in ("Versions", "DeleteMarkers")
            for entry in page.get(kind, ())
        ]
        if not page.get("IsTruncated"):
            return
        following = {
            name: page[f"Next{name}"] for name in ("KeyMarker", "VersionIdMarker") if page.get(f"Next{name}")
        }
        if not following or following.items() <= arguments.items():
            raise ChunkStoreError(
                "the listing of versions is cut off and cannot be continued",
                store=store,
                container=container,
            )
        arguments = where | following


def _oldest_first(found: Sequence[_Version]) -> Sequence[Target]:
    """Return the targets in the order in which a delete that is cut off brings no older version back."""
    # A marker that hides the rest goes last.
    return [
        version.target for marker in (False, True) for version in reversed(found) if version.marker is marker
    ]


def _common(keys: Sequence[str]) -> str:
    """Return what all keys begin with."""
    first, last = min(keys), max(keys)
    length = next((at for at, char in enumerate(first) if last[at] != char), len(first))
    return first[:length]


def _targets_of(entry: Mapping[str, Any]) -> Iterator[Target]:
    """Yield what an entry of an answer is about, as far as servers differ in saying so."""
    # For a plain delete, Ceph names an empty version.
    key, version = entry.get("Key", ""), entry.get("VersionId") or None
    yield Target(key, version)
    if version is None:
        # Some servers leave out the version ``null``, and name a deleted marker in another field.
        yield Target(key, "null")
        yield Target(key, entry.get("DeleteMarkerVersionId"))


def _has_no_bulk(error: ChunkStoreError) -> bool:
    """Say whether a bulk request failed as it does where there are none, or none of this form."""
    code, status = code_of(error)
    if isinstance(error, NotFound):
        return code != "NoSuchBucket"
    # With any other meaning, e.g. expired credentials, single requests would fail alike.
    return isinstance(error, NotSupported) or (
        type(error) is ChunkStoreError and code not in CODES and status in _NO_BULK
    )
