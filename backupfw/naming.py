"""Container names, object keys and users' texts: the only place that checks them.

The rules are the strictest that Swift, S3, GCS and a POSIX directory have in common, so that a name
accepted here is stored unchanged by every driver, and no name of a user can leave its container.
A store may narrow the container rule further (``ChunkStore.container_pattern``).
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Mapping
from functools import lru_cache

#: Longest key in UTF-8 bytes: what S3, GCS and Swift take.
MAX_KEY_BYTES = 1024
#: Longest container name in characters: the API's limit for the field.
MAX_CONTAINER_LENGTH = 255
#: Longest parameter of a query, and longest header, in characters.  Each field of a body has its own limit.
MAX_FIELD = 4096
#: Most pairs of a map of metadata; the longest request that is accepted by default has fewer.
MAX_PAIRS = 16384
#: Longest name, id or key of a user in characters: the width of the columns.
MAX_NAME = 255

#: Control characters other than line breaks and tabs; :func:`text_problem` refuses NUL.
_CONTROLS = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
#: Control codes (NUL included), and lone surrogates, which have no UTF-8 form.
_BAD = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def holds_controls(text: str) -> bool:
    """Return whether a text holds what no name and no key may: control codes, or lone surrogates."""
    return _BAD.search(text) is not None


def received(raw: str) -> str:
    """Return a text of a request; WSGI passes its bytes as Latin-1.

    :raises UnicodeError: it is not UTF-8.
    """
    return raw.encode("latin-1").decode("utf-8")


def input_problem(text: str, longest: int | None = None) -> str | None:
    """Return why a text of a request is refused, or None.

    It checks every text of a body, a query, a filter or a header.

    :param longest: characters; None where a schema has the limit.
    """
    if (problem := text_problem(text)) is not None:
        return problem
    if _CONTROLS.search(text) is not None:
        return "it holds control characters"
    if longest is not None and len(text) > longest:
        return f"it is longer than {longest} characters"
    return None


def shown(text: str) -> str:
    """Return a text for a terminal, with control characters spelt out, so that it does not obey them."""
    return _CONTROLS.sub(lambda found: ascii(found[0])[1:-1], text)


def is_name(text: str) -> bool:
    """Return whether a part of a path can be a user's name, id or key: one line that fits its column."""
    return len(text) <= MAX_NAME and text.isprintable()


def text_problem(text: str) -> str | None:
    """Return why no database can store a text, or None.

    It checks stored texts that come from a manifest or a record: these may have control characters.
    """
    if "\0" in text:
        return "it holds a NUL"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not Unicode"
    return None


def storable(text: object) -> str | None:
    """Return a text of a manifest or another service as a column can have it, cut; None if it cannot."""
    return text[:MAX_NAME] if isinstance(text, str) and text_problem(text) is None else None


def storable_pairs(found: object) -> dict[str, str]:
    """Return those of some metadata that can be stored uncut."""
    return {
        key: text
        for key, text in (found.items() if isinstance(found, Mapping) else ())
        if key and storable(key) == key and storable(text) == text
    }


def container_problem(name: str) -> str | None:
    """Return what is wrong with a container name, or None."""
    if not name:
        return "it is empty"
    if len(name) > MAX_CONTAINER_LENGTH or len(name.encode("utf-8", "replace")) > MAX_CONTAINER_LENGTH:
        return f"it is longer than {MAX_CONTAINER_LENGTH} bytes"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "it is a path"
    if holds_controls(name):
        return "it holds control characters"
    return None


def key_problem(key: str) -> str | None:
    """Return what is wrong with an object key, or None."""
    if not key:
        return "it is empty"
    if holds_controls(key):
        return "it holds control characters"
    if len(key.encode("utf-8")) > MAX_KEY_BYTES:
        return f"it is longer than {MAX_KEY_BYTES} bytes"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "a part of it is empty, '.' or '..'"
    return None


# Cached: keys that are read one after the other differ in their last parts only.
@lru_cache(maxsize=1024)
def key_part(text: str) -> str:
    """Turn any text into one part of a key, reversibly (percent-encoding, RFC 3986).

    ``.`` and ``..`` are encoded too; the empty text becomes ``%``, which no other text does.
    """
    if not text:
        return "%"
    if set(text) == {"."}:
        return "%2E" * len(text)
    return urllib.parse.quote(text, safe="")


@lru_cache(maxsize=1024)
def key_part_text(part: str) -> str:
    """Undo :func:`key_part`."""
    return "" if part == "%" else urllib.parse.unquote(part)
