"""What is stored of a project key: for all key stores that store it as bytes.

The record is JSON: its version, the project's id, and the key in base64, or what wrapping it under a master
key made.  ``check`` is derived from the key and the project's id, so that damage is told from a wrong use.
"""

from __future__ import annotations

import base64
import hmac
import json

from backupfw.keys.errors import KeyStoreError, KeyStoreUnavailable, UnwrapRefused
from backupfw.keys.wrapping import KEY_BYTES, derived, unwrap, wrap

#: More than the longest record has, in bytes.
MAX_BYTES = 8192

_VERSION = 1


def encoded(key: bytes, key_id: str, project_id: str, master: bytes | None = None) -> bytes:
    """Return the record of a key.

    :param key_id: binds what a master key wraps to its place; any text if there is no master key.
    :param master: the master key, :data:`KEY_BYTES` bytes; None: the record has the key as it is.
    """
    record = {"version": _VERSION, "project_id": project_id, "check": _check(key, project_id)}
    if master is None:
        record["key"] = base64.b64encode(key).decode()
    else:
        record["master"] = _name(master)
        record["wrapped"] = base64.b64encode(wrap(master, key_id, key, project_id.encode())).decode()
    return json.dumps(record).encode() + b"\n"


def decoded(data: bytes, key_id: str, master: bytes | None = None) -> bytes:
    """Return the key of a record.

    :raises KeyStoreUnavailable: it needs a master key that is not this one.
    :raises KeyStoreError: it is damaged, or of a version that this release does not know.
    """
    try:
        record = json.loads(data)
        version, project_id = record["version"], record["project_id"]
        if version != _VERSION:
            problem = f"its record is of version {version!r}, which this release does not know"
            raise KeyStoreError(problem, key_id=key_id)
        if "key" in record:
            key = base64.b64decode(record["key"], validate=True)
        else:
            if master is None:
                raise KeyStoreUnavailable("is wrapped by a master key, and none is configured", key_id=key_id)
            if _name(master) != record["master"]:
                raise KeyStoreUnavailable("is wrapped by another master key than this one", key_id=key_id)
            wrapped = base64.b64decode(record["wrapped"], validate=True)
            key = unwrap(master, key_id, wrapped, project_id.encode())
        good = len(key) == KEY_BYTES and hmac.compare_digest(_check(key, project_id), record["check"])
    except (ValueError, KeyError, TypeError, AttributeError, UnwrapRefused):
        # The cause stays out: it may show what it could not read.
        good = False
    if not good:
        raise KeyStoreError("its record is damaged", key_id=key_id)
    return key


def _check(key: bytes, project_id: str) -> str:
    return derived(key, project_id.encode(), b"backupfw project key check v1")[:16].hex()


def _name(master: bytes) -> str:
    return derived(master, b"", b"backupfw master key name v1")[:8].hex()
