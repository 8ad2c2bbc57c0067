"""The conformance suite for chunk stores: every guarantee as a named test.

The author of a driver subclasses :class:`ChunkStoreTests` in a test module, and supplies functions that open
the store and that reach the server without the driver; pytest runs the rest::

    class TestMyStore(ChunkStoreTests):
        secrets = ("the password",)

        @pytest.fixture(scope="class")
        @classmethod
        def server(cls):
            with my_server() as server:
                yield server

        def open_store(self, server): ...
        def raw_put(self, server, container, key, data): ...
        def raw_get(self, server, container, key): ...
        def raw_keys(self, server, container): ...
        def open_unreachable(self, server): ...
        def open_refused(self, server): ...
        def server_address(self, server): ...
        def open_through(self, server, host, port): ...
        def restart_server(self, server): ...
        def expire_token(self, server, store): ...
        def full_store(self, server, container): ...

:class:`~backupfw.testing.suite.adoption.Adoption` lists all functions.  If one is missing, its tests fail;
tests are skipped only if the store or the subclass declares that it lacks something.  The name of a test
has the guarantee of :mod:`backupfw.chunkstore.base` that it proves: ``test_g9_range_past_the_end``.
"""

from __future__ import annotations

from backupfw.testing.suite.adoption import Adoption, pattern, put
from backupfw.testing.suite.conduct import ConductTests
from backupfw.testing.suite.deleting import DeletingTests
from backupfw.testing.suite.listing import ListingTests
from backupfw.testing.suite.locking import LockingTests
from backupfw.testing.suite.model import ModelTests
from backupfw.testing.suite.objects import ObjectTests
from backupfw.testing.suite.threads import ThreadTests
from backupfw.testing.suite.wire import RestartTests, WireTests

__all__ = ["Adoption", "ChunkStoreTests", "pattern", "put"]


class ChunkStoreTests(
    RestartTests,
    ObjectTests,
    ListingTests,
    DeletingTests,
    LockingTests,
    ThreadTests,
    ConductTests,
    WireTests,
    ModelTests,
):
    """Everything a chunk store promises.  Subclass it once per way of setting up the store."""
