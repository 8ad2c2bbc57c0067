"""The driver: each operation of the contract as requests to the server."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from blake3 import blake3

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, CheckReport, ChunkStore, ObjectInfo
from backupfw.chunkstore.checks import round_trip, try_item
from backupfw.chunkstore.errors import IntegrityError, NotFound, RangeError
from backupfw_template import errors, options
from backupfw_template.link import Link

if TYPE_CHECKING:
    from oslo_config import cfg

#: Keys in one request for deletion.
BULK = 1000


class TemplateStore(ChunkStore):
    """A store on a server that speaks HTTP.  Thread-safe: all that changes is in :class:`Link`."""

    # Never change it: exported backup records contain it.
    wire_name = "backupfw_template.store.TemplateStore"
    # Core allows more; say here what your server does not take.
    container_pattern = r"[A-Za-z0-9._-]{1,255}"

    def __init__(self, name: str, options: Any) -> None:
        super().__init__(name, options)
        self._link = Link(name, options.endpoint, options.user, options.password, options.timeout)

    @classmethod
    def options(cls) -> Sequence[cfg.Opt]:
        """Return the driver's options."""
        return options.options()

    @property
    def capabilities(self) -> Capabilities:
        """Conditional puts and bulk deletes; listings are sorted and never lag."""
        return Capabilities(if_absent=True, bulk_delete=BULK)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Store the body; the server refuses bytes that differ from those checked here (G5)."""
        # The same copy is checked and sent: the caller may change its buffer after it gave the put up.
        data = body.to_bytes()
        if problem := Body(data, body.length, body.checksum).problem():
            raise IntegrityError(problem, store=self.name, container=container, key=key)
        headers = {"X-Blake3": body.checksum.hex()}
        if if_absent:
            headers["If-None-Match"] = "*"
        self._link.call("PUT", _path(container, key), data, headers, container=container, key=key)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Return the object, compared with the server's checksum (G8), or a range of it (G9)."""
        path = _path(container, key)
        if offset is None or length is None:
            answer = self._link.call("GET", path, container=container, key=key)
            if blake3(answer.body).hexdigest() != answer.headers.get("X-Blake3"):
                # For a time: it may have been on the way that they changed.
                raise IntegrityError(
                    "the bytes are not those of the server's checksum",
                    store=self.name,
                    container=container,
                    key=key,
                    temporary=True,
                )
            return answer.body
        asked = {"Range": f"bytes={offset}-{offset + length - 1}"}
        answer = self._link.call("GET", path, headers=asked, container=container, key=key)
        # The server answers with what it has of a range that reaches past the end.
        if answer.status != 206 or len(answer.body) != length:
            raise RangeError(
                f"bytes {offset}+{length} are not all there", store=self.name, container=container, key=key
            )
        return answer.body

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects; each page is requested when it is needed (G10)."""
        while True:
            query = urlencode({"prefix": prefix, "after": start_after})
            answer = self._link.call("GET", f"{_path(container)}?{query}", container=container)
            try:
                page = [ObjectInfo(str(key), int(size)) for key, size in json.loads(answer.body)]
            except (TypeError, ValueError) as error:
                raise errors.of_exception(error, store=self.name, container=container) from error
            if not page:
                return
            yield from page
            start_after = page[-1].key

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Delete the keys; this server deletes all keys of a request or answers with an error (G3, G11)."""
        for start in range(0, len(keys), BULK):
            body = json.dumps(keys[start : start + BULK]).encode()
            try:
                self._link.call("POST", _path(container), body, container=container)
            except NotFound:
                return

    def ensure_container(self, container: str) -> None:
        """Make the container; if it exists the server changes nothing (G14)."""
        self._link.call("PUT", _path(container), container=container)

    def list_containers(self) -> Iterator[str]:
        """Yield the containers' names, sorted."""
        answer = self._link.call("GET", "/")
        try:
            names = sorted(map(str, json.loads(answer.body)))
        except (TypeError, ValueError) as error:
            raise errors.of_exception(error, store=self.name) from error
        yield from names

    def check(self) -> CheckReport:
        """Write, read, list and delete in a container of its own."""
        container = f"backupfw-check-{secrets.token_hex(8)}"
        items = [try_item("container", lambda: self.ensure_container(container))]
        if items[0].ok:
            items += round_trip(self, container)
            items.append(self._removed(container))
        return CheckReport(tuple(items))

    def _removed(self, container: str) -> CheckItem:
        def remove() -> None:
            self._link.call("DELETE", _path(container), container=container)

        return try_item("clean", remove)

    def close(self) -> None:
        """Close the connections."""
        self._link.close()


def _path(container: str, key: str | None = None) -> str:
    # Slashes too: to this server a key is one part of the path, whatever is in it.
    return f"/{quote(container, safe='')}/{'' if key is None else quote(key, safe='')}"
