"""Tests of secrets, errors, closing, output and ``check``: G15, G17 to G19."""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from backupfw.chunkstore.base import Body, CheckReport, ChunkStore
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from backupfw.testing.suite.adoption import OPTIONAL, Adoption, forgotten, of_servers, put

#: Every way to use a store, for tests that all of them must pass.
USES: tuple[tuple[str, Callable[[ChunkStore, str], object]], ...] = (
    ("put", lambda store, container: store.put(container, "key", Body.from_bytes(b"x"))),
    ("get", lambda store, container: store.get(container, "key")),
    ("get range", lambda store, container: store.get(container, "key", 0, 1)),
    ("list", lambda store, container: list(store.list(container))),
    ("delete", lambda store, container: store.delete(container, ["key"])),
    ("ensure_container", lambda store, container: store.ensure_container(container)),
    ("list_containers", lambda store, container: list(store.list_containers())),
)
USE_NAMES = [name for name, _ in USES]
USE_ACTIONS = [action for _, action in USES]


def _each(error: ChunkStoreError) -> Sequence[ChunkStoreError]:
    """Return the error, or those of the keys where a delete names them."""
    return list(error.errors.values()) if isinstance(error, DeleteFailed) else [error]


class ConductTests(Adoption):
    """Tests that are not about bytes."""

    def test_g15_secrets_stay_secret(
        self, server: Any, container: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        if self.secrets is None:
            forgotten("secrets (a sequence of texts, () if there are none)")
        caplog.set_level(logging.DEBUG)
        said: list[str] = []
        stores = [self.open_store(server)]
        if not self.local:
            stores += [self.open_unreachable(server), self.open_refused(server)]
        for store in stores:
            said += [repr(store), str(store), repr(store.capabilities)]
            for use in USE_ACTIONS:
                try:
                    use(store, container)
                    store.get(container, "missing")
                except ChunkStoreError as error:
                    said += [repr(error), *traceback.format_exception(error)]
            said.append(repr(store.check()))
            store.close()
            with pytest.raises(ChunkStoreError) as caught:
                store.get(container, "key")
            said += traceback.format_exception(caught.value)
        said += [record.getMessage() for record in caplog.records]
        for secret in self.secrets:
            assert not [text for text in said if secret in text]

    def test_g17_errors_that_stay_are_permanent(self, store: ChunkStore, container: str) -> None:
        with pytest.raises(NotFound) as caught:
            store.get(container, "missing")
        assert caught.value.temporary is False
        assert caught.value.store == store.name
        assert (caught.value.container, caught.value.key) == (container, "missing")

    @of_servers
    def test_g17_unreachable(self, server: Any) -> None:
        for name, use in USES:
            store = self.open_unreachable(server)
            start = time.monotonic()
            try:
                with pytest.raises(ChunkStoreError) as caught:
                    use(store, "backupfw-test-unreachable")
            finally:
                store.close()
            assert [each for each in _each(caught.value) if not isinstance(each, Unavailable)] == [], name
            assert caught.value.temporary, name
            assert time.monotonic() - start < self.unreachable_seconds, name

    @of_servers
    def test_g17_refused(self, server: Any, container: str) -> None:
        for name, use in USES:
            store = self.open_refused(server)
            try:
                with pytest.raises(ChunkStoreError) as caught:
                    use(store, container)
            finally:
                store.close()
            denied = [isinstance(each, PermissionDenied) for each in _each(caught.value)]
            assert all(denied), name
            assert not caught.value.temporary, name

    def test_g18_close_twice(self, server: Any) -> None:
        store = self.open_store(server)
        store.close()
        store.close()

    @pytest.mark.parametrize("use", USE_ACTIONS, ids=USE_NAMES)
    def test_g18_closed_stores_refuse(
        self, server: Any, container: str, use: Callable[[ChunkStore, str], object]
    ) -> None:
        store = self.open_store(server)
        put(store, container, "key", b"x")
        store.close()
        with pytest.raises(ChunkStoreError) as caught:
            use(store, container)
        assert not caught.value.temporary

    def test_g18_close_leaves_other_instances(self, server: Any, store: ChunkStore, container: str) -> None:
        other = self.open_store(server)
        put(other, container, "key", b"x")
        other.close()
        assert store.get(container, "key") == b"x"

    def test_g19_success_is_silent(
        self,
        server: Any,
        container: str,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        # As the service sets it for the loggers of other libraries.
        caplog.set_level(logging.WARNING)
        caplog.handler.setLevel(logging.NOTSET)
        capfd.readouterr()
        store = self.open_store(server)
        for number in range(3):
            put(store, container, f"key{number}", b"x")
            store.get(container, f"key{number}")
            store.get(container, f"key{number}", 0, 1)
            with pytest.raises(NotFound):
                store.get(container, "missing")
        for _ in store.list(container):
            pass
        store.delete(container, ["key0", "missing"])
        store.delete(container, ["key1", "key2"])
        store.ensure_container(container)
        assert container in list(store.list_containers())
        assert store.check().ok
        store.close()
        assert [f"{record.name}: {record.getMessage()}" for record in caplog.records] == []
        assert capfd.readouterr() == ("", "")

    def test_check_proves_a_good_store(self, server: Any, store: ChunkStore, container: str) -> None:
        containers = list(store.list_containers())
        report = store.check()
        assert isinstance(report, CheckReport)
        assert report.ok, report
        assert report.items
        assert list(store.list_containers()) == containers
        assert self.raw_keys(server, container) == set()

    @of_servers
    def test_check_reports_what_is_wrong(self, server: Any) -> None:
        for store in (self.open_unreachable(server), self.open_refused(server)):
            try:
                report = store.check()
            finally:
                store.close()
            assert not report.ok
            assert all(item.detail for item in report.items if not item.ok)

    def test_the_driver_declares_what_it_must(self, store: ChunkStore) -> None:
        # An unknown declaration, or one without a reason, would hide a test.
        assert set(self.declared) <= set(OPTIONAL)
        assert all(self.declared.values())
        assert store.API_VERSION == 1
        assert store.wire_name
        assert store.name
        assert store.capabilities == store.capabilities
        assert store.capabilities.bulk_delete >= 1
        assert store.capabilities.join_gap >= 0
        for option in type(store).options():
            assert option.help, f"option {option.name} has no help"
