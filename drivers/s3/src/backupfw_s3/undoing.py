"""Brings back what somebody hid or overwrote in a bucket that keeps versions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from backupfw.chunkstore.errors import ChunkStoreError, PermissionDenied
from backupfw_s3.deleting import version_pages
from backupfw_s3.errors import code_of, translated
from backupfw_s3.locking import REFUSED, retention


class _Version(NamedTuple):
    """A version of an object, or a delete marker."""

    key: str
    id: str
    made_at: datetime
    marker: bool
    latest: bool


class Undoing:
    """Brings objects of one store back.

    :param client: the SDK's client.
    :param store: the store's name, for errors.
    :param sorted_listing: the server lists sorted: then memory is bounded by a page.
    :param put_arguments: what every put says of how the object is to be kept.
    """

    def __init__(
        self, client: Any, store: str, sorted_listing: bool, put_arguments: Mapping[str, Any]
    ) -> None:
        self._client = client
        self._store = store
        self._sorted = sorted_listing
        self._put_arguments = put_arguments

    def run(
        self, container: str, before: datetime, wanted: Callable[[str], bool], dry_run: bool
    ) -> Iterator[str]:
        """See :meth:`backupfw.chunkstore.base.ChunkStore.bring_back`."""
        for versions in self._keys(container, wanted):
            newest_first = sorted(versions, key=lambda one: (one.latest, one.made_at), reverse=True)
            then = next((one for one in newest_first if one.made_at <= before), None)
            if then is None or then.marker or then is newest_first[0]:
                # It was not there at that moment, or has not changed since.
                continue
            if not dry_run:
                self._bring_back(container, then, newest_first[: newest_first.index(then)])
            yield then.key

    def _bring_back(self, container: str, then: _Version, newer: Sequence[_Version]) -> None:
        try:
            for one in newer:
                with translated(self._store, container, one.key):
                    self._client.delete_object(Bucket=container, Key=one.key, VersionId=one.id)
        except PermissionDenied:
            # Whoever put it has locked it: what was there goes on top again.
            self._copy_on_top(container, then)

    def _copy_on_top(self, container: str, then: _Version) -> None:
        this = {"Bucket": container, "Key": then.key, "VersionId": then.id}
        arguments: dict[str, Any] = dict(self._put_arguments)
        try:
            with translated(self._store, container, then.key):
                mode, until = retention(self._client.get_object_retention(**this))
        except ChunkStoreError as error:
            if code_of(error)[0] not in REFUSED:
                raise
            mode = until = None
        if until is not None and until > datetime.now(UTC):
            arguments.update(ObjectLockMode=mode, ObjectLockRetainUntilDate=until)
        with translated(self._store, container, then.key):
            self._client.copy_object(Bucket=container, Key=then.key, CopySource=this, **arguments)

    def _keys(self, container: str, wanted: Callable[[str], bool]) -> Iterator[list[_Version]]:
        """Yield all versions of each key."""
        open_keys: dict[str, list[_Version]] = {}
        for page in self._pages(container):
            for one in page:
                if wanted(one.key):
                    open_keys.setdefault(one.key, []).append(one)
            if self._sorted and page:
                # The next page may go on with the last key.
                last = max(one.key for one in page)
                for key in sorted(open_keys):
                    if key < last:
                        yield open_keys.pop(key)
        yield from open_keys.values()

    def _pages(self, container: str) -> Iterator[list[_Version]]:
        for page in version_pages(self._client, self._store, container):
            yield [
                _Version(
                    one["Key"],
                    one.get("VersionId") or "null",
                    one["LastModified"],
                    is_marker,
                    bool(one.get("IsLatest")),
                )
                for one, is_marker in page
            ]
