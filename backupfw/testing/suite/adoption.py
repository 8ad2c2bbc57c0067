"""The functions that the author of a driver supplies, and the fixtures made from them."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, NoReturn, TypeVar

import pytest

from backupfw.chunkstore.base import Body, ChunkStore, ObjectInfo

T = TypeVar("T")
Test = TypeVar("Test", bound=Callable[..., None])

#: Functions that may be missing if the author declares the reason, in :attr:`Adoption.declared`.
OPTIONAL = ("open_through", "restart_server", "expire_token", "full_store")

_SERVER_TESTS: set[str] = set()


def of_servers(test: Test) -> Test:
    """Decorate a test that needs a server: the suite of a local store does not have it."""
    _SERVER_TESTS.add(test.__name__)
    return test


def forgotten(what: str) -> NoReturn:
    """Fail: a function that only the author can supply is missing.  Never a skip: gaps must be visible."""
    pytest.fail(f"the suite's adoption lacks {what}", pytrace=False)


class Adoption:
    """Base of the suite: first the attributes and functions that an author supplies."""

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if cls.local:
            for name in _SERVER_TESTS:
                setattr(cls, name, None)

    # ---- to supply -------------------------------------------------------------------------------

    #: Texts that must not appear anywhere (keys, passwords, tokens); ``()`` if the driver has none.
    secrets: ClassVar[Sequence[str] | None] = None
    #: True for a store without server and credentials: only then its suite lacks the tests of servers.
    local: ClassVar[bool] = False
    #: Missing functions and the reasons: name in :data:`OPTIONAL` -> reason.  Its tests are skipped
    #: with that reason; a function that is neither supplied nor declared fails them.
    declared: ClassVar[Mapping[str, str]] = {}
    #: How many keys the listing test makes; lower it for slow servers, not below their page size.
    listing_keys: ClassVar[int] = 12_000
    #: Size in bytes of the largest object.
    largest: ClassVar[int] = 64 << 20
    #: Longest part of a key (between slashes) the server can take, in bytes; keys have up to 1024.
    longest_part: ClassVar[int] = 1024
    #: Regular expression of the keys the server can hold, if it cannot hold all that the driver accepts.
    key_pattern: ClassVar[str] = r".+"
    #: True for a server with folders, which mixes up ``a`` and the folder of ``a/b``: the random
    #: histories then hold no two such keys at once.
    has_folders: ClassVar[bool] = False
    #: Seconds within which a lagging listing shows everything.
    patience: ClassVar[float] = 30.0
    #: Seconds within which a server that does not answer is given up.
    unreachable_seconds: ClassVar[float] = 60.0
    #: Bytes of an object for which :meth:`full_store` has no room.
    no_room: ClassVar[int] = 3 << 20
    #: Seconds that the tests of locks lock objects for; more for a slow server.
    lock_seconds: ClassVar[float] = 3.0
    #: How many random histories the model test plays.
    model_examples: ClassVar[int] = 15

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Any:
        """Start or find the driver's server; override it.  All methods below get it.

        A class method, because it is made once for all tests of the class.
        """
        return None

    def open_store(self, server: Any) -> ChunkStore:
        """Open the driver on the server; called several times, all instances see the same objects."""
        forgotten("open_store(server)")

    def raw_put(self, server: Any, container: str, key: str, data: bytes) -> None:
        """Store an object without the driver."""
        forgotten("raw_put(server, container, key, data)")

    def raw_get(self, server: Any, container: str, key: str) -> bytes | None:
        """Return an object without the driver, None if there is none."""
        forgotten("raw_get(server, container, key)")

    def raw_keys(self, server: Any, container: str) -> set[str]:
        """Return all keys of a container without the driver."""
        forgotten("raw_keys(server, container)")

    def open_unreachable(self, server: Any) -> ChunkStore:
        """Open the driver on an address that does not answer, e.g. a closed port."""
        forgotten("open_unreachable(server), or local = True")

    def open_refused(self, server: Any) -> ChunkStore:
        """Open the driver with credentials that the server refuses."""
        forgotten("open_refused(server), or local = True")

    def server_address(self, server: Any) -> tuple[str, int]:
        """Return host and port of the server, for a proxy in front of it."""
        forgotten("server_address(server), or local = True")

    def open_through(self, server: Any, host: str, port: int) -> ChunkStore:
        """Open the driver so that it reaches the server only through this host and port."""
        forgotten("open_through(server, host, port), or a reason in declared, or local = True")

    def open_locking(self, server: Any) -> ChunkStore:
        """Open the driver so that it makes containers for locks, and so that its deletes remove bytes.

        Only for a driver that says ``object_lock``; override it if that needs options.
        """
        return self.open_store(server)

    def restart_server(self, server: Any) -> None:
        """End the server at once and start it again at the same address; return when it answers."""
        forgotten("restart_server(server), or a reason in declared, or local = True")

    def expire_token(self, server: Any, store: ChunkStore) -> None:
        """Make every present token of the store invalid.  Called from several threads."""
        forgotten("expire_token(server, store), or a reason in declared, or local = True")

    def full_store(self, server: Any, container: str) -> AbstractContextManager[ChunkStore]:
        """For a ``with`` block: a store whose (empty) container has no room for ``no_room`` bytes."""
        forgotten("full_store(server, container), or a reason in declared")

    @pytest.fixture(scope="class")
    @classmethod
    def mortal_server(cls, server: Any) -> Any:
        """The server that a test restarts: override it if that loses the objects of other tests."""
        return server

    def new_container_name(self) -> str:
        """Return a name that no other test has; override it if names follow special rules."""
        return f"backupfw-test-{secrets.token_hex(8)}"

    def remove_container(self, server: Any, container: str) -> None:
        """Remove a test's container with all objects; needed only on servers that outlive the test."""

    # ---- what tests use --------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, server: Any) -> Iterator[ChunkStore]:
        """An opened store."""
        store = cls().open_store(server)
        yield store
        store.close()

    @pytest.fixture
    def container(self, server: Any, store: ChunkStore) -> Iterator[str]:
        """A new, empty container's name."""
        name = self.new_container_name()
        store.ensure_container(name)
        yield name
        self.remove_container(server, name)

    def require(self, piece: str) -> None:
        """Skip the test if a function is declared to be missing."""
        if piece in self.declared:
            pytest.skip(f"declared: {self.declared[piece]}")

    def can_hold(self, store: ChunkStore, key: str) -> bool:
        """Return whether driver and server accept a key; tests skip the others."""
        return all(re.fullmatch(pattern, key) for pattern in (store.key_pattern, self.key_pattern))

    def listed(
        self, store: ChunkStore, container: str, expected: Sequence[ObjectInfo], prefix: str = ""
    ) -> Sequence[ObjectInfo]:
        """List until the listing is as expected, if the store may lag; else list once."""
        return self.eventually(store, lambda: list(store.list(container, prefix)), list(expected))

    def eventually(self, store: ChunkStore, look: Callable[[], T], expected: T) -> T:
        """Repeat a call until its result is as expected, if listings may lag; else call once."""
        end = time.monotonic() + self.patience
        while True:
            found = look()
            if found == expected or not store.capabilities.listing_lag or time.monotonic() > end:
                return found
            time.sleep(0.2)


def put(store: ChunkStore, container: str, key: str, data: bytes) -> None:
    """Put bytes."""
    store.put(container, key, Body.from_bytes(data))


def pattern(size: int, seed: int = 0) -> bytes:
    """Return bytes in which every 4 KiB differ, so that swapped or repeated parts show."""
    block = bytes((seed + index) % 251 for index in range(4088))
    count = -(-size // 4096)
    return b"".join(number.to_bytes(8, "big") + block for number in range(count))[:size]


def require_bytes(found: bytes | None, expected: bytes, offset: int = 0) -> None:
    """Fail with the place of the first difference: pytest takes minutes to compare MiB in an assertion.

    :param offset: where the bytes begin in the object or volume.
    """
    if found == expected:
        return
    assert found is not None, f"nothing instead of {len(expected)} bytes"
    assert len(found) == len(expected), f"{len(found)} bytes instead of {len(expected)} at {offset}"
    at = next(at for at, (one, two) in enumerate(zip(found, expected, strict=True)) if one != two)
    pytest.fail(f"byte {offset + at} is {found[at]:#04x} instead of {expected[at]:#04x}")
