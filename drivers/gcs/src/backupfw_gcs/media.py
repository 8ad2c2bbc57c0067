"""Objects' bytes on their way up and down."""

from __future__ import annotations

import base64
import json
import re
import secrets
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import requests
from blake3 import blake3

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, RangeError
from backupfw_gcs.errors import Refused
from backupfw_gcs.link import Link, field

_CONTENT_RANGE = re.compile(r"bytes (?:\d+-+\d+|\*)/(\d+)")


class SourceError(Exception):
    """A body could not be read to its declared end; not an OSError, which would count as the network's."""


def object_path(container: str, key: str) -> str:
    """Return an object's path below ``/storage/v1``."""
    return f"/b/{urllib.parse.quote(container, safe='')}/o/{urllib.parse.quote(key, safe='')}"


def crc32c_of(body: Body) -> str:
    """Read a body, compare it with what it declares, and return its CRC32C as the API writes it.

    :raises IntegrityError: it is not what it declares.
    :raises SourceError: it cannot be read.
    """
    hasher, crc, length = blake3(), google_crc32c.Checksum(), 0
    for piece in _pieces(body):
        length += len(piece)
        if length > body.length:
            raise IntegrityError(f"the body has more than the {body.length} bytes declared")
        hasher.update(piece)
        # The extension takes no memoryview.
        crc.update(bytes(piece))
    if length < body.length:
        raise IntegrityError(f"the body has {length} bytes, {body.length} were declared")
    if hasher.digest() != body.checksum:
        raise IntegrityError("the body's bytes do not match the declared checksum")
    return base64.b64encode(crc.digest()).decode()


def _pieces(body: Body) -> Iterator[memoryview]:
    try:
        yield from body.pieces()
    except OSError as error:
        raise SourceError(f"the body cannot be read: {error.strerror}") from error


class _Upload:
    """The request's body: the object's properties, then its bytes, as one ``multipart/related`` message.

    Each iteration begins anew, because a request answered with 401 is sent again with a new token.
    """

    def __init__(self, properties: dict[str, str], body: Body) -> None:
        # Random, so that no bytes of the object can contain it.
        boundary = secrets.token_hex(24)
        self.content_type = f'multipart/related; boundary="{boundary}"'
        self._head = (
            f"--{boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n"
            f"{json.dumps(properties)}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        ).encode()
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        self._body = body

    def __len__(self) -> int:
        return len(self._head) + self._body.length + len(self._tail)

    def __iter__(self) -> Iterator[bytes | memoryview]:
        yield self._head
        left = self._body.length
        for piece in _pieces(self._body):
            left -= len(piece)
            if left < 0:
                break
            yield piece
        if left:
            # Raised before the last bytes: the service drops a request that ends early.
            raise SourceError("the body changed while it was sent")
        yield self._tail


@dataclass(frozen=True, slots=True)
class Stored:
    """What the service says it has stored.

    :ivar generation: names this version of the object.
    """

    size: int
    crc32c: str
    generation: str


def upload(
    link: Link,
    container: str,
    key: str,
    body: Body,
    crc32c: str,
    *,
    if_absent: bool,
    storage_class: str | None,
) -> Stored:
    """Send an object with one request; the service compares it with ``crc32c`` before it shows it.

    :raises SourceError: the body could not be read, or not as it was before.
    """
    properties = {"name": key, "crc32c": crc32c, "contentType": "application/octet-stream"}
    if storage_class:
        properties["storageClass"] = storage_class
    message = _Upload(properties, body)
    query = {"uploadType": "multipart", "fields": "size,crc32c,generation", "prettyPrint": "false"}
    if if_absent:
        query["ifGenerationMatch"] = "0"
    path = f"/upload/storage/v1/b/{urllib.parse.quote(container, safe='')}/o?{urllib.parse.urlencode(query)}"
    answer = link.request("POST", path, data=message, headers={"Content-Type": message.content_type})
    found = answer.json()
    return Stored(int(field(found, "size")), field(found, "crc32c"), field(found, "generation"))


def remove_generation(link: Link, container: str, key: str, generation: str) -> None:
    """Delete one version of an object, if it is still the current one."""
    path = f"/storage/v1{object_path(container, key)}?ifGenerationMatch={generation}"
    link.request("DELETE", path, headers={})


def download(link: Link, container: str, key: str) -> bytes:
    """Return a whole object, compared with the length and CRC32C that the service states.

    :raises IntegrityError: (temporary) it is not what the service states.
    """
    with _media(link, container, key, {}) as answer:
        data = _content(answer)
        stated = re.search(r"crc32c=([^,\s]+)", answer.headers.get("X-Goog-Hash", ""))
    if stated is None:
        raise IntegrityError("the server states no CRC32C for the object", temporary=True)
    if base64.b64encode(google_crc32c.Checksum(data).digest()).decode() != stated[1]:
        raise IntegrityError("the bytes do not match the CRC32C that the server states", temporary=True)
    return data


def download_range(link: Link, container: str, key: str, offset: int, length: int) -> bytes:
    """Return a range of an object.

    :raises RangeError: it reaches past the object's end.
    :raises IntegrityError: (temporary) another number of bytes came.
    """
    # No object is so large; the bound keeps the number within 64 bits.
    end = min(offset + length, 1 << 62) - 1
    try:
        answer = _media(link, container, key, {"Range": f"bytes={offset}-{end}"})
    except Refused as error:
        if error.status != 416:
            raise
        raise RangeError(f"bytes {offset}+{length} are past the object's end") from error
    with answer:
        total = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if answer.status_code != 206 or total is None:
            # An object that the service unpacks on the way cannot be read by ranges; we store none.
            raise ChunkStoreError("the server does not keep to the range it was asked for")
        if offset + length > int(total[1]):
            raise RangeError(f"bytes {offset}+{length} of {total[1]}")
        data = _content(answer)
    if len(data) != length:
        raise IntegrityError(f"{length} bytes were asked for, {len(data)} came", temporary=True)
    return data


def _media(link: Link, container: str, key: str, headers: dict[str, str]) -> requests.Response:
    # gzip: objects stored with that encoding come as they are stored, not unpacked on the way.
    return link.request(
        "GET",
        f"/download/storage/v1{object_path(container, key)}?alt=media",
        headers={"Accept-Encoding": "gzip", **headers},
        stream=True,
    )


def _content(answer: requests.Response) -> bytes:
    data: bytes = answer.raw.read(decode_content=False)
    declared = answer.headers.get("Content-Length")
    if declared is not None and len(data) != int(declared):
        raise IntegrityError(f"{declared} bytes were announced, {len(data)} came", temporary=True)
    return data
