"""A store and one of its containers, bound together: what the engine works on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import NotFound, Unavailable


class Container:
    """One container of an opened store (layers included).  Thread-safe, as the store is.

    :param store: the opened store; its owner closes it.
    :param name: the container's name, validated.
    :param settled_at: when a listing shows all that was put before this process began, by
        ``time.monotonic()``; matters where listings lag.
    """

    def __init__(self, store: ChunkStore, name: str, settled_at: float = 0.0) -> None:
        self.store = store
        self.name = name
        self.settled_at = settled_at

    @property
    def capabilities(self) -> Capabilities:
        """The store's capabilities."""
        return self.store.capabilities

    def ensure(self) -> None:
        """Make the container unless it is there."""
        self.store.ensure_container(self.name)

    def remove_container(self) -> bool:
        """See :meth:`ChunkStore.remove_container`."""
        return self.store.remove_container(self.name)

    def put(self, key: str, body: Body) -> None:
        """See :meth:`ChunkStore.put`.

        :raises Unavailable: also where the container is missing: callers made sure of it before, so the store
            is not complete (for example a share that is not mounted).
        """
        try:
            self.store.put(self.name, key, body)
        except NotFound as error:
            raise Unavailable(
                "the container is missing", store=self.store.name, container=self.name, key=key
            ) from error

    def get(self, key: str, offset: int | None = None, length: int | None = None) -> bytes:
        """See :meth:`ChunkStore.get`."""
        return self.store.get(self.name, key, offset, length)

    def list(self, prefix: str = "", start_after: str = "") -> Iterator[ObjectInfo]:
        """See :meth:`ChunkStore.list`."""
        return self.store.list(self.name, prefix, start_after)

    def delete(self, keys: Sequence[str]) -> None:
        """See :meth:`ChunkStore.delete`."""
        self.store.delete(self.name, keys)

    def inspect(self) -> Sequence[CheckItem]:
        """See :meth:`ChunkStore.inspect`."""
        return self.store.inspect(self.name)
