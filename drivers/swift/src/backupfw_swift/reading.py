"""Reads answers to GET and compares them with what the server says of the object."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from backupfw.chunkstore.errors import ChunkStoreError, IntegrityError, RangeError

_MD5 = re.compile(r"[0-9a-f]{32}")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def md5(data: bytes) -> str:
    """Return the ETag a server gives to an object of these bytes."""
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def read_whole(headers: Mapping[str, str], body: Any) -> bytes:
    """Return the whole object.

    :param headers: the answer's, their names in any case.
    :param body: the answer's, not read yet.
    :raises IntegrityError: length or MD5 are not what the server says.
    """
    data: bytes = body.read()
    length = headers.get("content-length")
    if length is not None and len(data) != int(length):
        raise IntegrityError(f"the answer has {len(data)} of {length} bytes", temporary=True)
    etag = headers.get("etag", "").strip('"')
    # The ETag of an object made of others is no MD5 of its bytes.
    composed = "x-object-manifest" in headers or "x-static-large-object" in headers
    if _MD5.fullmatch(etag) and not composed and md5(data) != etag:
        raise IntegrityError("the bytes do not match the object's ETag", temporary=True)
    return data


def read_range(status: int, headers: Mapping[str, str], body: Any, offset: int, length: int) -> bytes:
    """Return ``length`` bytes from ``offset``; see :func:`read_whole`.

    Judges the answer by its headers before it reads, so that a server that sends more than was asked for
    costs no memory.

    :raises RangeError: the object ends before.
    :raises IntegrityError: the answer is not the range asked for.
    """
    if status == 200:
        # An empty object has no ranges, and some servers then answer with all of it.
        size = headers.get("content-length")
        if size is not None and offset + length > int(size):
            raise RangeError(f"bytes {offset}+{length} of {size}")
        raise ChunkStoreError("the server, or something before it, does not know ranges")
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None:
        raise IntegrityError("the answer does not say which range it is", temporary=True)
    first, last = int(found[1]), int(found[2])
    if found[3] != "*" and offset + length > int(found[3]):
        raise RangeError(f"bytes {offset}+{length} of {found[3]}")
    if (first, last) != (offset, offset + length - 1):
        raise IntegrityError(f"bytes {first}-{last} came instead of {offset}+{length}", temporary=True)
    data: bytes = body.read(length)
    if len(data) != length:
        raise IntegrityError(f"the answer has {len(data)} of {length} bytes", temporary=True)
    return data
