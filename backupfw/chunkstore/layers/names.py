"""Checks names and ranges before any other layer and the driver, so that no driver has to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from backupfw import naming
from backupfw.chunkstore.base import Body, CheckItem, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import InvalidName
from backupfw.chunkstore.layers.base import Layer


class NamesLayer(Layer):
    """Refuses container names and keys that core's rules or the driver's pattern forbid.

    A name that can never have been stored is InvalidName in every call, also in reads: its caller has a
    fault, and a driver must never see it.
    """

    def __init__(self, inner: ChunkStore) -> None:
        super().__init__(inner)
        self._pattern = re.compile(inner.container_pattern)
        self._key_pattern = re.compile(inner.key_pattern)

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Forward with checked names."""
        self._check_container(container)
        self._check_key(container, key)
        self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Forward with checked names and range.

        :raises ValueError: not both of offset and length, a negative offset, a length under 1.
        """
        self._check_container(container)
        self._check_key(container, key)
        if (offset is None) != (length is None):
            raise ValueError("offset and length are given both or neither")
        if offset is not None and length is not None and (offset < 0 or length < 1):
            raise ValueError(f"no range: {length} bytes from {offset}")
        return self.inner.get(container, key, offset, length)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Forward with a checked container; a prefix is any text that a key may hold."""
        self._check_prefix(container, prefix, start_after)
        return self.inner.list(container, prefix, start_after)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Forward with checked names, each key once.  Nothing is deleted if one key is refused."""
        self._check_container(container)
        # Bulk requests of some servers fail on a key that stands in them twice.
        unique = list(dict.fromkeys(keys))
        for key in unique:
            self._check_key(container, key)
        if unique:
            self.inner.delete(container, unique)

    def erase(self, container: str, prefix: str) -> None:
        """Forward with a checked container and prefix."""
        self._check_prefix(container, prefix)
        self.inner.erase(container, prefix)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Forward with checked names."""
        self._check_container(container)
        self._check_key(container, key)
        self.inner.lock(container, key, until)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Forward with checked names."""
        self._check_container(container)
        self._check_key(container, key)
        return self.inner.locked_until(container, key)

    def inspect(self, container: str) -> Sequence[CheckItem]:
        """Forward with a checked container."""
        self._check_container(container)
        return self.inner.inspect(container)

    def ensure_container(self, container: str) -> None:
        """Forward with a checked name."""
        self._check_container(container)
        self.inner.ensure_container(container)

    def remove_container(self, container: str) -> bool:
        """Forward with a checked name."""
        self._check_container(container)
        return self.inner.remove_container(container)

    def _check_container(self, container: str) -> None:
        problem = naming.container_problem(container)
        if problem is None and not self._pattern.fullmatch(container):
            problem = f"this store takes names that match {self.inner.container_pattern}"
        if problem:
            raise InvalidName(f"{_shown(container)} cannot name a container: {problem}", store=self.name)

    def _check_prefix(self, container: str, *texts: str) -> None:
        self._check_container(container)
        for text in texts:
            # A prefix may end within a part, so only its characters are checked, not its form.
            if naming.holds_controls(text):
                raise InvalidName("the prefix holds control characters", store=self.name, container=container)

    def _check_key(self, container: str, key: str) -> None:
        problem = naming.key_problem(key)
        if problem is None and not self._key_pattern.fullmatch(key):
            problem = f"this store takes keys that match {self.inner.key_pattern}"
        if problem:
            raise InvalidName(
                f"{_shown(key)} cannot be a key: {problem}", store=self.name, container=container
            )


def _shown(name: str) -> str:
    # ascii() keeps control characters and lone surrogates out of logs; the bound keeps lines readable.
    return ascii(name if len(name) <= 100 else name[:100] + "…")
