"""The conformance suite finds broken stores, and forgotten pieces: run by pytest in a folder of its own."""

from __future__ import annotations

import pytest

from tests.architecture.checkout import ROOT

pytest_plugins = ["pytester"]
#: Whole suites run in each of these tests.
pytestmark = pytest.mark.check

TEMPLATE = ROOT / "drivers" / "template"

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
    declared = {{"full_store": "memory has no bound"}}
    listing_keys = 2400
    largest = 1 << 20
    model_examples = 30
    lock_seconds = 0.3

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
    "locks are forgotten": (
        """
    def put(self, container, key, body, *, if_absent=False):
        self.inner.put(container, key, body.locked(None), if_absent=if_absent)
""",
        ["test_g20_put_with_a_lock"],
    ),
    "locks can be shortened": (
        """
    def lock(self, container, key, until):
        self.inner.lock(container, key, until)
        self.inner.locks[container, key] = until
""",
        ["test_g20_a_lock_is_renewed_and_never_ends_earlier"],
    ),
    "nobody hears how long it is locked": (
        """
    def delete(self, container, keys):
        try:
            self.inner.delete(container, keys)
        except DeleteFailed as error:
            raise DeleteFailed({key: PermissionDenied("no") for key in error.errors}) from error
""",
        ["test_g20_put_with_a_lock"],
    ),
    "what is missing is locked": (
        """
    def lock(self, container, key, until):
        try:
            self.inner.lock(container, key, until)
        except NotFound:
            pass
""",
        ["test_g20_what_is_missing_has_no_lock"],
    ),
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
    "erasing takes too much": (
        """
    def erase(self, container, prefix):
        self.inner.erase(container, prefix.rstrip("/"))
""",
        ["test_g11_erase"],
    ),
    "settings raise": (
        """
    def inspect(self, container):
        next(self.inner.list(container), None)
        return ()
""",
        ["test_g11_settings_are_reported"],
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
    "containers are removed with what they hold": (
        """
    def remove_container(self, container):
        return self.inner.contents.pop(container, None) is not None
""",
        ["test_g14_only_empty_containers_go"],
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
    "a library that floods the log": (
        """
    def get(self, container, key, offset=None, length=None):
        import logging
        logging.getLogger("sdk.wire").setLevel(logging.INFO)
        logging.getLogger("sdk.wire").info("asked for something")
        return self.inner.get(container, key, offset, length)
""",
        ["test_g19_success_is_silent"],
    ),
    "a library that warns of what is ordinary": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return self.inner.get(container, key, offset, length)
        except NotFound:
            import logging
            logging.getLogger("sdk").warning("404")
            raise
""",
        ["test_g19_success_is_silent"],
    ),
    "prints": (
        """
    def ensure_container(self, container):
        print("made", container)
        self.inner.ensure_container(container)
""",
        ["test_g19_success_is_silent"],
    ),
    "its key_pattern is too narrow": (
        """
    key_pattern = "[a-z]+"
    def __init__(self, inner):
        super().__init__(inner)
        self.key_pattern = "[a-z]+"
""",
        ["test_g12_names_it_cannot_hold_are_refused"],
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


#: A driver that speaks to a server: the template's, and one fault in it.
FAR_ADOPTION = """
import time
import threading
from concurrent.futures import ThreadPoolExecutor
from backupfw.chunkstore.base import Body, ObjectInfo
from backupfw.chunkstore.errors import *
from backupfw.chunkstore.options import option_values
from backupfw_template import errors as driver_errors
from backupfw_template import store as driver_store
from backupfw_template.link import Answer, Link
from test_conformance import TestTemplateStore
from backupfw_template.store import TemplateStore

{broken}

class TestStore(TestTemplateStore):
    patience = 1.0

    def open_at(self, endpoint, password="a-very-secret-password"):
        values = {{"endpoint": endpoint, "user": "tester", "password": password}}
        return Broken("test", option_values(TemplateStore.options(), **values))

del TestTemplateStore
"""

#: What is broken -> the class, and the tests that must fail for it.
FAR_BROKEN = {
    "puts in two steps": (
        """
    def put(self, container, key, body, *, if_absent=False):
        data = body.to_bytes()
        super().put(container, key, Body.from_bytes(data[:1000]))
        super().put(container, key, body, if_absent=if_absent)
""",
        ["test_g4_put_that_is_cut"],
    ),
    "puts are believed to have come": (
        """
    def put(self, container, key, body, *, if_absent=False):
        try:
            super().put(container, key, body, if_absent=if_absent)
        except Unavailable:
            pass
""",
        [
            "test_g4_put_that_is_cut",
            "test_g4_put_whose_answer_is_cut",
            "test_g17_a_server_that_refuses_for_a_while",
            "test_g17_server_restarts_in_mid_transfer",
        ],
    ),
    "puts go on in the background": (
        """
    pool = ThreadPoolExecutor(4)
    def put(self, container, key, body, *, if_absent=False):
        self.pool.submit(super().put, container, key, body, if_absent=if_absent)
""",
        ["test_g17_a_hole_is_given_up_in_time", "test_g4_put_that_is_cut"],
    ),
    "gets come short": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return super().get(container, key, offset, length)
        except Unavailable as error:
            return getattr(error.__cause__, "partial", b"short")
""",
        ["test_g8_get_that_is_cut"],
    ),
    "broken connections are for ever": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return super().get(container, key, offset, length)
        except Unavailable as error:
            error.temporary = False
            raise
""",
        ["test_g8_get_that_is_cut", "test_g17_a_server_that_refuses_for_a_while"],
    ),
    "errors are not translated": (
        """
    def put(self, container, key, body, *, if_absent=False):
        try:
            super().put(container, key, body, if_absent=if_absent)
        except Unavailable as error:
            raise error.__cause__
""",
        ["test_g13_connections_end_under_many_threads", "test_g4_put_that_is_cut"],
    ),
    "listings end early": (
        """
    def list(self, container, prefix="", start_after=""):
        try:
            yield from super().list(container, prefix, start_after)
        except Unavailable:
            return
""",
        ["test_g10_listing_that_is_cut"],
    ),
    "deletes are believed to have come": (
        """
    def delete(self, container, keys):
        try:
            super().delete(container, keys)
        except Unavailable:
            pass
""",
        ["test_g11_delete_whose_answer_is_cut"],
    ),
    "no checksum is sent": (
        """
    def put(self, container, key, body, *, if_absent=False):
        path = driver_store._path(container, key)
        self._link.call("PUT", path, body.to_bytes(), container=container, key=key)
""",
        ["test_g5_put_that_is_changed_on_the_way"],
    ),
    "no checksum is compared": (
        """
    def get(self, container, key, offset=None, length=None):
        if offset is None:
            path = driver_store._path(container, key)
            return self._link.call("GET", path, container=container, key=key).body
        return super().get(container, key, offset, length)
""",
        ["test_g8_whole_get_that_is_changed_on_the_way"],
    ),
    "found changes are for ever": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return super().get(container, key, offset, length)
        except IntegrityError as error:
            error.temporary = False
            raise
""",
        ["test_g8_whole_get_that_is_changed_on_the_way"],
    ),
    "impatient": (
        """
    def __init__(self, name, options):
        super().__init__(name, options)
        self._link._timeout = 0.02
""",
        ["test_g17_a_slow_line_changes_nothing"],
    ),
    "never patient again": (
        """
    down = None
    def get(self, container, key, offset=None, length=None):
        if self.down:
            raise self.down
        try:
            return super().get(container, key, offset, length)
        except Unavailable as error:
            self.down = error
            raise
""",
        ["test_g17_a_server_that_refuses_for_a_while", "test_g17_server_restarts_in_mid_transfer"],
    ),
    "tokens are not renewed": (
        """
    def __init__(self, name, options):
        super().__init__(name, options)
        good = self._link._good_token
        self._link._good_token = lambda container, key, refused="": refused or good(container, key)
""",
        ["test_g17_expired_token_is_renewed", "test_g17_token_expires_under_many_threads"],
    ),
    "full is for a time": (
        """
    def put(self, container, key, body, *, if_absent=False):
        try:
            super().put(container, key, body, if_absent=if_absent)
        except NoSpace as error:
            raise Unavailable("full")
""",
        ["test_g4_full_store"],
    ),
    "full stores keep a half": (
        """
    def put(self, container, key, body, *, if_absent=False):
        try:
            super().put(container, key, body, if_absent=if_absent)
        except NoSpace as error:
            super().put(container, key, Body.from_bytes(body.to_bytes()[:10]))
            raise
""",
        ["test_g4_full_store"],
    ),
    "nobody there is for ever": (
        """
    def get(self, container, key, offset=None, length=None):
        try:
            return super().get(container, key, offset, length)
        except Unavailable as error:
            raise ChunkStoreError("nobody is there")
""",
        ["test_g17_unreachable"],
    ),
    "refusals are for a time": (
        """
    def ensure_container(self, container):
        try:
            super().ensure_container(container)
        except PermissionDenied as error:
            raise Unavailable("refused")
""",
        ["test_g17_refused"],
    ),
    "checks only say no": (
        """
    def check(self):
        report = super().check()
        from backupfw.chunkstore.base import CheckItem, CheckReport
        return CheckReport(tuple(CheckItem(item.name, item.ok) for item in report.items))
""",
        ["test_check_reports_what_is_wrong"],
    ),
    "checks raise": (
        """
    def check(self):
        self.ensure_container("checked")
        return super().check()
""",
        ["test_check_reports_what_is_wrong", "test_check_proves_a_good_store"],
    ),
    "ranges are cut out of whole objects": (
        """
    def get(self, container, key, offset=None, length=None):
        data = super().get(container, key)
        if offset is None:
            return data
        if offset + length > len(data):
            raise RangeError("past the end")
        return data[offset : offset + length]
""",
        ["test_g16_a_range_costs_its_own_size"],
    ),
    "secrets in the log": (
        """
    def __init__(self, name, options):
        super().__init__(name, options)
        import logging
        logging.getLogger("driver").debug("signing in with %s", options.password)
""",
        ["test_g15_secrets_stay_secret"],
    ),
    "not through the proxy": (
        """
    pass
class TestTemplateStore(TestTemplateStore):
    def open_through(self, server, host, port):
        return self.open_at(server.endpoint)
""",
        ["test_g4_put_that_is_cut", "test_g8_get_that_is_cut", "test_g17_server_restarts_in_mid_transfer"],
    ),
}


@pytest.mark.parametrize("name", FAR_BROKEN)
def test_broken_drivers_of_servers_fail(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    methods, tests = FAR_BROKEN[name]
    monkeypatch.syspath_prepend(str(TEMPLATE / "tests"))
    pytester.makepyfile(FAR_ADOPTION.format(broken=f"class Broken(TemplateStore):{methods}"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", " or ".join(tests))
    failed = {report.nodeid.partition("::")[2] for report in result.getfailures()}
    for test in tests:
        assert [each for each in failed if test in each], f"{test} did not fail"


def test_declared_pieces_are_skipped_with_their_reason(pytester: pytest.Pytester) -> None:
    adoption = ADOPTION.format(broken="class Broken(FaultyStore): pass")
    pytester.makepyfile(adoption.replace("full_store", "no_such_piece"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", "declares_what or full_store")
    assert {report.nodeid.rpartition("::")[2] for report in result.getfailures()} == {
        "test_the_driver_declares_what_it_must",
        "test_g4_full_store",
    }
    pytester.makepyfile(adoption)
    result = pytester.inline_run(
        "-q", "-p", "no:cacheprovider", "-k", "declares_what or full_store or mid_transfer"
    )
    passed, skipped, failed = result.listoutcomes()
    assert (len(passed), failed) == (1, [])
    # A local store's suite has no tests of servers.
    assert [report.longrepr[2] for report in skipped] == ["Skipped: declared: memory has no bound"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_store_fails_the_tests_of_its_guarantee(pytester: pytest.Pytester, name: str) -> None:
    methods, tests = BROKEN[name]
    pytester.makepyfile(ADOPTION.format(broken=f"class Broken(FaultyStore):{methods}"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", " or ".join(tests))
    failed = {report.nodeid.partition("::")[2] for report in result.getfailures()}
    for test in tests:
        assert [each for each in failed if test in each], f"{test} did not fail"


def test_a_good_store_passes(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(ADOPTION.format(broken="class Broken(FaultyStore): pass"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "--guarantees")
    result.assertoutcome(passed=125, skipped=1)


def test_a_store_that_cannot_hold_every_key_passes_when_it_says_so(pytester: pytest.Pytester) -> None:
    methods = """
    def __init__(self, inner):
        super().__init__(inner)
        self.key_pattern = "[A-Za-z0-9._/-]+"
    def put(self, container, key, body, *, if_absent=False):
        assert all(char.isascii() and (char.isalnum() or char in "._/-") for char in key)
        self.inner.put(container, key, body, if_absent=if_absent)
"""
    pytester.makepyfile(ADOPTION.format(broken=f"class Broken(FaultyStore):{methods}"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", "g1_ or g10 or g12 or model")
    passed, _, failed = result.listoutcomes()
    assert failed == []
    assert len(passed) > 40


def test_a_delete_that_reached_nobody_may_name_its_keys(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    methods = """
    def delete(self, container, keys):
        try:
            super().delete(container, keys)
        except Unavailable as error:
            raise DeleteFailed(dict.fromkeys(keys, error)) from error
"""
    monkeypatch.syspath_prepend(str(TEMPLATE / "tests"))
    pytester.makepyfile(FAR_ADOPTION.format(broken=f"class Broken(TemplateStore):{methods}"))
    result = pytester.inline_run("-q", "-p", "no:cacheprovider", "-k", "unreachable or refused or g11")
    _, skipped, failed = result.listoutcomes()
    assert (skipped, failed) == ([], [])


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
    for piece in (
        "raw_put",
        "raw_get",
        "raw_keys",
        "open_unreachable",
        "open_refused",
        "secrets",
        "server_address",
        "expire_token",
        "full_store",
    ):
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


def test_an_expected_failure_is_no_ok(pytester: pytest.Pytester) -> None:
    methods, _ = BROKEN["ranges come short"]
    adoption = ADOPTION.format(broken=f"class Broken(FaultyStore):{methods}")
    adoption += """
    @pytest.mark.xfail(strict=True, reason="the server")
    @pytest.mark.parametrize("size", [100])
    def test_g9_range_past_the_end(self, store, container, size):
        super().test_g9_range_past_the_end(store, container, size)
"""
    pytester.makepyfile(adoption)
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "--guarantees", "-k", "g9 or g3")
    result.stdout.fnmatch_lines(["*guarantees of TestStore*", "G3   ok", "G9   fails as expected"])
