"""The static files of the console: read once, named by their content's version, kept by browsers for ever."""

from __future__ import annotations

import gzip
import hashlib
from functools import cache
from importlib import resources
from typing import NamedTuple

import webob

#: What is served, and as what; everything else in the directory is for readers of the source.
_TYPES = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}


class _File(NamedTuple):
    kind: str
    plain: bytes
    packed: bytes


@cache
def _files() -> dict[str, _File]:
    """Return the files by the names in their addresses."""
    found = {}
    for item in sorted(resources.files(__package__).joinpath("static").iterdir(), key=lambda one: one.name):
        kind = _TYPES.get(item.name[item.name.rfind(".") :])
        if kind is not None:
            data = item.read_bytes()
            found[_address(item.name, data)] = _File(kind, data, gzip.compress(data, mtime=0))
    return found


def _address(name: str, data: bytes) -> str:
    """Return the name in the address: of a file of ours, which has no version, with a digest."""
    head, _, ending = name.rpartition(".")
    if any(letter.isdigit() for letter in head):
        return name
    return f"{head}-{hashlib.sha256(data).hexdigest()[:12]}.{ending}"


def address(beginning: str) -> str:
    """Return the name in the address of the one file whose name begins like this."""
    (found,) = (name for name in _files() if name.startswith(beginning))
    return found


def answer(request: webob.Request, name: str) -> webob.Response | None:
    """Return the answer to a request for a file; None if there is no such file."""
    found = _files().get(name)
    if found is None:
        return None
    response = webob.Response(content_type=found.kind, charset="utf-8")
    response.vary = ["Accept-Encoding"]
    packs = "gzip" in request.accept_encoding
    response.body = found.packed if packs else found.plain
    if packs:
        response.content_encoding = "gzip"
    response.cache_control = "public, max-age=31536000, immutable"
    return response
