"""Requests and answers of the bulk-delete middleware."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import unquote

from backupfw_swift.errors import Refused

#: Longest line that every server takes: it allows twice its longest path.
_LONGEST_LINE = 2048


def line(container: str, key: str) -> bytes | None:
    """Return the request's line for one object, None if it would be too long.

    Only what the server would misread is quoted: quoting everything makes long keys of other scripts
    too long.  Core lets no control character into a name.
    """
    text = f"/{container}/{key}".replace("%", "%25").replace(" ", "%20").encode()
    return text if len(text) <= _LONGEST_LINE else None


def failures(answer: bytes, container: str, keys: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Read the answer to a bulk delete.

    :param keys: what was asked for.
    :returns: the keys that remain, each with HTTP status and words.
    :raises Refused: the whole request failed (its status stands in the answer, because the
        server sends 200 before it begins), or the answer does not account for every key.
    """
    found = json.loads(answer)
    if not isinstance(found, dict):
        # Not a TypeError: the bytes of the answer are wrong, not the type of an argument.
        raise ValueError("the answer to a bulk delete is no object")  # noqa: TRY004
    remaining: dict[str, tuple[int, str]] = {}
    prefix = f"/{container}/"
    asked = set(keys)
    for path, status in found.get("Errors") or ():
        path = unquote(path)
        path = path if path.startswith("/") else f"/{path}"
        key = path.removeprefix(prefix)
        if key not in asked:
            raise ValueError("the answer to a bulk delete names an object that was not asked for")
        remaining[key] = _status(status)
    whole = _status(str(found.get("Response Status", "")))
    done = int(found.get("Number Deleted") or 0) + int(found.get("Number Not Found") or 0)
    if any(status == 401 for status, _ in remaining.values()) or whole[0] == 401:
        raise Refused(401, "Unauthorized")
    if done + len(remaining) < len(asked):
        # The server stopped in mid-way and does not say where.
        status, words = whole if whole[0] >= 300 else (502, "the bulk delete stopped half-way")
        raise Refused(status, words)
    return remaining


def _status(text: str) -> tuple[int, str]:
    number, _, words = text.partition(" ")
    return (int(number) if number.isdigit() else 502), words
