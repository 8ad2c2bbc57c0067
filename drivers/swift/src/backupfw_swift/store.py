"""The chunk store on OpenStack Object Storage."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from urllib.parse import quote

from blake3 import blake3

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.checks import Caution, round_trip, try_item
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    InvalidName,
    NotFound,
    NotSupported,
    PermissionDenied,
    Unavailable,
)
from backupfw_swift import bulk, features, reading
from backupfw_swift import options as swift_options
from backupfw_swift.auth import authenticator
from backupfw_swift.errors import Refused, status_error, translated
from backupfw_swift.features import Features
from backupfw_swift.tokens import Grant, Tokens
from backupfw_swift.transport import Transport

if TYPE_CHECKING:
    import requests
    from oslo_config import cfg

T = TypeVar("T")

#: Bodies up to this many bytes are sent in one piece, larger ones from the body's file.
_ONE_PIECE = 64 << 20
#: Seconds in which a cluster that did not describe itself is not asked again for that alone.
_ASK_PAUSE = 30.0
#: How often, and how many seconds apart, ``check`` tries to remove its container, whose object the
#: listing may still show.
_REMOVE_TRIES, _REMOVE_PAUSE = 5, 0.4

#: Headers of a container that keeps what is overwritten or deleted.
_VERSIONING = ("x-versions-enabled", "x-versions-location", "x-history-location")


class SwiftStore(ChunkStore):
    """Objects in the containers of one account.

    One token is shared by all threads, connections are pooled.  A request that is refused with 401 is
    sent once more with a new token; nothing else is ever sent twice.

    :raises ChunkStoreError: the options do not fit together.
    """

    wire_name = "cinder.backup.drivers.swift.SwiftBackupDriver"
    container_pattern = r"[^/]+"
    layer_defaults: ClassVar[dict[str, object]] = {}

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(name, options)
        problem = swift_options.missing(options)
        if problem:
            raise ChunkStoreError(problem, store=name)
        self._transport = Transport(options)
        self._tokens = Tokens(authenticator(name, options, self._transport), options.token_renew_before)
        self._policy: str | None = options.storage_policy
        self._check_container: str | None = options.check_container
        self._bulk_size: int = options.bulk_delete_size if options.bulk_delete else 0
        self._closed = False
        self._features: Features | None = None
        self._features_lock = threading.Lock()
        self._ask_again = 0.0

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the driver's options."""
        return swift_options.options()

    @property
    def capabilities(self) -> Capabilities:
        """Bulk deletes if the cluster says so; it is asked once.

        While it cannot be asked, the answer is that it has none, which is slower but never wrong.  No
        conditional puts: Swift lets several racing writers win.  Listings come from other servers than
        objects, which are told of changes later when they are busy.
        """
        return Capabilities(
            if_absent=False,
            bulk_delete=max(1, self._bulk_limit()),
            listing_lag=True,
            sorted_listing=True,
            join_gap=1 << 20,
        )

    def _bulk_limit(self) -> int:
        """Return how many objects one request deletes; 0 means that there are no bulk deletes."""
        if not self._bulk_size:
            return 0
        try:
            found = self._ask_features()
        except ChunkStoreError:
            return 0
        return min(self._bulk_size, found.bulk_delete)

    def _ask_features(self) -> Features:
        """Return what the cluster can do, asking it at the first time.

        :raises ChunkStoreError: it cannot be asked, or could not a moment ago.
        """
        if self._features is None:
            with self._features_lock:
                if self._features is None:
                    if time.monotonic() < self._ask_again:
                        raise Unavailable("the server did not answer a moment ago", store=self.name)
                    self._ask_again = time.monotonic() + _ASK_PAUSE
                    self._features = self._call(lambda grant: features.ask(grant.url, self._transport))
        return self._features

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Send the body with its MD5, so that the server refuses other bytes (see :meth:`ChunkStore.put`).

        :raises NotSupported: ``if_absent``.
        """
        self._require_open()
        if if_absent:
            raise NotSupported("Swift has no atomic conditional put", store=self.name)
        data, etag = self._judged(body, container, key)
        headers = {"ETag": etag, "Content-Type": "application/octet-stream"}
        try:
            answer = self._ask(
                "PUT", container, key, headers=headers, data=_Pieces(body) if data is None else data
            )
        except Unavailable as error:
            if not isinstance(error.__cause__, Refused):
                self._tokens.doubt()
            raise
        if answer.status_code == 202:
            self._overtaken(container, key)
        elif answer.headers.get("ETag", "").strip('"') != etag:
            raise IntegrityError(
                "the server stored something else than was sent",
                store=self.name,
                container=container,
                key=key,
                temporary=True,
            )

    def _judged(self, body: Body, container: str, key: str) -> tuple[bytes | None, str]:
        """Compare the body with what it declares; return its bytes, unless it is large, and its MD5."""
        hasher, etag = blake3(), hashlib.md5(usedforsecurity=False)
        length = 0
        try:
            data = body.to_bytes() if body.length <= _ONE_PIECE else None
            for piece in (data,) if data is not None else body.pieces():
                hasher.update(piece)
                etag.update(piece)
                length += len(piece)
        except OSError as error:
            raise ChunkStoreError(
                f"the body cannot be read: {error.strerror}", store=self.name, container=container, key=key
            ) from error
        problem = None
        if length != body.length:
            problem = f"the body has {length} bytes, {body.length} were declared"
        elif hasher.digest() != body.checksum:
            problem = "the body's bytes do not match the declared checksum"
        if problem:
            raise IntegrityError(problem, store=self.name, container=container, key=key)
        return data, etag.hexdigest()

    def _overtaken(self, container: str, key: str) -> None:
        """Judge a put that the server did not store, because it knows of a newer put or delete of the key.

        After a newer put, the result is the same as if this put had come just before it.  After a delete to
        which another server's clock gave a later time, nothing is stored: that is an error.
        """
        try:
            self._ask("HEAD", container, key)
        except NotFound as error:
            raise Unavailable(
                "the server knows of a later delete of this key",
                store=self.name,
                container=container,
                key=key,
            ) from error

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Read the object, compared with its ETag, or a range of it (see :meth:`ChunkStore.get`)."""
        part = None if offset is None or length is None else (offset, length)
        headers = {"Range": f"bytes={part[0]}-{part[0] + part[1] - 1}"} if part else None

        def read(grant: Grant) -> bytes:
            with self._send(grant, "GET", _path(container, key), headers=headers, stream=True) as answer:
                if part is None:
                    return reading.read_whole(answer.headers, answer.raw)
                return reading.read_range(answer.status_code, answer.headers, answer.raw, *part)

        return self._call(read, container, key)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield page after page, as large as the server makes them (see :meth:`ChunkStore.list`).

        Ends at an empty page: a short one proves nothing.
        """
        marker = start_after
        while True:
            for entry in (page := self._page(container, {"marker": marker, "prefix": prefix})):
                yield ObjectInfo(entry["name"], int(entry["bytes"]))
            if not page:
                return
            marker = self._next_marker(page, marker)

    def _page(self, container: str, query: Mapping[str, str]) -> Sequence[dict[str, Any]]:
        """Return a page of a container's objects, or of the account's containers."""
        asked = "".join(f"&{name}={quote(value)}" for name, value in query.items() if value)

        def read(grant: Grant) -> Sequence[dict[str, Any]]:
            answer = self._send(grant, "GET", f"{_path(container)}?format=json{asked}")
            if answer.status_code == 204:
                return []
            page = answer.json()
            if not isinstance(page, list) or not all(
                isinstance(each, dict) and {"name", "bytes"} <= each.keys() for each in page
            ):
                raise ValueError("an answer that is no page of a listing")
            return page

        return self._call(read, container)

    def _next_marker(self, page: Sequence[dict[str, Any]], marker: str) -> str:
        following: str = page[-1]["name"]
        if following <= marker:
            # Otherwise the listing would never end.
            raise IntegrityError(
                "a page of the listing does not come after the last", store=self.name, temporary=True
            )
        return following

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete by bulk requests where the cluster has them (see :meth:`ChunkStore.delete`)."""
        self._require_open()
        errors: dict[str, ChunkStoreError] = {}
        asked = single = list(dict.fromkeys(keys))
        # For one object, a plain request costs the same.
        limit = self._bulk_limit() if len(single) > 1 else 0
        if limit > 1:
            lines = {key: bulk.line(container, key) for key in single}
            many = [(key, text) for key, text in lines.items() if text is not None]
            single = [key for key, text in lines.items() if text is None]
            for start in range(0, len(many), limit):
                errors.update(self._delete_many(container, many[start : start + limit]))
        for key in single:
            try:
                self._delete_one(container, key)
            except ChunkStoreError as error:
                errors[key] = error
                if isinstance(error, (PermissionDenied, Unavailable)):
                    # The other keys would fail in the same way, each after its own timeout.
                    rest = single[single.index(key) + 1 :]
                    errors.update((other, _same(error, other)) for other in rest)
                    break
        if not errors:
            return
        first = next(iter(errors.values()))
        if isinstance(first, Unavailable) and len(errors) == len(asked):
            # The requests failed as a whole: one error says more than the same one for each key.
            raise _placed(first, self.name, container, "") from first.__cause__
        raise DeleteFailed(errors, store=self.name, container=container)

    def _delete_one(self, container: str, key: str) -> None:
        try:
            self._ask("DELETE", container, key)
        except NotFound:
            return

    def _delete_many(self, container: str, lines: Sequence[tuple[str, bytes]]) -> dict[str, ChunkStoreError]:
        """Send one bulk request; return the keys that remain, or may remain, each with its error."""
        keys = [key for key, _ in lines]
        data = b"\n".join(text for _, text in lines) + b"\n"

        headers = {"Content-Type": "text/plain", "Accept": "application/json"}

        def send(grant: Grant) -> dict[str, tuple[int, str]]:
            answer = self._send(grant, "POST", "?bulk-delete", headers=headers, data=data)
            return bulk.failures(answer.content, container, keys)

        try:
            failed = self._call(send, container)
        except ChunkStoreError as error:
            return {key: _same(error, key) for key in keys}
        return {
            key: status_error(status, words, self.name, container, key)
            for key, (status, words) in failed.items()
            if status != 404
        }

    def ensure_container(self, container: str) -> None:
        """Make the container, with the storage policy of the options, unless it is there."""
        try:
            self._head_container(container)
            return
        except NotFound:
            pass
        headers = {"X-Storage-Policy": self._policy} if self._policy else {}
        try:
            self._ask("PUT", container, headers=headers)
        except ChunkStoreError as error:
            cause = error.__cause__
            status = cause.status if isinstance(cause, Refused) else None
            if status == 409:
                # Somebody made it meanwhile, with another policy.
                self._head_container(container)
                return
            if status == 400:
                what = f"the name or the storage policy {self._policy}" if self._policy else "the name"
                raise InvalidName(
                    f"the server refuses {what} (400)", store=self.name, container=container
                ) from cause
            if status == 403:
                raise PermissionDenied(
                    "the container is not there and the user may not make it (403)",
                    store=self.name,
                    container=container,
                ) from cause
            raise

    def inspect(self, container: str) -> Sequence[CheckItem]:
        """Ask whether the container keeps old versions, which the driver does not delete."""
        return (try_item("versions", lambda: self._check_versions(container)),)

    def _check_versions(self, container: str) -> str:
        try:
            headers = self._head_container(container)
        except ChunkStoreError as error:
            raise Caution(f"the container cannot be asked for its settings: {error.reason}") from error
        for name in _VERSIONING:
            # The newer form says true or false, the older ones name another container.
            if headers.get(name, "false").lower() != "false":
                raise Caution(
                    f"the container keeps old versions ({name}), so deletes free nothing: what is deleted "
                    "stays stored; switch its versioning off, or let backups go to another container"
                )
        return "the container keeps none"

    def _head_container(self, container: str) -> Mapping[str, str]:
        return self._ask("HEAD", container).headers

    def list_containers(self) -> Iterator[str]:
        """Yield the account's containers, page after page, sorted."""
        marker = ""
        while True:
            page = self._page("", {"marker": marker})
            if not page:
                return
            yield from (entry["name"] for entry in page)
            marker = self._next_marker(page, marker)

    def check(self) -> CheckReport:
        """Authenticate, ask what the cluster can do, and try a round trip.

        In a container of its own, unless the options name one.
        """
        items = [try_item("authenticate", self._check_authentication)]
        if items[0].ok:
            items.append(try_item("features", self._check_features))
            if self._check_container:
                items += round_trip(self, self._check_container)
                return CheckReport(tuple(items))
            container = f"backupfw-check-{secrets.token_hex(16)}"
            items.append(try_item("container", lambda: self.ensure_container(container)))
            if items[-1].ok:
                items += round_trip(self, container)
                items.append(try_item("remove", lambda: self._remove_container(container)))
        return CheckReport(tuple(items))

    def _check_authentication(self) -> str | None:
        self._require_open()
        lifetime = self._tokens.current().lifetime
        return f"a token for {lifetime:.0f} s" if lifetime is not None else None

    def _check_features(self) -> str | None:
        self._ask_again = 0.0
        found = self._ask_features()
        if self._policy and found.policies and self._policy not in found.policies:
            raise ChunkStoreError(
                f"the cluster has no storage policy {self._policy}, only {', '.join(found.policies)}",
                store=self.name,
            )
        words = [f"version {found.version}"] if found.version else []
        words.append(f"bulk deletes of {found.bulk_delete}" if found.bulk_delete else "no bulk deletes")
        return ", ".join(words)

    def _remove_container(self, container: str) -> None:
        for turn in range(_REMOVE_TRIES):
            try:
                self._ask("DELETE", container)
            except NotFound:
                return
            except Unavailable:
                # 409: the listing still shows the object.
                if turn == _REMOVE_TRIES - 1:
                    raise
                time.sleep(_REMOVE_PAUSE)
            else:
                return

    def close(self) -> None:
        """Close the connections; those in use when their calls end."""
        self._closed = True
        self._transport.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ChunkStoreError("the store is closed", store=self.name)

    def _send(
        self,
        grant: Grant,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | _Pieces | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send one request with the grant's token.

        :param path: what follows the account's URL, quoted.
        """
        return self._transport.request(
            method,
            grant.url + path,
            headers={"X-Auth-Token": grant.token, **(headers or {})},
            data=data,
            stream=stream,
        )

    def _ask(
        self,
        method: str,
        container: str,
        key: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | _Pieces | None = None,
    ) -> requests.Response:
        """Send a request about a container or an object by :meth:`_call`, and read the whole answer."""
        path = _path(container, key)
        return self._call(
            lambda grant: self._send(grant, method, path, headers=headers, data=data), container, key
        )

    def _call(self, action: Callable[[Grant], T], container: str = "", key: str = "") -> T:
        """Run one request; once more, with a new token, if the server refuses the token.

        That is no retry of something that failed: the first request was not looked at.

        :raises ChunkStoreError: what the request raises, translated.
        """
        self._require_open()
        try:
            with translated(self.name, container, key):
                grant = self._tokens.current()
                try:
                    return action(grant)
                except Refused as error:
                    if error.status != 401:
                        raise
                return action(self._tokens.after(grant))
        except ChunkStoreError as error:
            if not (container or key) or error.container:
                raise
            raise _placed(error, self.name, container, key) from error.__cause__


class _Pieces:
    """A large body that is sent piece by piece, each time from its start."""

    def __init__(self, body: Body) -> None:
        self._body = body

    def __len__(self) -> int:
        return self._body.length

    def __iter__(self) -> Iterator[memoryview]:
        left = self._body.length
        try:
            for piece in self._body.pieces():
                left -= len(piece)
                if left < 0:
                    break
                yield piece
        except OSError as error:
            raise ChunkStoreError(f"the body cannot be read: {error.strerror}") from error
        if left:
            # Bytes too many would reach the server as another request.
            raise ChunkStoreError("the body changed while it was sent")


def _path(container: str, key: str = "") -> str:
    """Return what follows an account's URL, quoted; without a container it is nothing."""
    return "".join(f"/{quote(name)}" for name in (container, key) if name)


def _placed(error: ChunkStoreError, store: str, container: str, key: str) -> ChunkStoreError:
    """Return the same error with the place where it happened."""
    return type(error)(
        error.reason,
        store=store,
        container=container,
        key=key,
        temporary=error.temporary,
        retry_after=error.retry_after,
        for_user=error.for_user,
    )


def _same(error: ChunkStoreError, key: str) -> ChunkStoreError:
    """Return an error of the whole request as one of a key of it."""
    copy = _placed(error, error.store, error.container, key)
    copy.__cause__ = error.__cause__
    return copy
