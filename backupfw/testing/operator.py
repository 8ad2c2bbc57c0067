"""The tests of a configured store for operators: ``backupfw store check NAME``.

They are the part of the conformance suite that needs only the driver and disturbs nobody: they work
under a key prefix of their own in the container of backups, with random contents, and delete their objects
afterwards.  They use the same layers as backups, and need no pytest.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from blake3 import blake3

from backupfw.chunkstore.base import Body, CheckItem, ChunkStore
from backupfw.chunkstore.checks import Caution
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
    locked_until,
)

#: Where backups go unless somebody asks for another container; made if it is not there.
CONTAINER = "volumebackups"
#: More than the largest page of a common server's listing.
LISTED = 1100
#: Seconds a listing may lag where the store declares that it does.
PATIENCE = 60.0
#: Threads at once.
THREADS = 8
#: How long the check's own object is locked, in seconds.
LOCKED = 10.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """The verdict on one guarantee.

    :ivar guarantee: e.g. ``G9``, or ``check`` for the driver's own.
    :ivar title: the guarantee in a few words.
    :ivar ok: whether it holds, as far as the test shows.
    :ivar detail: the reason if not, or a remark.
    :ivar seconds: the duration of the test.
    :ivar warning: it holds, but the detail warns of a consequence that few operators want.
    """

    guarantee: str
    title: str
    ok: bool
    detail: str
    seconds: float
    warning: bool = False

    @property
    def result(self) -> str:
        """The verdict as a word: ``ok``, ``warning`` or ``failed``."""
        if not self.ok:
            return "failed"
        return "warning" if self.warning else "ok"

    @property
    def line(self) -> str:
        """The verdict as one line of text."""
        word = self.result if self.ok else "FAILED"
        text = f"{self.guarantee:<6}{word:<8}{self.title}"
        return f"{text}: {self.detail}" if self.detail else text


class _Broken(Exception):
    """A guarantee does not hold; the text says how."""


class _Bench:
    """A store, and the objects that were put into it."""

    def __init__(self, store: ChunkStore, container: str) -> None:
        self.store = store
        self.container = container
        self.prefix = f"backupfw-check/{secrets.token_hex(16)}/"
        self._made: set[str] = set()

    def key(self, name: str) -> str:
        """Return a key under the prefix; it is deleted at the end."""
        key = self.prefix + name
        self._made.add(key)
        return key

    def put(self, name: str, data: bytes) -> str:
        key = self.key(name)
        self.store.put(self.container, key, Body.from_bytes(data))
        return key

    def made(self, name: str) -> list[str]:
        """Return the keys made so far with this beginning."""
        return sorted(key for key in self._made if key.startswith(self.prefix + name))

    def keys(self, name: str = "") -> list[str]:
        return [info.key for info in self.store.list(self.container, self.prefix + name)]

    def await_keys(self, expected: Sequence[str], name: str = "") -> None:
        """Raise unless a listing shows these keys, at once or as soon as the store declares."""
        end = time.monotonic() + PATIENCE
        while True:
            found = self.keys(name)
            if sorted(found) == sorted(expected):
                return
            if not self.store.capabilities.listing_lag or time.monotonic() > end:
                missing = len(set(expected) - set(found))
                raise _Broken(
                    f"{missing} of {len(expected)} objects are missing in the listing, {len(found)} shown"
                )
            time.sleep(0.5)

    def clean(self) -> str | None:
        """Delete everything that was made, whether a listing shows it or not, and all versions of it."""
        self.store.delete(self.container, sorted(self._made))
        left = self.keys()
        if left and not self.store.capabilities.listing_lag:
            self.store.delete(self.container, left)
            raise _Broken(f"{len(left)} objects were left")
        try:
            self.store.erase(self.container, self.prefix)
        except PermissionDenied as error:
            raise Caution(f"older versions of the check's objects may remain: {error.reason}") from error
        return None


def _expect(kind: type[ChunkStoreError], action: Callable[[], object], what: str) -> None:
    try:
        action()
    except kind:
        return
    raise _Broken(f"{what} is not refused")


def _same(found: bytes, expected: bytes, what: str) -> None:
    if found != expected:
        raise _Broken(f"{what}: {len(found)} bytes came back that are not the {len(expected)} written")


def _round_trips(bench: _Bench) -> str:
    for size in (0, 1, 65_537, (1 << 20) + 1, 32 << 20):
        data = secrets.token_bytes(size)
        key = bench.put(f"size-{size}", data)
        _same(bench.store.get(bench.container, key), data, f"an object of {size} bytes")
    return "0 bytes to 32 MiB"


def _missing(bench: _Bench) -> str | None:
    _expect(NotFound, lambda: bench.store.get(bench.container, bench.key("missing")), "a missing object")
    _expect(
        NotFound,
        lambda: bench.store.get(bench.container, bench.key("missing"), 0, 1),
        "a range of a missing object",
    )
    return None


def _delete_missing(bench: _Bench) -> str | None:
    key = bench.put("deleted", b"x")
    for _ in range(2):
        bench.store.delete(bench.container, [key, bench.key("never")])
    _expect(NotFound, lambda: bench.store.get(bench.container, key), "a deleted object")
    return None


def _bad_bodies(data: bytes) -> tuple[tuple[str, Body], ...]:
    return (
        ("a body shorter than declared", Body(data, len(data) + 1, blake3(data + b"x").digest())),
        ("a body longer than declared", Body(data, len(data) - 1, blake3(data[:-1]).digest())),
        ("a body with another checksum", Body(data, len(data), blake3(data + b"x").digest())),
    )


def _failed_puts(bench: _Bench) -> str | None:
    old = bench.put("kept", b"old")
    new = bench.key("never-whole")
    for what, body in _bad_bodies(secrets.token_bytes(300_000)):
        for key in (old, new):
            try:
                bench.store.put(bench.container, key, body)
            except ChunkStoreError:
                continue
            raise _Broken(f"{what} was stored")
    _same(bench.store.get(bench.container, old), b"old", "after failed puts")
    _expect(NotFound, lambda: bench.store.get(bench.container, new), "an object whose put failed")
    return None


def _verified_puts(bench: _Bench) -> str | None:
    for what, body in _bad_bodies(secrets.token_bytes(1000)):
        _expect(
            IntegrityError,
            lambda body=body: bench.store.put(bench.container, bench.key("bad"), body),  # type: ignore[misc]
            what,
        )
    return None


def _replacing(bench: _Bench) -> str | None:
    states = [secrets.token_bytes(20_000 + 5000 * number) for number in range(4)]
    key = bench.put("replaced", states[0])
    with ThreadPoolExecutor(THREADS) as pool:
        reads = [pool.submit(bench.store.get, bench.container, key) for _ in range(20)]
        for state in states[1:]:
            bench.put("replaced", state)
        if any(read.result() not in states for read in reads):
            raise _Broken("a reader saw neither the old nor the new bytes")
    _same(bench.store.get(bench.container, key), states[-1], "a replaced object")
    return None


def _if_absent(bench: _Bench) -> str | None:
    def put(data: bytes) -> None:
        bench.store.put(bench.container, key, Body.from_bytes(data), if_absent=True)

    key = bench.key("conditional")
    if not bench.store.capabilities.if_absent:
        _expect(NotSupported, lambda: put(b"first"), "a conditional put")
        return "not supported, as declared"
    put(b"first")
    _expect(AlreadyExists, lambda: put(b"second"), "a conditional put over an object")
    _same(bench.store.get(bench.container, key), b"first", "after a refused put")
    return None


def _ranges(bench: _Bench) -> str | None:
    data = secrets.token_bytes(200_000)
    key = bench.put("ranges", data)
    for offset, length in ((0, 1), (199_999, 1), (65_535, 2), (1000, 150_000)):
        found = bench.store.get(bench.container, key, offset, length)
        _same(found, data[offset : offset + length], f"bytes {offset}+{length}")
    for offset, length in ((200_000, 1), (199_999, 2), (0, 200_001)):
        _expect(
            RangeError,
            lambda offset=offset, length=length: bench.store.get(  # type: ignore[misc]
                bench.container, key, offset, length
            ),
            f"a range past the end ({offset}+{length} of 200000)",
        )
    return None


def _listing(bench: _Bench) -> str:
    names = [f"list/{number:05}" for number in range(LISTED)] + ["list", "list/00001/below", "listed"]
    keys = [bench.key(name) for name in names]
    with ThreadPoolExecutor(THREADS) as pool:
        # list(): an error of any put is raised here.
        list(pool.map(lambda name: bench.put(name, b"x"), names))
    bench.await_keys(keys, "list")
    for name in ("list/", "list/0000", "list/00001", "liste", "list//"):
        prefix = bench.prefix + name
        bench.await_keys([key for key in keys if key.startswith(prefix)], name)
    found = bench.keys("list")
    if bench.store.capabilities.sorted_listing and found != sorted(found):
        raise _Broken("the listing is not sorted")
    return f"{len(keys)} objects"


def _deleting(bench: _Bench) -> str | None:
    stays = bench.put("delete/stays", b"x")
    bench.store.delete(bench.container, keys := bench.made("list"))
    bench.await_keys([], "list")
    bench.await_keys([stays], "delete")
    return f"{len(keys)} objects, {max(1, bench.store.capabilities.bulk_delete)} per request"


def _names(bench: _Bench) -> str | None:
    names = ["a b", "\u00e4/\u65e5\u672c\u8a9e/\U0001f642", "100%/%41/%2F", "a+b&c=d?e#f", "Case", "case"]
    names += ["e\u0301", "\u00e9", ".hidden/..two", 'it\'s "quoted"']
    # As long as a key may be, of parts that every server takes.
    room = 1024 - len(bench.prefix) - len("names/")
    names.append("/".join(["x" * 200] * 5)[:room].rstrip("/"))
    count = len(names)
    names = [name for name in names if re.fullmatch(bench.store.key_pattern, f"{bench.prefix}names/{name}")]
    keys = [bench.put(f"names/{name}", name.encode()) for name in names]
    for name, key in zip(names, keys, strict=True):
        _same(bench.store.get(bench.container, key), name.encode(), f"the object {name!a}")
    bench.await_keys(keys, "names/")
    return f"{count - len(names)} names are not for this store" if len(names) < count else None


def _threads(bench: _Bench) -> str:
    def work(number: int) -> None:
        for turn in range(5):
            data = secrets.token_bytes(50_000 + number)
            key = bench.put(f"threads/{number}", data)
            _same(bench.store.get(bench.container, key), data, f"thread {number}")
            if turn < 4:
                bench.store.delete(bench.container, [key])

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, range(THREADS)))
    return f"{THREADS} threads"


def _containers(bench: _Bench) -> str | None:
    bench.store.ensure_container(bench.container)
    if bench.container not in list(bench.store.list_containers()):
        raise _Broken(f"container {bench.container} is not listed")
    return None


def _locks(bench: _Bench) -> str | None:
    """Lock an object for a moment, see that nothing deletes it, and delete it when the lock has ended."""
    # Not below the prefix: if it cannot be deleted in the end, it is no other look's fault.
    key = f"{bench.prefix.rstrip('/')}-locked"
    store, container = bench.store, bench.container
    until = datetime.now(UTC) + timedelta(seconds=LOCKED)
    store.put(container, key, Body.from_bytes(b"backupfw lock check\n").locked(until))
    until += timedelta(seconds=1)
    store.lock(container, key, until)
    try:
        store.erase(container, key)
    except ChunkStoreError as error:
        if error.temporary or locked_until(error) is None:
            raise
    else:
        raise _Broken("an object that is locked can be deleted with these credentials")
    _same(store.get(container, key), b"backupfw lock check\n", "the locked object")
    end = until + timedelta(seconds=PATIENCE)
    while True:
        time.sleep(max(0.5, (until - datetime.now(UTC)).total_seconds()))
        try:
            store.erase(container, key)
        except PermissionDenied as error:
            if datetime.now(UTC) < end:
                continue
            raise Caution(f"the object {key} stays: {error.reason}; delete it later") from error
        return "a locked object cannot be deleted with these credentials"


_LOOKS: tuple[tuple[str, str, Callable[[_Bench], str | None]], ...] = (
    ("G14", "containers can be made and listed", _containers),
    ("G1", "what is put comes back", _round_trips),
    ("G2", "a missing object is an error", _missing),
    ("G3", "deleting a missing object succeeds", _delete_missing),
    ("G4", "a failed put leaves nothing", _failed_puts),
    ("G5", "bytes that are not what was declared are refused", _verified_puts),
    ("G6", "a put replaces at once", _replacing),
    ("G7", "conditional puts", _if_absent),
    ("G9", "ranges are exact", _ranges),
    ("G10", "listings are complete, prefixes raw", _listing),
    ("G11", "many objects are deleted", _deleting),
    ("G12", "names are stored as they are", _names),
    ("G13", "many threads at once", _threads),
)
#: Only where ``lock_days`` is set: it takes a while.
_LOCK_LOOK = ("G20", "locked objects stay", _locks)


def check(
    store: ChunkStore, container: str = CONTAINER, *, locks: bool = False
) -> Generator[Verdict, None, None]:
    """Test one guarantee after the other.

    :param store: an opened store, with its layers; the caller closes it.
    :param container: the container to use; created if it does not exist, and then left empty.
    :param locks: whether objects in it are to be locked; an object for the test is, for some seconds.
    :returns: verdicts, each as soon as it is known.  All objects are deleted at the end, also if the
        caller stops early (then close the iterator).
    """
    bench = _Bench(store, container)
    yield from _verdicts(lambda: store.check().items)
    try:
        for guarantee, title, look in (*_LOOKS, *([_LOCK_LOOK] if locks else [])):
            verdict = _judged(guarantee, title, look, bench)
            yield verdict
            if look is _containers and not verdict.ok:
                # Nothing else can work, and each try would last until its timeout.
                return
            if look is _containers:
                yield from _verdicts(lambda: store.inspect(container))
    finally:
        cleaned = _judged("clean", "nothing is left behind", _Bench.clean, bench)
    yield cleaned


def _verdicts(look: Callable[[], Sequence[CheckItem]]) -> Iterator[Verdict]:
    """Yield the driver's own items; the first one has the duration."""
    start = time.monotonic()
    for item in look():
        yield Verdict("check", item.name, item.ok, item.detail, time.monotonic() - start, item.warning)
        start = time.monotonic()


def _judged(guarantee: str, title: str, look: Callable[[_Bench], str | None], bench: _Bench) -> Verdict:
    start = time.monotonic()
    warning = False
    try:
        detail, ok = look(bench) or "", True
    except Caution as caution:
        detail, ok, warning = str(caution), True, True
    except (_Broken, ChunkStoreError) as error:
        detail, ok = str(error), False
    return Verdict(guarantee, title, ok, detail, time.monotonic() - start, warning)
