"""The conformance suite for key stores: every guarantee as a named test.

The author of a key store subclasses :class:`KeyStoreTests` in a test module; pytest runs the rest::

    class TestMyKeyStore(KeyStoreTests):
        key_store_class = MyKeyStore
        secrets = ("the password",)

        @pytest.fixture(scope="class")
        @classmethod
        def server(cls):
            with my_server() as server:
                yield server

        def options(self, server): ...
        def unusable(self, server): ...
        def raw_keys(self, server): ...
        # Or the reason why not, in ``declared``:
        def restart_server(self, server): ...

If a function is missing, its tests fail.  The name of a test has the guarantee of :mod:`backupfw.keys.base`
that it proves: ``test_k2_another_context_is_refused``.
"""

from __future__ import annotations

import base64
import logging
import os
import random
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import pytest

from backupfw.chunkstore.options import option_values
from backupfw.keys.base import API_VERSION, MAX_CONTEXT, MAX_KEY_ID, MAX_SECRET, KeyStore
from backupfw.keys.errors import KeyStoreError, KeyStoreUnavailable, ProjectKeyMissing, UnwrapRefused
from backupfw.testing.processes import PATIENCE, Recipe, Work, other_process
from backupfw.testing.suite.adoption import forgotten

__all__ = ["KeyStoreTests"]

#: Functions that may be missing if the author declares the reason, in :attr:`KeyStoreTests.declared`.
OPTIONAL = ("restart_server",)

_SECRET = bytes(range(64))
_CONTEXT = b"installation/project/volume"
#: What may be a key in the bytes that are stored: long words without dashes, which ids may have.
_WORD = re.compile(rb"[A-Za-z0-9+/=]{24,}")
_THREADS = 8
#: How much a process that is to be killed has done at most before.
_MOST_TOLD = 5


class KeyStoreTests:
    """Everything a key store promises.  Subclass it once per way of setting it up."""

    # ---- to supply -------------------------------------------------------------------------------

    #: The key store's class.
    key_store_class: ClassVar[type[KeyStore] | None] = None
    #: Texts that must not appear anywhere (tokens, passwords); ``()`` if the key store has none.
    secrets: ClassVar[Sequence[str] | None] = None
    #: What is missing, and the reasons: name in :data:`OPTIONAL` -> reason.
    declared: ClassVar[Mapping[str, str]] = {}
    #: Seconds within which a key store that cannot be reached says so.
    unusable_seconds: ClassVar[float] = 60.0
    #: How often a process is killed in each test that kills.
    kills: ClassVar[int] = 6

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Any:
        """Start or find the place of the keys; override it.  All methods below get it.

        A class method, because it is made once for all tests of the class.
        """
        return None

    def options(self, server: Any) -> Mapping[str, object]:
        """Return the values of the key store's options, as in a configuration file.

        Other processes open the key store with them, too: only text, numbers, truth values and lists.
        """
        forgotten("options(server), a mapping of option values")

    def unusable(self, server: Any) -> Sequence[Mapping[str, object]]:
        """Return values of options with which the key store cannot be used, although they are well-formed.

        For example a closed port, a place that is not mounted, credentials that are refused.
        """
        forgotten("unusable(server), a sequence of mappings of option values")

    def raw_keys(self, server: Any) -> Mapping[str, bytes]:
        """Return what is stored of every key, by its id, without the key store.

        Things that are not keys, but that the key store has made and not removed, belong to it, too.
        """
        forgotten("raw_keys(server), a mapping of ids to bytes")

    def restart_server(self, server: Any) -> None:
        """End the server of the keys and start it again; return when it answers."""
        forgotten("restart_server(server), or a reason in declared")

    # ---- what tests use --------------------------------------------------------------------------

    def open_key_store(self, options: Mapping[str, object]) -> KeyStore:
        """Open the key store with values of options."""
        if self.key_store_class is None:
            forgotten("key_store_class")
        return self.key_store_class(option_values(self.key_store_class.options(), **dict(options)))

    @pytest.fixture
    def keys(self, server: Any) -> Iterator[KeyStore]:
        """An opened key store."""
        keys = self.open_key_store(self.options(server))
        yield keys
        keys.close()

    def recipe(self, server: Any) -> Recipe:
        """Return how another process makes the key store."""
        if self.key_store_class is None:
            forgotten("key_store_class")
        return Recipe.of(self.key_store_class, self.options(server))

    # ---- wrapping --------------------------------------------------------------------------------

    def test_k1_what_was_wrapped_is_unwrapped(self, keys: KeyStore) -> None:
        key_id = keys.create("project")
        for size in (1, 16, 64, MAX_SECRET):
            for context in (b"", _CONTEXT, bytes(MAX_CONTEXT)):
                secret = os.urandom(size)
                wrapped = keys.wrap(key_id, secret, context)
                assert isinstance(wrapped, bytes)
                assert len(wrapped) <= size + 1024
                assert size < 16 or secret not in wrapped
                assert keys.unwrap(key_id, wrapped, context) == secret

    def test_k1_two_wraps_differ(self, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = {keys.wrap(key_id, _SECRET, _CONTEXT) for _ in range(20)}
        assert len(wrapped) == 20
        # Equal secrets do not even begin or end alike.
        assert len({each[-16:] for each in wrapped}) == 20

    def test_k2_another_context_is_refused(self, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        others = [b"", _CONTEXT[:-1], _CONTEXT + b"\0", _CONTEXT[1:], _CONTEXT.upper(), _CONTEXT * 2]
        for other in others:
            _refused(keys, key_id, wrapped, other)
        without = keys.wrap(key_id, _SECRET, b"")
        _refused(keys, key_id, without, b"\0")
        assert keys.unwrap(key_id, wrapped, _CONTEXT) == _SECRET

    def test_k3_each_changed_byte_is_refused(self, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        for at in range(len(wrapped)):
            changed = bytearray(wrapped)
            changed[at] ^= 1 << at % 8
            _refused(keys, key_id, bytes(changed), _CONTEXT)

    def test_k3_what_is_cut_or_lengthened_is_refused(self, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        for length in range(len(wrapped)):
            _refused(keys, key_id, wrapped[:length], _CONTEXT)
        for changed in (wrapped + b"\0", b"\0" + wrapped, wrapped * 2, wrapped[1:], os.urandom(5000)):
            _refused(keys, key_id, changed, _CONTEXT)

    # ---- keys ------------------------------------------------------------------------------------

    def test_k4_each_key_has_an_id_of_its_own(self, keys: KeyStore) -> None:
        projects = ["one", "one", "two", "x" * 255, "a project/with\u00fcmlauts"]
        ids = [keys.create(project) for project in projects]
        assert len(set(ids)) == len(ids)
        for key_id in ids:
            assert re.fullmatch(r"[!-~]+", key_id), f"no id: {key_id!r}"
            assert len(key_id) <= MAX_KEY_ID

    def test_k4_no_key_unwraps_what_another_wrapped(self, keys: KeyStore) -> None:
        one, same, other = keys.create("one"), keys.create("one"), keys.create("two")
        wrapped = keys.wrap(one, _SECRET, _CONTEXT)
        _refused(keys, same, wrapped, _CONTEXT)
        _refused(keys, other, wrapped, _CONTEXT)
        assert keys.unwrap(one, wrapped, _CONTEXT) == _SECRET

    def test_k5_the_old_key_stays_after_a_rotation(self, keys: KeyStore) -> None:
        old = keys.create("project")
        wrapped = keys.wrap(old, _SECRET, _CONTEXT)
        new = keys.rotate("project")
        assert new != old
        again = keys.wrap(new, keys.unwrap(old, wrapped, _CONTEXT), _CONTEXT)
        assert keys.unwrap(new, again, _CONTEXT) == _SECRET
        _refused(keys, old, again, _CONTEXT)
        assert keys.unwrap(old, keys.wrap(old, b"still", b""), b"") == b"still"

    def test_k6_a_destroyed_key_is_gone_for_ever(self, server: Any, keys: KeyStore) -> None:
        gone, kept = keys.create("project"), keys.create("project")
        wrapped, other = (keys.wrap(key_id, _SECRET, _CONTEXT) for key_id in (gone, kept))
        earlier = self.open_key_store(self.options(server))
        assert earlier.unwrap(gone, wrapped, _CONTEXT) == _SECRET
        keys.destroy(gone)
        later = self.open_key_store(self.options(server))
        for each in (keys, earlier, later):
            _missing(each, gone, wrapped)
            each.destroy(gone)
            _missing(each, gone, wrapped)
            assert each.unwrap(kept, other, _CONTEXT) == _SECRET
        # Nor does it come back later.
        keys.create("project")
        keys.check()
        _missing(keys, gone, wrapped)
        assert gone not in self.raw_keys(server)
        earlier.close()
        later.close()

    def test_k6_what_was_never_there_is_gone(self, server: Any, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        stored = self.raw_keys(server)
        flipped = ("1" if key_id[0] == "0" else "0") + key_id[1:]
        odd = [flipped, key_id[:-1], key_id + "0", "x", "x" * MAX_KEY_ID, "0" * 32, f"./{key_id}"]
        odd += ["", ".", "..", "../../etc/passwd", "/", "a b", "%2e%2e", "*", "caf\u00e9", "\n", "\0"]
        for unknown in odd:
            _missing(keys, unknown, wrapped)
            keys.destroy(unknown)
        assert self.raw_keys(server) == stored
        assert keys.unwrap(key_id, wrapped, _CONTEXT) == _SECRET

    # ---- processes and threads -------------------------------------------------------------------

    def test_k7_keys_outlive_the_process(self, server: Any, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        with other_process(self.recipe(server), _unwrap, key_id, wrapped) as other:
            assert other.result() == _SECRET
        with other_process(self.recipe(server), _create_and_wrap) as other:
            theirs, wrapped = other.result()
        assert keys.unwrap(theirs, wrapped, _CONTEXT) == _SECRET

    def test_k7_keys_outlive_the_server(self, server: Any, keys: KeyStore) -> None:
        if "restart_server" in self.declared:
            pytest.skip(f"declared: {self.declared['restart_server']}")
        key_id, gone = keys.create("project"), keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        lost = keys.wrap(gone, _SECRET, _CONTEXT)
        keys.destroy(gone)
        self.restart_server(server)
        assert keys.unwrap(key_id, wrapped, _CONTEXT) == _SECRET
        _missing(keys, gone, lost)

    def test_k8_killed_while_keys_are_made(self, server: Any, keys: KeyStore) -> None:
        for made in self._killed(server, _create_all):
            for key_id in made:
                assert keys.unwrap(key_id, keys.wrap(key_id, _SECRET, b""), b"") == _SECRET
            # Whatever was left half is removed, or is a whole key.
            keys.create("project")
            for key_id in self.raw_keys(server):
                assert keys.unwrap(key_id, keys.wrap(key_id, _SECRET, b""), b"") == _SECRET
            keys.check()

    def test_k8_killed_while_keys_are_destroyed(self, server: Any, keys: KeyStore) -> None:
        def fresh() -> tuple[Sequence[str]]:
            return ([keys.create("project") for _ in range(_MOST_TOLD + 3)],)

        kept = keys.create("project")
        wrapped = keys.wrap(kept, _SECRET, _CONTEXT)
        for told, (ids,) in zip(*self._killed_with(server, _destroy_all, fresh), strict=True):
            for number, key_id in enumerate(ids):
                if number < len(told):
                    _missing(keys, key_id, wrapped)
                else:
                    with suppress(ProjectKeyMissing):
                        keys.wrap(key_id, _SECRET, b"")
                keys.destroy(key_id)
                _missing(keys, key_id, wrapped)
            assert not set(ids) & set(self.raw_keys(server))
            assert keys.unwrap(kept, wrapped, _CONTEXT) == _SECRET
            keys.check()

    def _killed(self, server: Any, work: Work) -> Iterator[Sequence[Any]]:
        """Kill a process again and again while it works; yield what each had told."""
        noise = random.Random(1)
        for _ in range(self.kills):
            yield self._told(server, work, (), noise)

    def _killed_with(
        self, server: Any, work: Work, fresh: Callable[[], tuple[Any, ...]]
    ) -> tuple[list[Sequence[Any]], list[tuple[Any, ...]]]:
        noise, arguments = random.Random(2), [fresh() for _ in range(self.kills)]
        return [self._told(server, work, each, noise) for each in arguments], arguments

    def _told(
        self, server: Any, work: Work, arguments: tuple[Any, ...], noise: random.Random
    ) -> Sequence[Any]:
        told = []
        with other_process(self.recipe(server), work, *arguments) as other:
            other.go()
            for _ in range(noise.randint(1, _MOST_TOLD)):
                told.append(other.told())
            time.sleep(noise.random() * 0.005)
        return told

    def test_k9_many_threads(self, server: Any, keys: KeyStore) -> None:
        shared = keys.create("project")
        wrapped = keys.wrap(shared, _SECRET, _CONTEXT)

        def use(number: int) -> str:
            key_id = keys.create(f"project-{number}")
            secret = os.urandom(64)
            own = keys.wrap(key_id, secret, _CONTEXT)
            for _ in range(3):
                assert keys.unwrap(shared, wrapped, _CONTEXT) == _SECRET
                assert keys.unwrap(key_id, own, _CONTEXT) == secret
            keys.destroy(key_id)
            _missing(keys, key_id, own)
            return key_id

        with ThreadPoolExecutor(_THREADS) as pool:
            ids = list(pool.map(use, range(2 * _THREADS)))
        assert len(set(ids)) == len(ids)

    def test_k9_many_processes(self, server: Any, keys: KeyStore) -> None:
        with ExitStack() as running:
            others = [
                running.enter_context(other_process(self.recipe(server), _create_some)) for _ in range(4)
            ]
            for other in others:
                other.go()
            ids = [key_id for other in others for key_id in other.told()]
        assert len(set(ids)) == len(ids)
        for key_id in ids:
            assert keys.unwrap(key_id, keys.wrap(key_id, _SECRET, b""), b"") == _SECRET

    # ---- conduct ---------------------------------------------------------------------------------

    def test_k10_a_key_store_that_cannot_be_used_says_so(self, server: Any, keys: KeyStore) -> None:
        key_id = keys.create("project")
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        stored = self.raw_keys(server)
        found = self.unusable(server)
        assert found
        for options in found:
            # The constructor asks nobody.
            broken = self.open_key_store(options)
            for use in (*_uses(broken, key_id, wrapped), broken.check):
                began = time.monotonic()
                with pytest.raises(KeyStoreUnavailable) as caught:
                    use()
                assert caught.value.may_pass
                assert time.monotonic() - began < self.unusable_seconds
            broken.close()
        assert self.raw_keys(server) == stored

    def test_k10_what_cannot_be_destroyed_is_no_success(self, server: Any, keys: KeyStore) -> None:
        """It may be possible, though nothing else is: what wraps the keys may be lost."""
        for options in self.unusable(server):
            key_id = keys.create("project")
            wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
            broken = self.open_key_store(options)
            try:
                broken.destroy(key_id)
            except KeyStoreUnavailable:
                assert keys.unwrap(key_id, wrapped, _CONTEXT) == _SECRET
            else:
                _missing(keys, key_id, wrapped)
            broken.close()

    def test_k10_check_leaves_nothing(self, server: Any, keys: KeyStore) -> None:
        keys.create("project")
        stored = self.raw_keys(server)
        keys.check()
        assert self.raw_keys(server) == stored

    def test_k11_no_secret_is_shown(
        self, server: Any, keys: KeyStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        if self.secrets is None:
            forgotten("secrets (a sequence of texts, () if there are none)")
        caplog.set_level(logging.DEBUG)
        key_id, other, gone = (keys.create("project") for _ in range(3))
        wrapped = keys.wrap(key_id, _SECRET, _CONTEXT)
        keys.unwrap(key_id, wrapped, _CONTEXT)
        stored = self.raw_keys(server)
        said = [repr(keys), str(keys)]
        broken = [self.open_key_store(options) for options in self.unusable(server)]
        failing: list[Callable[[], object]] = [
            lambda: keys.unwrap(other, wrapped, _CONTEXT),
            lambda: keys.unwrap(key_id, wrapped, b""),
        ]
        failing += [use for each in broken for use in (*_uses(each, key_id, wrapped), each.check)]
        keys.destroy(gone)
        failing += [lambda: keys.wrap(gone, _SECRET, b"")]
        for use in failing:
            with pytest.raises(KeyStoreError) as caught:
                use()
            said += [repr(caught.value), *traceback.format_exception(caught.value)]
            for word in ("://", "/", "\n"):
                assert word not in caught.value.for_user, "users would read an endpoint or a path"
        said += [repr(each) for each in broken]
        said += [record.getMessage() for record in caplog.records]
        hidden = [*self.secrets, *_shown(_SECRET), *_shown(wrapped)]
        hidden += [word.decode() for content in stored.values() for word in _WORD.findall(content)]
        for secret in set(hidden) - set(stored):
            assert not [text for text in said if secret in text]

    def test_k11_success_is_silent(
        self,
        server: Any,
        keys: KeyStore,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        caplog.clear()
        key_id = keys.create("project")
        keys.unwrap(key_id, keys.wrap(key_id, _SECRET, b""), b"")
        keys.destroy(key_id)
        keys.destroy(key_id)
        keys.check()
        assert not [record for record in caplog.records if record.levelno >= logging.INFO]
        assert capfd.readouterr() == ("", "")

    def test_k11_it_was_written_for_this_contract(self) -> None:
        if self.key_store_class is None:
            forgotten("key_store_class")
        assert self.key_store_class.API_VERSION == API_VERSION
        mine = [each for each in self.key_store_class.__mro__ if each is not KeyStore]
        assert any("API_VERSION" in vars(each) for each in mine), "it must state its own API_VERSION"
        names = [opt.dest for opt in self.key_store_class.options()]
        assert len(set(names)) == len(names)
        assert "driver" not in names
        for opt in self.key_store_class.options():
            assert opt.help, f"option {opt.name} has no help"


def _refused(keys: KeyStore, key_id: str, wrapped: bytes, context: bytes) -> None:
    with pytest.raises(UnwrapRefused) as caught:
        keys.unwrap(key_id, wrapped, context)
    assert not caught.value.may_pass
    assert caught.value.key_id == key_id


def _missing(keys: KeyStore, key_id: str, wrapped: bytes) -> None:
    uses: list[Callable[[], object]] = [
        lambda: keys.unwrap(key_id, wrapped, _CONTEXT),
        lambda: keys.wrap(key_id, b"s", b""),
    ]
    for use in uses:
        with pytest.raises(ProjectKeyMissing) as caught:
            use()
        assert not caught.value.may_pass
        assert caught.value.key_id == key_id


def _uses(keys: KeyStore, key_id: str, wrapped: bytes) -> list[Callable[[], object]]:
    return [
        lambda: keys.create("project"),
        lambda: keys.rotate("project"),
        lambda: keys.wrap(key_id, _SECRET, _CONTEXT),
        lambda: keys.unwrap(key_id, wrapped, _CONTEXT),
    ]


def _shown(secret: bytes) -> list[str]:
    """Return how bytes may look in a text; parts of it, too."""
    part = secret[:24]
    return [part.hex(), base64.b64encode(part).decode(), repr(part)[2:-1], repr(secret)[2:-1]]


# ---- what other processes do ---------------------------------------------------------------------


def _unwrap(keys: KeyStore, pipe: Connection, key_id: str, wrapped: bytes) -> bytes:
    return keys.unwrap(key_id, wrapped, _CONTEXT)


def _create_and_wrap(keys: KeyStore, pipe: Connection) -> tuple[str, bytes]:
    key_id = keys.create("project")
    return key_id, keys.wrap(key_id, _SECRET, _CONTEXT)


def _create_some(keys: KeyStore, pipe: Connection) -> list[str]:
    return [keys.create("project") for _ in range(10)]


def _create_all(keys: KeyStore, pipe: Connection) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        pipe.send(keys.create("project"))


def _destroy_all(keys: KeyStore, pipe: Connection, ids: Sequence[str]) -> None:
    for key_id in ids:
        keys.destroy(key_id)
        pipe.send(key_id)
    time.sleep(PATIENCE)
