"""The conformance suite finds broken key stores and forgotten pieces, in a pytest of its own."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

# Before the runs, each of which forgets what it has imported: cryptography cannot be imported twice.
from backupfw.testing.keys import KeyStoreTests

pytest_plugins = ["pytester"]
#: Whole suites run in each of these tests.
pytestmark = pytest.mark.check

HEAD = """
import hashlib, logging, os, threading
from backupfw.errors import ConfigError
from backupfw.keys import record, wrapping
from backupfw.keys.base import KeyStore
from backupfw.keys.errors import *
from backupfw.keys.file import MARKER, FileKeyStore
from backupfw.testing.keys import KeyStoreTests
import pytest

class Good(FileKeyStore):
    API_VERSION = 1

class Adopted(KeyStoreTests):
    key_store_class = Good
    secrets = ()
    declared = {"restart_server": "there is no server"}
    kills = 3

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory):
        return tmp_path_factory.mktemp("keys")

    def options(self, server):
        return {"directory": str(server / "keys")}

    def unusable(self, server):
        (server / "empty").mkdir(0o700, exist_ok=True)
        return [{"directory": str(server / "empty")}]

    def raw_keys(self, server):
        return {path.name: path.read_bytes() for path in (server / "keys").iterdir() if path.name != MARKER}
"""

#: What is broken -> the methods, and tests that fail for it.
BROKEN: dict[str, tuple[str, set[str]]] = {
    "no encryption": (
        """
    def wrap(self, key_id, secret, context):
        return super().wrap(key_id, secret, context) + secret
    def unwrap(self, key_id, wrapped, context):
        return super().unwrap(key_id, wrapped[:33 + (len(wrapped) - 49) // 2 + 16], context)
""",
        {"test_k1_what_was_wrapped_is_unwrapped", "test_k3_each_changed_byte_is_refused"},
    ),
    "always the same bytes": (
        """
    def wrap(self, key_id, secret, context):
        old, os.urandom = os.urandom, bytes
        try:
            return super().wrap(key_id, secret, context)
        finally:
            os.urandom = old
""",
        {"test_k1_two_wraps_differ"},
    ),
    "the context does not count": (
        """
    def wrap(self, key_id, secret, context):
        return super().wrap(key_id, secret, b"")
    def unwrap(self, key_id, wrapped, context):
        return super().unwrap(key_id, wrapped, b"")
""",
        {"test_k2_another_context_is_refused"},
    ),
    "the end of the context does not count": (
        """
    def wrap(self, key_id, secret, context):
        return super().wrap(key_id, secret, context[:20])
    def unwrap(self, key_id, wrapped, context):
        return super().unwrap(key_id, wrapped, context[:20])
""",
        {"test_k2_another_context_is_refused"},
    ),
    "the version does not count": (
        """
    def unwrap(self, key_id, wrapped, context):
        return super().unwrap(key_id, b"\\x01" + wrapped[1:], context)
""",
        {"test_k3_each_changed_byte_is_refused"},
    ),
    "what follows is cut off": (
        """
    def wrap(self, key_id, secret, context):
        wrapped = super().wrap(key_id, secret, context)
        return len(wrapped).to_bytes(4, "big") + wrapped
    def unwrap(self, key_id, wrapped, context):
        length = int.from_bytes(wrapped[:4], "big")
        return super().unwrap(key_id, wrapped[4:4 + length], context)
""",
        {"test_k3_what_is_cut_or_lengthened_is_refused"},
    ),
    "refusals are errors of the library": (
        """
    def unwrap(self, key_id, wrapped, context):
        try:
            return super().unwrap(key_id, wrapped, context)
        except UnwrapRefused as error:
            raise ValueError("bad tag") from error
""",
        {"test_k2_another_context_is_refused", "test_k3_each_changed_byte_is_refused"},
    ),
    "refusals that may pass": (
        """
    def unwrap(self, key_id, wrapped, context):
        try:
            return super().unwrap(key_id, wrapped, context)
        except UnwrapRefused as error:
            error.may_pass = True
            raise
""",
        {"test_k3_each_changed_byte_is_refused"},
    ),
    "one key for a project": (
        """
    made = {}
    def create(self, project_id):
        if project_id not in self.made:
            self.made[project_id] = super().create(project_id)
        return self.made[project_id]
""",
        {
            "test_k4_each_key_has_an_id_of_its_own",
            "test_k4_no_key_unwraps_what_another_wrapped",
            "test_k5_the_old_key_stays_after_a_rotation",
        },
    ),
    "one key for all": (
        """
    def _read(self, directory, key_id, master):
        super()._read(directory, key_id, master)
        return b"k" * 32
    def wrap(self, key_id, secret, context):
        return wrapping.wrap(self._key(key_id), "", secret, context)
    def unwrap(self, key_id, wrapped, context):
        try:
            return wrapping.unwrap(self._key(key_id), "", wrapped, context)
        except UnwrapRefused:
            raise UnwrapRefused(key_id)
""",
        {"test_k4_no_key_unwraps_what_another_wrapped"},
    ),
    "ids with the project": (
        """
    def create(self, project_id):
        return super().create(project_id) + " of " + project_id
    def _open_key(self, directory, key_id, flags):
        return super()._open_key(directory, key_id.partition(" ")[0], flags)
""",
        {"test_k4_each_key_has_an_id_of_its_own"},
    ),
    "a rotation destroys": (
        """
    last = None
    def create(self, project_id):
        self.last = super().create(project_id)
        return self.last
    def rotate(self, project_id):
        self.destroy(self.last)
        return super().create(project_id)
""",
        {"test_k5_the_old_key_stays_after_a_rotation"},
    ),
    "keys are remembered": (
        """
    def __init__(self, options):
        super().__init__(options)
        self._known = {}
    def _key(self, key_id):
        if key_id not in self._known:
            self._known[key_id] = super()._key(key_id)
        return self._known[key_id]
""",
        {"test_k6_a_destroyed_key_is_gone_for_ever"},
    ),
    "destroyed keys are only marked": (
        """
    def destroy(self, key_id):
        with self._opened() as directory:
            try:
                os.rename(key_id, "x-" + key_id, src_dir_fd=directory, dst_dir_fd=directory)
            except (OSError, ValueError):
                pass
    def create(self, project_id):
        with self._opened(make=True) as directory:
            for name in os.listdir(directory):
                if name.startswith("x-"):
                    os.rename(name, name[2:], src_dir_fd=directory, dst_dir_fd=directory)
        return super().create(project_id)
""",
        {"test_k6_a_destroyed_key_is_gone_for_ever"},
    ),
    "a second destruction fails": (
        """
    def destroy(self, key_id):
        self._key(key_id)
        super().destroy(key_id)
""",
        {"test_k6_a_destroyed_key_is_gone_for_ever", "test_k6_what_was_never_there_is_gone"},
    ),
    "ids are paths": (
        """
    def _open_key(self, directory, key_id, flags):
        try:
            return os.open(os.path.join(self._directory, key_id), flags)
        except FileNotFoundError as error:
            raise ProjectKeyMissing(key_id) from error
""",
        {"test_k6_what_was_never_there_is_gone"},
    ),
    "keys in memory": (
        """
    kept = {}
    def create(self, project_id):
        key_id = super().create(project_id)
        self.kept[key_id] = os.urandom(32)
        return key_id
    def _key(self, key_id):
        super()._key(key_id)
        if key_id not in self.kept:
            raise ProjectKeyMissing(key_id)
        return self.kept[key_id]
""",
        {"test_k7_keys_outlive_the_process"},
    ),
    "keys are written in place": (
        """
    def create(self, project_id):
        import secrets, time
        key_id = secrets.token_hex(16)
        content = record.encoded(wrapping.new_key(), key_id, project_id)
        with self._opened(make=True) as directory:
            file = os.open(key_id, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory)
            for at in range(len(content)):
                os.write(file, content[at:at + 1])
                time.sleep(0.0001)
            os.close(file)
        return key_id
""",
        {"test_k8_killed_while_keys_are_made"},
    ),
    "told before it is there": (
        """
    def create(self, project_id):
        import secrets
        key_id = secrets.token_hex(16)
        content = record.encoded(wrapping.new_key(), key_id, project_id)
        def late():
            with self._opened(make=True) as directory:
                self._write(directory, key_id, content)
        threading.Timer(0.02, late).start()
        return key_id
""",
        {"test_k1_what_was_wrapped_is_unwrapped", "test_k9_many_threads"},
    ),
    "ids are counted": (
        """
    def create(self, project_id):
        import time
        with self._opened(make=True) as directory:
            number = len(os.listdir(directory))
            time.sleep(0.001)
            key_id = f"{number:032x}"
            content = record.encoded(wrapping.new_key(), key_id, project_id)
            self._write(directory, key_id + f".{os.getpid()}.{threading.get_ident()}", content)
            os.rename(
                key_id + f".{os.getpid()}.{threading.get_ident()}", key_id,
                src_dir_fd=directory, dst_dir_fd=directory,
            )
        return key_id
""",
        {"test_k9_many_threads", "test_k9_many_processes"},
    ),
    "what is not mounted is made again": (
        """
    def _check_directory(self, directory):
        pass
""",
        {"test_k10_a_key_store_that_cannot_be_used_says_so"},
    ),
    "what is not mounted has no keys": (
        """
    def destroy(self, key_id):
        try:
            super().destroy(key_id)
        except KeyStoreUnavailable:
            pass
    def wrap(self, key_id, secret, context):
        try:
            return super().wrap(key_id, secret, context)
        except KeyStoreUnavailable as error:
            raise ProjectKeyMissing(key_id) from error
""",
        {
            "test_k10_a_key_store_that_cannot_be_used_says_so",
            "test_k10_what_cannot_be_destroyed_is_no_success",
        },
    ),
    "the constructor opens": (
        """
    def __init__(self, options):
        super().__init__(options)
        with self._opened(make=True):
            pass
""",
        {"test_k10_a_key_store_that_cannot_be_used_says_so"},
    ),
    "check makes a key": (
        """
    def check(self):
        self.create("check")
""",
        {"test_k10_check_leaves_nothing"},
    ),
    "secrets in errors": (
        """
    def unwrap(self, key_id, wrapped, context):
        try:
            return super().unwrap(key_id, wrapped, context)
        except UnwrapRefused as error:
            raise UnwrapRefused(key_id) from ValueError(wrapped.hex())
""",
        {"test_k11_no_secret_is_shown"},
    ),
    "keys in the log": (
        """
    def _read(self, directory, key_id, master):
        import base64
        key = super()._read(directory, key_id, master)
        logging.getLogger("keys").debug("using %s", base64.b64encode(key).decode())
        return key
""",
        {"test_k11_no_secret_is_shown"},
    ),
    "keys in its repr": (
        """
    last = b""
    def wrap(self, key_id, secret, context):
        self.last = secret
        return super().wrap(key_id, secret, context)
    def __repr__(self):
        return f"Broken({self.last!r})"
""",
        {"test_k11_no_secret_is_shown"},
    ),
    "noise": (
        """
    def check(self):
        print("all is well")
""",
        {"test_k11_success_is_silent"},
    ),
}


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.HookRecorder]:
    def runner(text: str, *arguments: str) -> pytest.HookRecorder:
        pytester.makepyfile(text)
        return pytester.inline_run("-p", "no:cacheprovider", "-p", "no:randomly", *arguments)

    return runner


def failing(recorder: pytest.HookRecorder) -> set[str]:
    _, _, failed = recorder.listoutcomes()
    return {report.nodeid.rpartition("::")[2].partition("[")[0] for report in failed}


@pytest.mark.parametrize("name", BROKEN)
def test_each_fault_is_found(run: Callable[..., pytest.HookRecorder], name: str) -> None:
    code, expected = BROKEN[name]
    broken = f"class Broken(Good):\n    API_VERSION = 1\n{code}"
    text = f"{HEAD}\n{broken}\nclass TestBroken(Adopted):\n    key_store_class = Broken\n"
    assert expected - failing(run(text, "-k", " or ".join(sorted(expected)))) == set()


def test_every_test_finds_a_fault() -> None:
    tests = {name for name in dir(KeyStoreTests) if name.startswith("test_")}
    found = {name for _, names in BROKEN.values() for name in names}
    without = {
        # The file store has no server; drivers with one run it.
        "test_k7_keys_outlive_the_server",
        "test_k8_killed_while_keys_are_destroyed",
        "test_k11_it_was_written_for_this_contract",
    }
    assert tests - found == without


def test_the_sound_one_passes(run: Callable[..., pytest.HookRecorder]) -> None:
    assert failing(run(f"{HEAD}\nclass TestGood(Adopted):\n    pass\n")) == set()


PIECES = ["key_store_class", "secrets", "options", "unusable", "raw_keys", "restart_server"]


@pytest.mark.parametrize("piece", PIECES)
def test_forgotten_pieces_fail_and_do_not_skip(run: Callable[..., pytest.HookRecorder], piece: str) -> None:
    text = f"{HEAD}\nclass TestForgetful(Adopted):\n    {piece} = KeyStoreTests.{piece}\n"
    test = "k11_no_secret"
    if piece == "restart_server":
        text, test = f"{text}    declared = {{}}\n", "k7_keys_outlive_the_server"
    _, skipped, failed = run(text, "-x", "-k", test).listoutcomes()
    assert skipped == []
    assert re.search(rf"the suite's adoption lacks {piece}\b", str(failed[0].longrepr))
