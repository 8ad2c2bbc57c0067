"""The round trip that every driver's ``check`` can be made of."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress

from backupfw.chunkstore.base import Body, CheckItem, ChunkStore
from backupfw.chunkstore.errors import ChunkStoreError, NotFound


class _Wrong(Exception):
    """The store answered, but not what it should."""


class Caution(Exception):
    """It works, but has an effect that few operators want; the text says which, and what to do."""


def try_item(name: str, action: Callable[[], str | None]) -> CheckItem:
    """Run one check.

    :param name: what is tried, one word.
    :param action: does it; returns a remark for the operator or None.
    :returns: the item; a warning when the action raised a :class:`Caution`; not ok, with the reason, when it
        raised a ChunkStoreError.
    """
    try:
        return CheckItem(name, True, action() or "")
    except Caution as caution:
        return CheckItem(name, True, str(caution), warning=True)
    except (ChunkStoreError, _Wrong) as error:
        return CheckItem(name, False, str(error))


def round_trip(store: ChunkStore, container: str, prefix: str = "backupfw-check") -> tuple[CheckItem, ...]:
    """Write, read, list and delete one small object, in that order; leave nothing behind.

    Stops at the first thing that fails, except that the delete is always tried once the write was.

    :param store: an open store; called directly, so a driver passes itself.
    :param container: a container that is there.
    :param prefix: first part of the object's key; a random part follows, so checks do not meet.
    """
    key = f"{prefix}/{secrets.token_hex(16)}"
    data = secrets.token_bytes(4096)

    def read() -> str | None:
        if bytes(store.get(container, key)) != data:
            raise _Wrong("the object read back differs from what was written")
        if bytes(store.get(container, key, 1, 100)) != data[1:101]:
            raise _Wrong("the range read back differs from what was written")
        return None

    def listed() -> str | None:
        sizes = {info.key: info.size for info in store.list(container, key)}
        if sizes == {key: len(data)}:
            return None
        if store.capabilities.listing_lag:
            return "the listing lags, as this store declares"
        raise _Wrong("the listing does not show the object that was just written")

    def delete() -> str | None:
        store.delete(container, [key])
        try:
            store.get(container, key)
        except NotFound:
            return None
        raise _Wrong("the object is still there after it was deleted")

    items = [try_item("write", lambda: store.put(container, key, Body.from_bytes(data)))]
    if items[0].ok:
        items.append(try_item("read", read))
        items.append(try_item("list", listed))
    items.append(try_item("delete", delete))
    # If the store keeps older versions, delete those of the check's object, too, if that is allowed.
    with suppress(ChunkStoreError):
        store.erase(container, key)
    return tuple(items)
