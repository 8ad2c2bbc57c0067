"""Container names, object keys and users' texts: the one place where they are judged.

The rules are the strictest that Swift, S3, GCS and a POSIX directory have in common, so that a name
accepted here is stored by every driver as it is and nothing a user types can leave its container.
A store may narrow the container rule further (``ChunkStore.container_pattern``).
"""

from __future__ import annotations

import unicodedata
import urllib.parse

#: Longest key in UTF-8 bytes: what S3, GCS and Swift take.
MAX_KEY_BYTES = 1024
#: Longest container name in characters: the API's limit for the field.
MAX_CONTAINER_LENGTH = 255


def _bad_characters(text: str) -> bool:
    # Cc: control codes (NUL included); Cs: lone surrogates, which have no UTF-8 form.
    return any(unicodedata.category(char) in ("Cc", "Cs") for char in text)


def text_problem(text: str) -> str | None:
    """Say why no database keeps a text, or None when it may be used; every text of a user is asked about."""
    if "\0" in text:
        return "it holds a NUL"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "it is not Unicode"
    return None


def container_problem(name: str) -> str | None:
    """Say what is wrong with a container name, or None when it may be used."""
    if not name:
        return "it is empty"
    if len(name) > MAX_CONTAINER_LENGTH or len(name.encode("utf-8", "replace")) > MAX_CONTAINER_LENGTH:
        return f"it is longer than {MAX_CONTAINER_LENGTH} bytes"
    if name in (".", "..") or "/" in name or "\\" in name:
        return "it is a path"
    if _bad_characters(name):
        return "it holds control characters"
    return None


def key_problem(key: str) -> str | None:
    """Say what is wrong with an object key, or None when it may be used."""
    if not key:
        return "it is empty"
    if _bad_characters(key):
        return "it holds control characters"
    if len(key.encode("utf-8")) > MAX_KEY_BYTES:
        return f"it is longer than {MAX_KEY_BYTES} bytes"
    if any(part in ("", ".", "..") for part in key.split("/")):
        return "a part of it is empty, '.' or '..'"
    return None


def key_part(text: str) -> str:
    """Turn any text into one part of a key, reversibly (percent-encoding, RFC 3986).

    ``.`` and ``..`` are encoded too; the empty text becomes ``%``, which no other text does.
    """
    if not text:
        return "%"
    if set(text) == {"."}:
        return "%2E" * len(text)
    return urllib.parse.quote(text, safe="")


def key_part_text(part: str) -> str:
    """Undo :func:`key_part`."""
    return "" if part == "%" else urllib.parse.unquote(part)
