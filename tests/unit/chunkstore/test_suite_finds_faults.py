"""The conformance suite finds broken stores, and forgotten pieces: run by pytest in a folder of its own."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

ADOPTION = """
import pytest
from backupfw.testing.chunkstore import ChunkStoreTests
from backupfw.testing.faults import FaultyStore
from backupfw.chunkstore.base import Body, ObjectInfo, Capabilities
from backupfw.chunkstore.errors import *
from backupfw.chunkstore.memory import MemoryStore

{broken}

class TestStore(ChunkStoreTests):
    secrets = ("s3cret",)
    local = True
    listing_keys = 2400
    largest = 1 << 20
    model_examples = 30

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls):
        return {{}}

    def open_store(self, server):
        return Broken(MemoryStore("memory", None, server))

    def raw_put(self, server, container, key, data):
        server[container][key] = data

    def raw_get(self, server, container, key):
        return server[container].get(key)

    def raw_keys(self, server, container):
        return set(server[container])
"""

#: What is broken -> the class, and the tests that must fail for it.
BROKEN = {
    "missing is empty": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return self.inner.get(container, key, offset, length)
        except NotFound:
            return b""
""",
        ["test_g2_missing_object", "test_g2_missing_container"],
    ),
    "bodies are believed": (
        """
    def put(self, container, key, body, *, if_absent=False):
        self.inner.put(container, key, Body.from_bytes(body.to_bytes()), if_absent=if_absent)
""",
        ["test_g4_failed_put_leaves_nothing", "test_g5_wrong_bodies_are_refused"],
    ),
    "failed puts stay": (
        """
    def put(self, container, key, body, *, if_absent=False):
        try:
            data = body.to_bytes()
        except OSError:
            data = b"half"
        self.inner.put(container, key, Body.from_bytes(data[: body.length]), if_absent=if_absent)
        self.inner.put(container, key, body, if_absent=if_absent)
""",
        ["test_g4_failed_put_leaves_nothing", "test_g4_failed_put_keeps_the_old_object"],
    ),
    "puts are in two steps": (
        """
    def put(self, container, key, body, *, if_absent=False):
        import time
        data = body.to_bytes()
        if not body.problem() and not if_absent:
            self.inner.put(container, key, Body.from_bytes(data[: len(data) // 2]))
            time.sleep(0.001)
        self.inner.put(container, key, body, if_absent=if_absent)
""",
        ["test_g6_readers_see_old_or_new"],
    ),
    "if_absent is ignored": (
        """
    def put(self, container, key, body, *, if_absent=False):
        self.inner.put(container, key, body)
""",
        ["test_g7_if_absent"],
    ),
    "ranges come short": (
        """
    def get(self, container, key, offset=None, length=None):
        if offset is None:
            return self.inner.get(container, key)
        return self.inner.get(container, key)[offset : offset + length]
""",
        ["test_g9_range_past_the_end"],
    ),
    "whole gets come short": (
        """
    def get(self, container, key, offset=None, length=None):
        return self.inner.get(container, key, offset, length)[: 1 << 20]
""",
        ["test_g8_whole_get_is_whole", "test_g1_round_trip"],
    ),
    "only the first page": (
        """
    def list(self, container, prefix="", start_after=""):
        for number, info in enumerate(self.inner.list(container, prefix, start_after)):
            if number < 1000:
                yield info
""",
        ["test_g10_complete_with_sizes"],
    ),
    "prefix is a folder": (
        """
    def list(self, container, prefix="", start_after=""):
        for info in self.inner.list(container, prefix, start_after):
            if prefix in ("", info.key) or prefix.endswith("/") or info.key.startswith(prefix + "/"):
                yield info
""",
        ["test_g10_prefix_is_a_raw_string"],
    ),
    "sorted by parts": (
        """
    def list(self, container, prefix="", start_after=""):
        yield from sorted(self.inner.list(container, prefix, start_after), key=lambda i: i.key.split("/"))
""",
        ["test_g10_sorted_or_declared_unsorted"],
    ),
    "start_after includes": (
        """
    def list(self, container, prefix="", start_after=""):
        for info in self.inner.list(container, prefix):
            if info.key >= start_after:
                yield info
""",
        ["test_g10_start_after"],
    ),
    "not lazy": (
        """
    def list(self, container, prefix="", start_after=""):
        return list(self.inner.list(container, prefix, start_after))
""",
        ["test_g10_lazy"],
    ),
    "only one batch is deleted": (
        """
    def delete(self, container, keys):
        self.inner.delete(container, keys[:1000])
""",
        ["test_g11_any_number"],
    ),
    "deletes are folders": (
        """
    def delete(self, container, keys):
        for key in keys:
            there = self.inner.contents.get(container, {})
            self.inner.delete(container, [key, *[each for each in there if each.startswith(key + "/")]])
""",
        ["test_g11_only_what_was_named"],
    ),
    "deletes of missing keys fail": (
        """
    def delete(self, container, keys):
        for key in keys:
            self.inner.get(container, key)
        self.inner.delete(container, keys)
""",
        ["test_g3_missing_keys", "test_g3_missing_container"],
    ),
    "names are folded": (
        """
    def put(self, container, key, body, *, if_absent=False):
        self.inner.put(container, key.lower(), body, if_absent=if_absent)
    def get(self, container, key, offset=None, length=None):
        return self.inner.get(container, key.lower(), offset, length)
""",
        ["test_g12_names_are_stored_as_they_are"],
    ),
    "a shared buffer": (
        """
    buffer = {}
    def get(self, container, key, offset=None, length=None):
        import time
        self.buffer[0] = self.inner.get(container, key, offset, length)
        time.sleep(0.0005)
        return self.buffer[0]
""",
        ["test_g13_all_operations"],
    ),
    "containers are emptied": (
        """
    def ensure_container(self, container):
        self.inner.contents[container] = {}
""",
        ["test_g14_ensure_container_again"],
    ),
    "secrets are shown": (
        """
    def get(self, container, key, offset=None, length=None):
        import logging
        logging.getLogger("driver").debug("token s3cret")
        return self.inner.get(container, key, offset, length)
""",
        ["test_g15_secrets_stay_secret"],
    ),
    "secrets in a cause": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return self.inner.get(container, key, offset, length)
        except NotFound as error:
            raise error from OSError("s3cret")
""",
        ["test_g15_secrets_stay_secret"],
    ),
    "missing is temporary": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return self.inner.get(container, key, offset, length)
        except NotFound as error:
            error.temporary = True
            raise
""",
        ["test_g2_missing_object", "test_g17_errors_that_stay_are_permanent"],
    ),
    "closing is forgotten": (
        """
    def close(self):
        pass
""",
        ["test_g18_closed_stores_refuse"],
    ),
    "closing twice fails": (
        """
    gone = False
    def close(self):
        assert not self.gone
        self.gone = True
        self.inner.close()
""",
        ["test_g18_close_twice"],
    ),
    "check leaves its object": (
        """
    def check(self):
        for container in self.inner.list_containers():
            self.inner.put(container, "check", Body.from_bytes(b"x"))
        return self.inner.check()
""",
        ["test_check_proves_a_good_store"],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_stores_fail(pytester: pytest.Pytester, name: str) -> None:
    methods, tests = BROKEN[name]
    pytester.makepyfile(ADOPTION.format(broken=f"class Broken(FaultyStore):{methods}"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", " or ".join(tests))
    failed = {report.nodeid.partition("::")[2] for report in result.getfailures()}
    for test in tests:
        assert [each for each in failed if test in each], f"{test} did not fail"


def test_a_good_store_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(ADOPTION.format(broken="class Broken(FaultyStore): pass"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "--guarantees")
    result.assertoutcome(passed=117, skipped=3)


def test_forgotten_pieces_fail_and_do_not_skip(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from backupfw.chunkstore.memory import MemoryStore
        from backupfw.testing.chunkstore import ChunkStoreTests

        CONTENTS = {}

        class TestStore(ChunkStoreTests):
            largest = 1 << 20
            listing_keys = 800

            def open_store(self, server):
                return MemoryStore("memory", None, CONTENTS)
        """
    )
    result = pytester.inline_run("-q", "-p", "no:cacheprovider")
    passed, skipped, failed = result.listoutcomes()
    assert skipped == []
    texts = [str(report.longrepr) for report in failed]
    for piece in ("raw_put", "raw_get", "raw_keys", "open_unreachable", "open_refused", "secrets"):
        assert [text for text in texts if piece in text], f"{piece} was not missed"
    assert passed


def test_nothing_at_all_supplied_fails_everything(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        from backupfw.testing.chunkstore import ChunkStoreTests

        class TestStore(ChunkStoreTests):
            pass
        """
    )
    result = pytester.inline_run("-q", "-p", "no:cacheprovider")
    passed, skipped, _ = result.listoutcomes()
    assert (passed, skipped) == ([], [])


def test_the_verdicts_per_guarantee(pytester: pytest.Pytester) -> None:
    methods, _ = BROKEN["ranges come short"]
    pytester.makepyfile(ADOPTION.format(broken=f"class Broken(FaultyStore):{methods}"))
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "--guarantees", "-k", "g9 or g3")
    result.stdout.fnmatch_lines(["*guarantees of TestStore*", "G3   ok", "G9   failed"])
