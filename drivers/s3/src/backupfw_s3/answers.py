"""Checks the answers to reads: is this the whole object, and are the bytes the object's?"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from blake3 import blake3

#: Name of the metadata field in which the driver keeps an object's BLAKE3, hexadecimal.
CHECKSUM_FIELD = "backupfw-blake3"

_MD5 = re.compile(r'"?([0-9a-f]{32})"?')
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


def md5_of(answer: Mapping[str, Any]) -> str | None:
    """Return the MD5 that an ETag is; None for an object of parts, or of other keys than S3's."""
    if answer.get("SSECustomerAlgorithm") or answer.get("ServerSideEncryption", "AES256") != "AES256":
        return None
    match = _MD5.fullmatch(answer.get("ETag", ""))
    return match[1] if match else None


def problem_of_whole(answer: Mapping[str, Any], data: bytes, etag_is_md5: bool) -> str | None:
    """Say how a whole object differs from what the server says of it, or None."""
    length = answer.get("ContentLength")
    if length is not None and length != len(data):
        return f"{len(data)} of {length} bytes came"
    # Field names may come back with other capitals.
    fields = {name.lower(): value for name, value in answer.get("Metadata", {}).items()}
    if CHECKSUM_FIELD in fields:
        if blake3(data).hexdigest() != fields[CHECKSUM_FIELD]:
            return "the bytes do not match the checksum stored with them"
        return None
    md5 = md5_of(answer) if etag_is_md5 else None
    if md5 is not None and hashlib.md5(data, usedforsecurity=False).hexdigest() != md5:
        return "the bytes do not match the ETag"
    return None


class PastTheEnd(Exception):
    """The range reaches past the object's end."""


class WrongRange(Exception):
    """The answer is not the range that was asked for."""


def require_range(answer: Mapping[str, Any], offset: int, length: int) -> None:
    """Look at the head of the answer to a range, before its body is read.

    :raises PastTheEnd: the object ends before the range does.
    :raises WrongRange: the server sends something else.
    """
    status = answer["ResponseMetadata"]["HTTPStatusCode"]
    if status == 200:
        # The whole object: some servers answer so when the range covers it, or when it is empty.
        size = answer.get("ContentLength", 0)
        if offset + length > size:
            raise PastTheEnd(f"bytes {offset}+{length} of {size}")
        if (offset, length) != (0, size):
            raise WrongRange("the store sends the whole object instead of the range")
        return
    match = _CONTENT_RANGE.fullmatch(answer.get("ContentRange", ""))
    if match is None:
        raise WrongRange("the store does not say which range it sends")
    first, last = int(match[1]), int(match[2])
    if match[3] != "*" and offset + length > int(match[3]):
        raise PastTheEnd(f"bytes {offset}+{length} of {match[3]}")
    if (first, last) != (offset, offset + length - 1):
        raise WrongRange(f"bytes {offset}+{length} were asked for, the store sends {first} to {last}")
