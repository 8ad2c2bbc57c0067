"""One short text for (store, container, key), for unique columns."""

from __future__ import annotations

import hashlib


def object_digest(store: str, container: str, key: str) -> str:
    """Return the SHA-256 (hex) that stands for an object's place.

    Lengths are hashed with the parts, so no two places share a text to hash.
    """
    text = "".join(f"{len(part)}:{part}" for part in (store, container, key))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
