"""The chunk store on Google Cloud Storage: a container is a bucket, a key an object's name."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.checks import round_trip, try_item
from backupfw.chunkstore.errors import ChunkStoreError, DeleteFailed, IntegrityError
from backupfw.chunkstore.options import ConfigError
from backupfw_gcs import media
from backupfw_gcs import options as gcs_options
from backupfw_gcs.deleting import delete_batch, delete_each
from backupfw_gcs.errors import ERRORS, Refused, translate, translated
from backupfw_gcs.inspecting import inspect
from backupfw_gcs.link import Link, field

if TYPE_CHECKING:
    from oslo_config import cfg

#: Objects per page of a listing: the most the service gives.
_PAGE = 1000


class GcsStore(ChunkStore):
    """Objects in buckets.  Nothing is asked of the service before the first call."""

    wire_name = "cinder.backup.drivers.gcs.GoogleBackupDriver"
    # Google's rules: 3 to 63 of a-z 0-9 - _, more with dots (each part up to 63), letter or digit at both
    # ends, no address, and not its own name.
    container_pattern = (
        r"(?!goog)(?!.*google)(?!\d+\.\d+\.\d+\.\d+$)(?=.{3,222}$)"
        r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?)*"
    )

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(name, options)
        if options.anonymous and options.service_account_file:
            raise ConfigError("options anonymous and service_account_file exclude each other")
        self._link = Link(name, options)
        self._storage_class: str | None = options.storage_class.upper() if options.storage_class else None
        self._location: str | None = options.location
        self._bulk: int = options.bulk_delete_size
        self._checked_bucket: str | None = options.check_bucket

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the driver's options."""
        return gcs_options.options()

    @property
    def capabilities(self) -> Capabilities:
        """Conditional puts; deletes in batches; ranges some 30 ms of transfer apart are read as one."""
        return Capabilities(if_absent=True, bulk_delete=self._bulk, join_gap=2 << 20)

    @contextmanager
    def _calling(self, container: str = "", key: str = "", needs: str = "") -> Iterator[None]:
        """Translate the errors of requests, and name the object in our own."""
        try:
            with translated(self.name, container, key, needs):
                yield
        except media.SourceError as error:
            # An error of the source, not of the store: it is not translated, and not tried again.
            raise ChunkStoreError(str(error), store=self.name, container=container, key=key) from error
        except ChunkStoreError as error:
            if error.store:
                raise
            raise type(error)(
                error.reason, store=self.name, container=container, key=key, temporary=error.temporary
            ) from error.__cause__

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Send the object with its CRC32C and compare what was stored (see :meth:`ChunkStore.put`).

        The body is read twice: to verify it and compute the CRC32C, then to send it.
        """
        with self._calling(container, key, "storage.objects.create; storage.objects.delete to replace"):
            crc32c = media.crc32c_of(body)
            stored = media.upload(
                self._link,
                container,
                key,
                body,
                crc32c,
                if_absent=if_absent,
                storage_class=self._storage_class,
            )
            if (stored.size, stored.crc32c) != (body.length, crc32c):
                # The service refuses such bytes; a server that does not must not be left with them.
                with suppress(*ERRORS):
                    media.remove_generation(self._link, container, key, stored.generation)
                raise IntegrityError("the server stored other bytes than were sent", temporary=True)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Read the object, compared with its CRC32C, or a range (see :meth:`ChunkStore.get`)."""
        with self._calling(container, key, "storage.objects.get"):
            if offset is None or length is None:
                return media.download(self._link, container, key)
            return media.download_range(self._link, container, key, offset, length)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """List page by page (see :meth:`ChunkStore.list`)."""
        with self._calling(container, needs="storage.objects.list"):
            for page in self._pages(container, prefix, start_after, _PAGE):
                for item in page:
                    info = ObjectInfo(field(item, "name"), int(field(item, "size")))
                    # The offset itself is included in what the service lists.
                    if info.key > start_after:
                        yield info

    def _pages(self, container: str, prefix: str, offset: str, size: int) -> Iterator[Sequence[Any]]:
        asked = {"prefix": prefix, "startOffset": offset, "maxResults": str(size)}
        query = {name: value for name, value in asked.items() if value}
        path = f"/storage/v1/b/{quote(container, safe='')}/o"
        return self._link.pages(path, {**query, "fields": "items(name,size),nextPageToken"})

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete in batches (see :meth:`ChunkStore.delete`)."""
        unique = list(dict.fromkeys(keys))
        batches = [unique[start : start + self._bulk] for start in range(0, len(unique), self._bulk)]
        errors: dict[str, ChunkStoreError] = {}
        reached = not batches
        for batch in batches:
            try:
                with self._calling(container, needs="storage.objects.delete"):
                    found = self._delete_batch(container, batch)
                    reached = True
            except ChunkStoreError as error:
                errors |= dict.fromkeys(batch, error)
            else:
                errors |= {key: self._delete_error(error, container, key) for key, error in found.items()}
        if not reached:
            # The requests failed as a whole: one error says more than the same one for each key.
            raise errors[unique[0]]
        if errors:
            raise DeleteFailed(errors, store=self.name, container=container)

    def _delete_batch(self, container: str, batch: Sequence[str]) -> dict[str, Exception]:
        if self._bulk > 1:
            return delete_batch(self._link, container, batch)
        found = delete_each(self._link, container, batch)
        for error in found.values():
            if not isinstance(error, Refused):
                raise error
        return found

    def _delete_error(self, error: Exception, container: str, key: str) -> ChunkStoreError:
        made = translate(error, self.name, container, key, "storage.objects.delete")
        made.__cause__ = error
        return made

    def inspect(self, container: str) -> Sequence[CheckItem]:
        """Ask for versioning, soft delete and retention."""
        return inspect(self._link, self.name, container)

    def ensure_container(self, container: str) -> None:
        """Make the bucket unless it is there: uniform access, closed to the public.

        Whether it is there is asked by a listing, which takes no permission beyond what backups need.
        """
        with self._calling(container, needs="storage.objects.list"):
            if self._is_there(container):
                return
        try:
            with self._calling(container, needs="storage.buckets.create"):
                self._create(container)
        except ChunkStoreError as error:
            cause = error.__cause__
            if not (isinstance(cause, Refused) and cause.status == 409):
                raise
            # Made by somebody at the same time, or taken by another customer.
            with self._calling(container, needs="storage.objects.list; the name may be another customer's"):
                if not self._is_there(container):
                    raise

    def _is_there(self, container: str) -> bool:
        try:
            next(self._pages(container, "", "", 1))
        except Refused as error:
            if error.status != 404:
                raise
            return False
        return True

    def _create(self, container: str) -> None:
        bucket: dict[str, Any] = {
            "name": container,
            "iamConfiguration": {
                "uniformBucketLevelAccess": {"enabled": True},
                "publicAccessPrevention": "enforced",
            },
        }
        if self._location:
            bucket["location"] = self._location
        if self._storage_class:
            bucket["storageClass"] = self._storage_class
        self._link.request(
            "POST",
            f"/storage/v1/b?{urlencode({'project': self._link.project, 'prettyPrint': 'false'})}",
            data=json.dumps(bucket),
            headers={"Content-Type": "application/json"},
        )

    def list_containers(self) -> Iterator[str]:
        """Yield the project's buckets, sorted."""
        with self._calling(needs="storage.buckets.list"):
            query = {"project": self._link.project, "fields": "items(name),nextPageToken"}
            names = sorted(
                str(item["name"]) for page in self._link.pages("/storage/v1/b", query) for item in page
            )
        yield from names

    def check(self) -> CheckReport:
        """Try the credentials, a bucket, a round trip in it and the list of buckets."""
        items = [try_item("credentials", self._check_credentials)]
        if not items[0].ok:
            return CheckReport(tuple(items))
        container = self._checked_bucket or f"backupfw-check-{secrets.token_hex(12)}"
        items.append(self._check_bucket(container))
        if items[-1].ok:
            try:
                items += round_trip(self, container)
            finally:
                if not self._checked_bucket:
                    items.append(try_item("remove", lambda: self._remove(container)))
        items.append(try_item("containers", self._check_buckets))
        return CheckReport(tuple(items))

    def _check_credentials(self) -> str | None:
        with self._calling():
            return self._link.identity()

    def _check_bucket(self, container: str) -> CheckItem:
        item = try_item("container", lambda: self.ensure_container(container))
        if not item.ok and not self._checked_bucket:
            return CheckItem(
                "container", False, f"{item.detail}; to check in an existing bucket, set check_bucket"
            )
        return item

    def _check_buckets(self) -> str | None:
        count = sum(1 for _ in self.list_containers())
        return f"{count} in project {self._link.project}"

    def _remove(self, container: str) -> None:
        with self._calling(container, needs="storage.buckets.delete"):
            self._link.request("DELETE", f"/storage/v1/b/{quote(container, safe='')}", headers={})

    def close(self) -> None:
        """Close the connections."""
        self._link.close()
