"""A store and one of its containers, bound together: what the engine works on."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from backupfw.chunkstore.base import Body, Capabilities, CheckItem, ChunkStore, ObjectInfo
from backupfw.chunkstore.errors import NotFound, Unavailable


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class LockRule:
    """How long objects are locked (``lock_days``).

    What a new backup names must be locked for ``keep`` from then on.  A lock is made to end ``slack`` later
    than that, at the end of a ``step``: then the backups of the next days find it long enough, and need not
    renew it.

    :ivar now: the clock, with a time zone.
    """

    keep: timedelta
    slack: timedelta
    step: timedelta = timedelta(days=1)
    now: Callable[[], datetime] = _now

    @classmethod
    def of_days(cls, days: int) -> LockRule | None:
        """Return the rule of an option; None: nothing is locked.

        The slack is a quarter of the time, from a day to a month.
        """
        slack = min(30, -(-days // 4))
        return cls(timedelta(days=days), timedelta(days=slack)) if days else None

    def is_enough(self, until: datetime | None) -> bool:
        """Return whether a lock that ends then is long enough for a backup that is made now."""
        return until is not None and until >= self.now() + self.keep

    def new(self) -> datetime:
        """Return until when to lock what is put or renewed now."""
        start = datetime(1970, 1, 1, tzinfo=UTC)
        steps = -(-(self.now() + self.keep + self.slack - start) // self.step)
        return start + steps * self.step

    def choose(self, known: Iterable[datetime | None]) -> datetime:
        """Return the first of these dates that is long enough, or a new one."""
        return (
            next((until for until in known if until is not None and self.is_enough(until)), None)
            or self.new()
        )


class Container:
    """One container of an opened store (layers included).  Thread-safe, as the store is.

    :param store: the opened store; its owner closes it.
    :param name: the container's name, validated.
    :param settled_at: when a listing shows all that was put before this process began, by
        ``time.monotonic()``; matters where listings lag.
    :param rule: how long what backups name is locked; None: not at all.  It is a rule for those who put
        objects: what locks is :meth:`locking`.
    """

    def __init__(
        self, store: ChunkStore, name: str, settled_at: float = 0.0, rule: LockRule | None = None
    ) -> None:
        self.store = store
        self.name = name
        self.settled_at = settled_at
        self.rule = rule
        self._until: datetime | None = None

    def locking(self, until: datetime | None) -> Container:
        """Return the same container, which locks until then what is put; None: it does not.

        What is put after that moment is not locked: stores refuse a lock that has ended.
        """
        made = copy.copy(self)
        made._until = until
        return made

    def locking_anew(self, least: datetime | None = None) -> Container:
        """Return the same container, which locks what is put as its rule says for now.

        :param least: but at least until then; None: as the rule says.
        """
        ends = (least, None if self.rule is None else self.rule.new())
        return self.locking(max((end for end in ends if end is not None), default=None))

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
            locks = self._until is not None and self._until > _now()
            self.store.put(self.name, key, body.locked(self._until) if locks else body)
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

    def lock(self, key: str, until: datetime) -> None:
        """See :meth:`ChunkStore.lock`."""
        self.store.lock(self.name, key, until)

    def locked_until(self, key: str) -> datetime | None:
        """See :meth:`ChunkStore.locked_until`; None where the store has no locks."""
        return self.store.locked_until(self.name, key) if self.store.object_lock else None

    def inspect(self) -> Sequence[CheckItem]:
        """See :meth:`ChunkStore.inspect`."""
        return self.store.inspect(self.name)
