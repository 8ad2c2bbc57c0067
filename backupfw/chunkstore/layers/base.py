"""What all layers have in common: a store around a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Generic, TypeVar

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, CheckReport, ChunkStore, ObjectInfo

#: How many entries of a listing are fetched under one limit or timeout.  A server's page is usually as
#: large, and for a local store it is a few milliseconds of work.
PAGE = 1000

T = TypeVar("T")


class Layer(ChunkStore):
    """A store that forwards everything to the next one, itself a chunk store with every guarantee.

    :param inner: the next store towards the driver.
    """

    def __init__(self, inner: ChunkStore) -> None:
        super().__init__(inner.name, None)
        self.inner = inner
        # Class attributes of a driver; a layer shows those of the driver below it.
        self.wire_name = inner.wire_name  # type: ignore[misc]
        self.container_pattern = inner.container_pattern  # type: ignore[misc]
        self.key_pattern = inner.key_pattern  # type: ignore[misc]
        self.layer_defaults = inner.layer_defaults  # type: ignore[misc]
        self.object_lock = inner.object_lock  # type: ignore[misc]

    @property
    def capabilities(self) -> Capabilities:
        """Those of the driver."""
        return self.inner.capabilities

    def put(self, container: str, key: str, body: Body, *, if_absent: bool = False) -> None:
        """Forward (see :meth:`ChunkStore.put`)."""
        self.inner.put(container, key, body, if_absent=if_absent)

    def get(self, container: str, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """Forward (see :meth:`ChunkStore.get`)."""
        return self.inner.get(container, key, offset, length)

    def list(self, container: str, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """Forward (see :meth:`ChunkStore.list`)."""
        return self.inner.list(container, prefix, start_after)

    def delete(self, container: str, keys: Sequence[str]) -> None:
        """Forward (see :meth:`ChunkStore.delete`)."""
        self.inner.delete(container, keys)

    def erase(self, container: str, prefix: str) -> None:
        """Forward (see :meth:`ChunkStore.erase`)."""
        self.inner.erase(container, prefix)

    def lock(self, container: str, key: str, until: datetime) -> None:
        """Forward (see :meth:`ChunkStore.lock`)."""
        self.inner.lock(container, key, until)

    def locked_until(self, container: str, key: str) -> datetime | None:
        """Forward (see :meth:`ChunkStore.locked_until`)."""
        return self.inner.locked_until(container, key)

    def bring_back(
        self, container: str, before: datetime, wanted: Callable[[str], bool], *, dry_run: bool = False
    ) -> Iterator[str]:
        """Forward (see :meth:`ChunkStore.bring_back`)."""
        return self.inner.bring_back(container, before, wanted, dry_run=dry_run)

    def inspect(self, container: str) -> Sequence[CheckItem]:
        """Forward (see :meth:`ChunkStore.inspect`)."""
        return self.inner.inspect(container)

    def ensure_container(self, container: str) -> None:
        """Forward (see :meth:`ChunkStore.ensure_container`)."""
        self.inner.ensure_container(container)

    def remove_container(self, container: str) -> bool:
        """Forward (see :meth:`ChunkStore.remove_container`)."""
        return self.inner.remove_container(container)

    def list_containers(self) -> Iterator[str]:
        """Forward (see :meth:`ChunkStore.list_containers`)."""
        return self.inner.list_containers()

    def check(self) -> CheckReport:
        """Forward (see :meth:`ChunkStore.check`)."""
        return self.inner.check()

    def close(self) -> None:
        """Close the next store."""
        self.inner.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.inner!r}>"


def driver_of(store: ChunkStore) -> ChunkStore:
    """Return the driver under any number of layers."""
    while isinstance(store, Layer):
        store = store.inner
    return store


class Pages(Generic[T]):
    """Takes an iterator a page at a time, so that a layer need not act on each entry.

    An error in mid-page is kept back until the entries before it were taken: they are progress that a
    retry must not lose.  Not thread-safe.
    """

    def __init__(self, entries: Iterator[T]) -> None:
        self._entries = iter(entries)
        self._error: Exception | None = None
        #: Whether everything was taken.
        self.done = False

    def take(self, size: int = PAGE) -> Sequence[T]:
        """Return the next entries, at most ``size``.

        :raises Exception: what the iterator raised, once every entry before it was returned.
        """
        if self._error is not None:
            raise self._error
        page: list[T] = []
        try:
            page.extend(itertools.islice(self._entries, size))
        except Exception as error:
            if not page:
                raise
            self._error = error
        else:
            self.done = len(page) < size
        return page
