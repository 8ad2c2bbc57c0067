"""Deleting many objects with one request, reading the answer for each of them."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from email.message import Message
from email.parser import BytesParser

import requests

from backupfw_gcs.errors import ERRORS, Refused
from backupfw_gcs.link import Link
from backupfw_gcs.media import object_path

_STATUS_LINE = re.compile(r"HTTP/\S+ (\d{3})")


def delete_one(link: Link, container: str, key: str) -> None:
    """Delete an object; one that is not there counts as deleted."""
    try:
        link.request("DELETE", f"/storage/v1{object_path(container, key)}", headers={})
    except Refused as error:
        if error.status != 404:
            raise


def delete_each(link: Link, container: str, keys: Sequence[str]) -> dict[str, Exception]:
    """Delete objects one by one; returns those that remain, each with its error (``ERRORS``)."""
    errors: dict[str, Exception] = {}
    for key in keys:
        try:
            delete_one(link, container, key)
        except ERRORS as error:
            errors[key] = error
    return errors


def delete_batch(link: Link, container: str, keys: Sequence[str]) -> dict[str, Exception]:
    """Delete up to 100 objects with one request.

    :returns: the keys that remain, each with its error; one that the answer does not mention remains.
    :raises Exception: the request as a whole failed (``ERRORS``).
    """
    boundary = secrets.token_hex(16)
    parts = [
        f"--{boundary}\r\nContent-Type: application/http\r\nContent-ID: <{number}>\r\n\r\n"
        f"DELETE /storage/v1{object_path(container, key)} HTTP/1.1\r\n\r\n\r\n"
        for number, key in enumerate(keys)
    ]
    answer = link.request(
        "POST",
        "/batch/storage/v1",
        data="".join([*parts, f"--{boundary}--\r\n"]).encode(),
        headers={"Content-Type": f'multipart/mixed; boundary="{boundary}"'},
    )
    found = _answers(answer, len(keys))
    errors: dict[str, Exception] = {}
    for number, key in enumerate(keys):
        part = found.get(number)
        if part is None:
            errors[key] = ValueError("the answer of the batch lacks this object")
        elif not 200 <= part.status < 300 and part.status != 404:
            errors[key] = part
    return errors


def _answers(answer: requests.Response, count: int) -> Mapping[int, Refused]:
    """Return the answers in an answer, good ones too, by the number of their request.

    :raises ValueError: it is no batch's answer.
    """
    head = f"Content-Type: {answer.headers.get('Content-Type', '')}\r\n\r\n".encode()
    message = BytesParser().parsebytes(head + answer.content)
    if not message.is_multipart():
        raise ValueError("not the answer of a batch request")
    parts = message.get_payload()
    assert isinstance(parts, list)
    found: dict[int, Refused] = {}
    for place, part in enumerate(parts):
        assert isinstance(part, Message)
        named = re.fullmatch(r"<?response-(\d+)>?", part.get("Content-ID", "").strip())
        # A server that does not name them keeps their order, and then answers all.
        number = int(named[1]) if named else place if len(parts) == count else -1
        parsed = _part(part)
        if parsed is not None:
            found[number] = parsed
    return found


def _part(part: Message) -> Refused | None:
    """Read one inner answer; None if it is not one."""
    text = str(part.get_payload()).lstrip()
    line, _, rest = text.partition("\n")
    status = _STATUS_LINE.match(line)
    if status is None:
        return None
    inner = BytesParser().parsebytes(rest.encode("utf-8", "surrogateescape"))
    body = str(inner.get_payload()).encode("utf-8", "surrogateescape")
    return Refused(int(status[1]), dict(inner.items()), body)
