"""One short text for (store, container, key), for unique columns."""

from __future__ import annotations

import hashlib


def object_digest(store: str, container: str, key: str) -> str:
    """Return the SHA-256 (hex) of an object's store, container and key.

    Lengths are hashed with the parts, so two different places never hash the same text.
    """
    text = "".join(f"{len(part)}:{part}" for part in (store, container, key))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
