"""The chunk store on S3."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
)
from backupfw_s3 import options as s3_options
from backupfw_s3.answers import (
    CHECKSUM_FIELD,
    PastTheEnd,
    WrongRange,
    md5_of,
    problem_of_whole,
    require_range,
)
from backupfw_s3.bodies import BodyFile, Digests, WrongBody, digest
from backupfw_s3.checking import Checking
from backupfw_s3.client import make_client, sends_checksums
from backupfw_s3.deleting import Deleting
from backupfw_s3.errors import code_of, translated
from backupfw_s3.locking import REFUSED, in_seconds, retention
from backupfw_s3.undoing import Undoing

if TYPE_CHECKING:
    from oslo_config import cfg


class S3Store(ChunkStore):
    """Containers are buckets, objects are objects.

    Every object carries its BLAKE3 as metadata, so that whole reads are verified on any server, however
    it encrypts and whatever its ETags are.
    """

    wire_name = "cinder.backup.drivers.s3.S3BackupDriver"
    # What all S3 servers take: host name labels, nothing that looks like an address or is reserved.
    container_pattern = (
        r"(?!xn--)(?!.*(?:-s3alias|--ol-s3|--x-s3)$)(?!\d+\.\d+\.\d+\.\d+$)(?!.*\.\.)(?!.*(?:\.-|-\.))"
        r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"
    )
    object_lock = True

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(name, options)
        s3_options.require_consistent(options)
        aws = s3_options.is_aws(options)
        self._etag_is_md5: bool = options.etag_is_md5
        self._with_crc32 = sends_checksums(options)
        # What every put says of how the object is to be kept.
        self._put_arguments, self._get_arguments = _encryption(options)
        if options.storage_class:
            self._put_arguments["StorageClass"] = options.storage_class
        self._capabilities = Capabilities(
            if_absent=aws if options.conditional_put == "auto" else options.conditional_put == "yes",
            bulk_delete=options.bulk_delete_size,
            listing_lag=options.listing_lag,
            sorted_listing=options.sorted_listing,
        )
        # Containers that were there when this process looked.
        self._known: set[str] = set()
        self._closed = False
        self.client = make_client(options)
        # Whether new buckets are made for locks, and the mode of new locks as S3 calls it.
        self._locks = bool(getattr(options, "lock_days", 0))
        self._lock_mode: str = options.lock_mode.upper()
        self._checking = Checking(self, self.client, options, self._put_arguments, self._locks)
        self._deleting = Deleting(
            self.client, name, options.bulk_delete_size, options.delete_versions, options.sorted_listing
        )
        self._location: str | None = options.bucket_location
        if not self._location and aws and self.client.meta.region_name != "us-east-1":
            # AWS needs the region as location constraint, except for its first one, us-east-1.
            self._location = self.client.meta.region_name

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the driver's options."""
        return s3_options.options()

    @property
    def capabilities(self) -> Capabilities:
        """As configured, which ``check`` compares with the server; without bulk deletes once it has none."""
        return dataclasses.replace(self._capabilities, bulk_delete=self._deleting.bulk)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Send the body in one request, with its MD5 for the server (see :meth:`ChunkStore.put`)."""
        self._require_open()
        if if_absent and not self._capabilities.if_absent:
            raise NotSupported(
                "conditional puts are not declared (conditional_put)",
                store=self.name,
                container=container,
                key=key,
            )
        self._require_container(container)
        digests = self._digest(body, container, key)
        arguments: dict[str, Any] = {
            "Bucket": container,
            "Key": key,
            "ContentLength": body.length,
            "ContentMD5": digests.md5,
            "ContentType": "application/octet-stream",
            "Metadata": {CHECKSUM_FIELD: body.checksum.hex()},
            **self._put_arguments,
        }
        if digests.crc32:
            arguments["ChecksumCRC32"] = digests.crc32
        if if_absent:
            arguments["IfNoneMatch"] = "*"
        if body.locked_until is not None:
            arguments["ObjectLockMode"] = self._lock_mode
            arguments["ObjectLockRetainUntilDate"] = in_seconds(body.locked_until)
        try:
            with translated(self.name, container, key), BodyFile(body) as file:
                answer = self.client.put_object(Body=file, **arguments)
        except NotFound:
            self._known.discard(container)
            raise
        except ChunkStoreError as error:
            if body.locked_until is not None and code_of(error)[0] in REFUSED:
                raise self._without_locks(container, key) from error
            raise
        if self._etag_is_md5 and md5_of(answer) not in (None, digests.md5_hex):
            # The server did not compare them.  The wrong object must not stay.
            with suppress(ChunkStoreError):
                self.delete(container, [key])
            raise self._damaged("the store received other bytes than were sent", container, key)

    def _require_container(self, container: str) -> None:
        """Look once whether a container is there: some servers make it when an object is put.

        :raises NotFound: it is not.
        """
        if container not in self._known:
            with translated(self.name, container):
                self.client.list_objects_v2(Bucket=container, MaxKeys=1)
            self._known.add(container)

    def _digest(self, body: Body, container: str, key: str) -> Digests:
        where: Any = {"store": self.name, "container": container, "key": key}
        try:
            return digest(body, self._with_crc32)
        except WrongBody as error:
            raise IntegrityError(str(error), **where) from error
        except OSError as error:
            # An error of the source, not of the store: it is not translated, and not tried again.
            raise ChunkStoreError(f"the body cannot be read: {error.strerror}", **where) from error

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Return the object or a range of it (see :meth:`ChunkStore.get`)."""
        self._require_open()
        if offset is None or length is None:
            return self._get_whole(container, key)
        with translated(self.name, container, key):
            answer = self.client.get_object(
                Bucket=container,
                Key=key,
                Range=f"bytes={offset}-{offset + length - 1}",
                **self._get_arguments,
            )
            with closing(answer["Body"]) as stream:
                try:
                    # Check before any byte is read, because the answer may be the whole object.
                    require_range(answer, offset, length)
                except PastTheEnd as error:
                    raise RangeError(str(error), store=self.name, container=container, key=key) from error
                except WrongRange as error:
                    raise self._damaged(str(error), container, key) from error
                data: bytes = stream.read()
        if len(data) != length:
            raise self._damaged(f"{len(data)} of {length} bytes came", container, key)
        return data

    def _get_whole(self, container: str, key: str) -> bytes:
        with translated(self.name, container, key):
            answer = self.client.get_object(Bucket=container, Key=key, **self._get_arguments)
            with closing(answer["Body"]) as stream:
                data: bytes = stream.read()
        problem = problem_of_whole(answer, data, self._etag_is_md5)
        if problem:
            raise self._damaged(problem, container, key)
        return data

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects, page by page (see :meth:`ChunkStore.list`)."""
        arguments: dict[str, Any] = {"Bucket": container, "Prefix": prefix}
        if start_after:
            arguments["StartAfter"] = start_after
        while True:
            self._require_open()
            with translated(self.name, container):
                page = self.client.list_objects_v2(**arguments)
            for entry in page.get("Contents", ()):
                # Servers that keep folders normalise the prefix, and list more than was asked for.
                if entry["Key"].startswith(prefix):
                    yield ObjectInfo(entry["Key"], entry["Size"])
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken")
            if not token or token == arguments.get("ContinuationToken"):
                # It cannot be continued, and to stop here would present a part as the whole listing.
                raise ChunkStoreError(
                    "the listing is cut off and cannot be continued", store=self.name, container=container
                )
            arguments.pop("StartAfter", None)
            arguments["ContinuationToken"] = token

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete in bulk requests, one by one, or every version (see :meth:`ChunkStore.delete`)."""
        self._require_open()
        if errors := self._deleting.delete(container, keys):
            raise DeleteFailed(errors, store=self.name, container=container)

    def erase(self, container: str, prefix: str) -> None:
        """Delete all versions of everything below the prefix (see :meth:`ChunkStore.erase`)."""
        self._require_open()
        try:
            self._deleting.erase(container, prefix)
        except NotSupported:
            super().erase(container, prefix)
        except PermissionDenied:
            if self._may_keep_versions(container):
                raise
            super().erase(container, prefix)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Lock the object as it is now (see :meth:`ChunkStore.lock`)."""
        self._require_open()
        until = in_seconds(until)
        try:
            self._lock(container, key, until, self._lock_mode)
        except PermissionDenied:
            # Servers refuse to shorten a lock, and to change its mode, with the code of a missing permission.
            mode, end = self._retention(container, key)
            if end is not None and end >= until:
                return
            if mode in (None, self._lock_mode):
                raise
            self._lock(container, key, until, mode)

    def _lock(self, container: str, key: str, until: datetime, mode: str) -> None:
        try:
            with translated(self.name, container, key):
                self.client.put_object_retention(
                    Bucket=container, Key=key, Retention={"Mode": mode, "RetainUntilDate": until}
                )
        except ChunkStoreError as error:
            if code_of(error)[0] in REFUSED:
                raise self._without_locks(container, key) from error
            raise

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Ask for the lock of the object as it is now (see :meth:`ChunkStore.locked_until`)."""
        self._require_open()
        end = self._retention(container, key)[1]
        return end if end is not None and end > datetime.now(end.tzinfo) else None

    def _retention(self, container: str, key: str) -> tuple[str | None, datetime | None]:
        try:
            with translated(self.name, container, key):
                return retention(self.client.get_object_retention(Bucket=container, Key=key))
        except ChunkStoreError as error:
            if code_of(error)[0] in REFUSED:
                return None, None
            raise

    def _without_locks(self, container: str, key: str) -> NotSupported:
        return NotSupported(
            "the store refuses the lock: the bucket must have been made with object lock (lock_days)",
            store=self.name,
            container=container,
            key=key,
            for_user="The store's container cannot lock objects, as the service is configured to.",
        )

    def _may_keep_versions(self, container: str) -> bool:
        try:
            with translated(self.name, container):
                return bool(self.client.get_bucket_versioning(Bucket=container).get("Status"))
        except ChunkStoreError:
            return True

    def bring_back(
        self, container: str, before: datetime, wanted: Callable[[str], bool], *, dry_run: bool = False
    ) -> Iterator[str]:
        """Delete what came on top, or copy the older version there (see :meth:`ChunkStore.bring_back`)."""
        self._require_open()
        undoing = Undoing(self.client, self.name, self._capabilities.sorted_listing, self._put_arguments)
        return undoing.run(container, before, wanted, dry_run)

    def inspect(self, container: str) -> Sequence[CheckItem]:
        """Ask for versioning and object lock."""
        return self._checking.inspect(container)

    def ensure_container(self, container: str) -> None:
        """Make the bucket unless it is there."""
        self._require_open()
        try:
            self._require_container(container)
        except NotFound:
            self._make_container(container)

    def _make_container(self, container: str) -> None:
        arguments: dict[str, Any] = {"Bucket": container}
        if self._locks:
            arguments["ObjectLockEnabledForBucket"] = True
        if self._location:
            arguments["CreateBucketConfiguration"] = {"LocationConstraint": self._location}
        try:
            with translated(self.name, container):
                self.client.create_bucket(**arguments)
        except ChunkStoreError:
            # Somebody made it meanwhile, if it is there now and may be listed.
            try:
                self._require_container(container)
            except ChunkStoreError:
                pass
            else:
                return
            raise
        self._known.add(container)

    def list_containers(self) -> Iterator[str]:
        """Yield the names of the account's buckets, sorted."""
        self._require_open()
        names: list[str] = []
        arguments: dict[str, Any] = {}
        while True:
            with translated(self.name):
                page = self.client.list_buckets(**arguments)
            names += [bucket["Name"] for bucket in page.get("Buckets", ())]
            token = page.get("ContinuationToken")
            if not token or token == arguments.get("ContinuationToken"):
                break
            arguments["ContinuationToken"] = token
        yield from sorted(names)

    def check(self) -> CheckReport:
        """Try everything the program does, and what the options declare of the server."""
        return self._checking.check()

    def close(self) -> None:
        """Close all connections."""
        if not self._closed:
            self._closed = True
            self.client.close()

    def _require_open(self) -> None:
        """Refuse to work when closed.

        :raises ChunkStoreError: it is.
        """
        if self._closed:
            raise ChunkStoreError("the store is closed", store=self.name)

    def _damaged(self, reason: str, container: str, key: str) -> IntegrityError:
        # Temporary: a second try shows whether the bytes were only damaged on the way.
        return IntegrityError(reason, store=self.name, container=container, key=key, temporary=True)


def _encryption(options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arguments that writing, and that reading, needs for encryption by the server."""
    if options.server_encryption == "sse-s3":
        return {"ServerSideEncryption": "AES256"}, {}
    if options.server_encryption == "sse-kms":
        arguments = {"ServerSideEncryption": "aws:kms"}
        if options.kms_key_id:
            arguments["SSEKMSKeyId"] = options.kms_key_id
        return arguments, {}
    key = s3_options.customer_key(options)
    if key is None:
        return {}, {}
    with_key = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
    return dict(with_key), dict(with_key)
