"""The functions that the author of a volume provider supplies, and the fixtures made from them."""

from __future__ import annotations

import random
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from backupfw.chunkstore.options import option_values
from backupfw.errors import BackupfwError
from backupfw.testing.suite.adoption import forgotten, require_bytes
from backupfw.testing.volume.disk import Disk
from backupfw.volume.base import Needed, VolumeProvider, VolumeRef
from backupfw.volume.taking import taken_in

#: Functions that may be missing if the author declares the reason, in :attr:`Adoption.declared`; ``create``
#: and ``extend`` are the provider's own.
OPTIONAL = (
    "create",
    "extend",
    "adoptable",
    "discard",
    "grow",
    "shrink",
    "lose",
    "swap",
    "foreign",
    "restart_server",
)

#: What refuses to go on: a closed point or target, a writer that was fenced out.
REFUSALS = (BackupfwError, OSError, ValueError)


class Adoption:
    """Base of the suite: first the attributes and functions that an author supplies."""

    # ---- to supply -------------------------------------------------------------------------------

    #: The provider's class.
    provider_class: ClassVar[type[VolumeProvider] | None] = None
    #: Texts that must not appear anywhere (keys, passwords); ``()`` if the provider has none.
    secrets: ClassVar[Sequence[str] | None] = None
    #: What is missing, and the reasons: name in :data:`OPTIONAL` -> reason.  Its tests are skipped with
    #: that reason; a function that is neither supplied nor declared fails them.
    declared: ClassVar[Mapping[str, str]] = {}
    #: Bytes of a volume in most tests: some dozens of :attr:`grain`; a multiple of nothing but :attr:`step`.
    length: ClassVar[int] = 3_000_017
    #: Bytes of which the length of every volume here is a multiple.
    step: ClassVar[int] = 1
    #: Bytes in which the storage records allocation and changes: one changed byte may make so many ``DATA``.
    grain: ClassVar[int] = 64 << 10
    #: How many random histories the model test plays.
    model_examples: ClassVar[int] = 12
    #: How often a process is killed in each test that kills.
    kills: ClassVar[int] = 4

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Any:
        """Start or find the provider's storage; override it.  All methods below get it.

        A class method, because it is made once for all tests of the class.
        """
        return None

    def options(self, server: Any) -> Mapping[str, object]:
        """Return the values of the provider's options, as in a configuration file.

        Other processes open the provider with them, too: only text, numbers, truth values and lists.
        """
        forgotten("options(server), a mapping of option values")

    def raw_write(self, server: Any, volume: VolumeRef, offset: int, data: bytes) -> None:
        """Write into a volume without the provider, as a machine that uses it; return when it is done.

        It is called from another thread, too, while the provider is used.
        """
        forgotten("raw_write(server, volume, offset, data)")

    def raw_read(self, server: Any, volume: VolumeRef, offset: int, length: int) -> bytes:
        """Read from a volume without the provider."""
        forgotten("raw_read(server, volume, offset, length)")

    def raw_names(self, server: Any) -> Collection[str]:
        """Return the names of everything in the storage, without the provider: to see what was left there.

        Volumes, snapshots, bitmaps, attachments, temporary files: whatever the provider may make.  Names of
        what it keeps for a point contain the point's id.
        """
        forgotten("raw_names(server)")

    def make_volume(self, server: Any, provider: VolumeProvider, length: int) -> VolumeRef:
        """Make a volume of zeros; override it if the provider only adopts (see :func:`adopted`)."""
        return created(provider, length)

    def remove_volume(self, server: Any, provider: VolumeProvider, volume: VolumeRef) -> None:
        """Remove a volume of the tests, wherever it is by now; override it if the provider only adopts."""
        provider.delete(volume)

    def adoptable(self, server: Any, length: int) -> str:
        """Make storage of zeros without the provider, which it can adopt; return what ``adopt`` is given.

        It is removed by :meth:`remove_volume`, with an adopted :class:`VolumeRef`.
        """
        forgotten("adoptable(server, length), or a reason in declared")

    def discard(self, server: Any, volume: VolumeRef, offset: int, length: int) -> None:
        """Discard a range (which then reads as zeros) without the provider, as a machine that uses it."""
        forgotten("discard(server, volume, offset, length), or a reason in declared")

    def grow(self, server: Any, volume: VolumeRef, length: int) -> None:
        """Make a volume longer without the provider: zeros are added."""
        forgotten("grow(server, volume, length), or a reason in declared")

    def shrink(self, server: Any, volume: VolumeRef, length: int) -> None:
        """Cut a volume's end without the provider."""
        forgotten("shrink(server, volume, length), or a reason in declared")

    def lose(self, server: Any, volume: VolumeRef) -> None:
        """Remove a volume, with everything that is kept of it, without the provider."""
        forgotten("lose(server, volume), or a reason in declared")

    def swap(self, server: Any, volume: VolumeRef) -> None:
        """Put another volume of zeros, of the same length, at the place of this one, without the provider."""
        forgotten("swap(server, volume), or a reason in declared")

    def foreign(self, server: Any, volume: VolumeRef) -> str:
        """Make a thing like those that are kept for points (a snapshot), as other programs do.

        :returns: its name in :meth:`raw_names`.  It is removed by :meth:`remove_foreign`.
        """
        forgotten("foreign(server, volume), or a reason in declared")

    def remove_foreign(self, server: Any, volume: VolumeRef, name: str) -> None:
        """Remove what :meth:`foreign` made; needed if the volume cannot be removed before."""

    def restart_server(self, server: Any) -> None:
        """End the storage's server and start it again; return when it answers."""
        forgotten("restart_server(server), or a reason in declared")

    def open_provider(self, server: Any) -> VolumeProvider:
        """Open the provider; called several times, all instances see the same storage."""
        if self.provider_class is None:
            forgotten("provider_class")
        return self.provider_class(option_values(self.provider_class.options(), **dict(self.options(server))))

    # ---- what tests use --------------------------------------------------------------------------

    @pytest.fixture
    def provider(self, server: Any) -> VolumeProvider:
        """An opened provider."""
        return self.open_provider(server)

    @pytest.fixture
    def volume(self, server: Any, provider: VolumeProvider) -> Iterator[Subject]:
        """A volume of :attr:`length` bytes with some content, and what its bytes must be."""
        volume = Subject(self, server, provider, self.length)
        volume.fill()
        yield volume
        volume.remove()

    def require(self, piece: str) -> None:
        """Skip the test if a function is declared to be missing."""
        if piece in self.declared:
            pytest.skip(f"declared: {self.declared[piece]}")

    def whole(self, length: int) -> int:
        """Return the next length that a volume here can have."""
        return -(-length // self.step) * self.step


class Subject:
    """A volume of the tests; ``disk`` has the bytes that it must have.

    :ivar ref: the volume, as the catalogue knows it.
    """

    def __init__(
        self,
        suite: Adoption,
        server: Any,
        provider: VolumeProvider,
        length: int,
        ref: VolumeRef | None = None,
    ) -> None:
        self.suite = suite
        self.server = server
        self.provider = provider
        self.ref = suite.make_volume(server, provider, length) if ref is None else ref
        self.disk = Disk(length)

    def fill(self) -> None:
        """Write here and there, at the very beginning and up to the very end."""
        noise = random.Random(self.disk.length)
        third = self.disk.length // 3
        for offset in (0, third + 1, self.disk.length - 1000):
            self.write(offset, noise.randbytes(1000))

    def write(self, offset: int, data: bytes) -> None:
        """Write as a machine that uses the volume."""
        self.suite.raw_write(self.server, self.ref, offset, data)
        self.disk.write(offset, data)

    @contextmanager
    def frozen(self) -> Iterator[list[Disk]]:
        """Within the block, write just before each point is taken, and just after it.

        :returns: yields the bytes that the volume had in between, of each such moment.
        """
        states: list[Disk] = []

        @contextmanager
        def around() -> Iterator[None]:
            self.write(0, f"frozen {len(states)}".encode())
            states.append(self.disk.copy())
            yield
            self.write(0, b"thawed")

        with taken_in(around):
            yield states

    def discard(self, offset: int, length: int) -> None:
        """Discard as a machine that uses the volume."""
        self.suite.discard(self.server, self.ref, offset, length)
        self.disk.zero(offset, length)

    def grow(self, length: int) -> None:
        """Make it longer; the catalogue does not know."""
        self.suite.grow(self.server, self.ref, length)
        self.disk.resize(length)

    def shrink(self, length: int) -> None:
        """Make it shorter; an operator has told the catalogue."""
        self.suite.shrink(self.server, self.ref, length)
        self.disk.resize(length)
        self.ref = replace(self.ref, length=length)

    def check_storage(self) -> None:
        """Fail unless the storage has the bytes that the volume must have."""
        piece = 8 << 20
        for offset in range(0, self.disk.length, piece):
            size = min(piece, self.disk.length - offset)
            found = bytes(self.suite.raw_read(self.server, self.ref, offset, size))
            require_bytes(found, self.disk.read(offset, size), offset)

    def kept(self, point_id: str) -> set[str]:
        """Return what the storage has with the id of a point in its name."""
        return {name for name in self.suite.raw_names(self.server) if point_id in name}

    def keep(self, compared: Collection[str] = (), read: Collection[str] = ()) -> None:
        """Let the provider keep these points, and no others."""
        needed = Needed(frozenset(compared), frozenset(read))
        self.provider.keep_points(self.ref, lambda: needed)

    def remove(self) -> None:
        """Remove the volume, and all that is kept of it."""
        self.keep()
        self.suite.remove_volume(self.server, self.provider, self.ref)


def new_id() -> str:
    """Return a new id, for a volume, snapshot or point."""
    return str(uuid.uuid4())


def created(provider: VolumeProvider, length: int) -> VolumeRef:
    """Let a provider make a volume."""
    volume = VolumeRef(new_id(), length)
    return replace(volume, location=provider.create(volume, None))


def adopted(provider: VolumeProvider, path: str) -> VolumeRef:
    """Let a provider adopt a volume."""
    storage = provider.adopt(path)
    return VolumeRef(new_id(), storage.length, storage.location, adopted=True, storage_id=storage.storage_id)
