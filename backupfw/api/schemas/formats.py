"""String formats that draft 4 does not have."""

from __future__ import annotations

import re
import unicodedata
import uuid

import jsonschema

CHECKER = jsonschema.FormatChecker(formats=())

#: Explanations of formats whose names do not explain them.
HINTS = {
    "printable": "printable characters only: no line breaks, nothing above U+FFFE",
    "backup_status": "available or error",
}

_PLAIN_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


def is_id(text: str) -> bool:
    """Whether a text can be the id of a resource: a UUID as it is usually written."""
    return _PLAIN_UUID.fullmatch(text) is not None


@CHECKER.checks("uuid")
def _is_uuid(value: object) -> bool:
    if not isinstance(value, str):
        return True  # the type is judged by "type"
    plain = value.replace("urn:", "").replace("uuid:", "").strip("{}").replace("-", "").lower()
    try:
        return uuid.UUID(value).hex == plain
    except ValueError:
        return False


@CHECKER.checks("printable")
def _is_printable(value: object) -> bool:
    if not isinstance(value, str):
        return True
    for char in value:
        category = unicodedata.category(char)
        if ord(char) > 0xFFFE or category[0] == "C" or category in ("Zl", "Zp"):
            return False
    return True


@CHECKER.checks("base64")
def _is_base64(value: object) -> bool:
    if not isinstance(value, str):
        return True
    # Line breaks are allowed; encoders for mail write them.
    text = "".join(value.split())
    return len(text) % 4 == 0 and re.fullmatch(r"[A-Za-z0-9+/_-]*={0,2}", text, re.ASCII) is not None


@CHECKER.checks("backup_status")
def _is_backup_status(value: object) -> bool:
    # The statuses that an administrator may set.
    return not isinstance(value, str) or value.lower() in ("available", "error")
