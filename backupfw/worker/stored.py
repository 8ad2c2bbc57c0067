"""The data of a backup as its store has it, in our format or in Cinder's."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from backupfw.chunkstore.container import Container
from backupfw.engine import restore, verify
from backupfw.engine.cinder_format import restore as link_restore
from backupfw.engine.cinder_format import verify as link_verify
from backupfw.engine.cinder_format.chain import Chain, Place
from backupfw.engine.cinder_format.metadata import Head
from backupfw.engine.format.manifest import read_head
from backupfw.engine.ports import Checkpoint, Control, VerifyReport
from backupfw.volume.base import BlockTarget
from backupfw.worker.data_keys import DataKeys


class Found(Protocol):
    """What the database knows of a manifest."""

    @property
    def store(self) -> str: ...

    @property
    def container(self) -> str: ...

    @property
    def key(self) -> str: ...

    @property
    def links(self) -> tuple[tuple[str, str], ...]: ...

    @property
    def encrypted(self) -> bool: ...


class Opens(Protocol):
    """What opens containers: ``worker.stores.Stores``."""

    def container(self, store: str, container: str) -> Container: ...


class Stored(abc.ABC):
    """A backup's data.  Of one thread.

    The methods raise what :mod:`backupfw.engine.restore` and :mod:`backupfw.engine.verify` say.
    """

    @abc.abstractmethod
    def describe(self) -> tuple[int, Mapping[str, Any]]:
        """Return the volume's length in bytes, and the record: ``volume`` describes what was backed up."""

    @abc.abstractmethod
    def restore(
        self, target: BlockTarget, control: Control, checkpoint: Checkpoint | None = None, *, streams: int
    ) -> None:
        """Write it to a target; what is saved of the checkpoint is for :meth:`position`."""

    @abc.abstractmethod
    def position(self, checkpoint: int) -> int:
        """Return up to which byte the target is written by a checkpoint; it may be past the volume's end."""

    @abc.abstractmethod
    def verify(
        self, control: Control, on_damaged: Callable[[str, str, str], None], *, quick: bool, streams: int
    ) -> VerifyReport:
        """Look at all of it.

        :param on_damaged: called with container, key and reason of each damaged object.
        """


@contextlib.contextmanager
def opened(stores: Opens, data_keys: DataKeys, found: Found, control: Control) -> Iterator[Stored]:
    """Give access to a backup's data, for a ``with`` block; nothing is read before it is asked for."""
    if not found.links:
        yield _OurFormat(stores.container(found.store, found.container), data_keys, found)
        return
    links = _CinderFormat(
        [Place(stores.container(found.store, container), key) for container, key in found.links], control
    )
    try:
        yield links
    finally:
        links.close()


class _OurFormat(Stored):
    def __init__(self, container: Container, data_keys: DataKeys, found: Found) -> None:
        self._container = container
        self._name = found.container
        self._key = found.key
        self._encrypted = found.encrypted
        self._find_key = data_keys.finder(container, found.key)
        self._segment_size = 0

    def describe(self) -> tuple[int, Mapping[str, Any]]:
        head = read_head(self._container, self._key, self._find_key)
        self._segment_size = head.geometry.segment_size
        return head.geometry.length, head.record

    def restore(
        self, target: BlockTarget, control: Control, checkpoint: Checkpoint | None = None, *, streams: int
    ) -> None:
        restore.run(
            self._key,
            self._container,
            target,
            control,
            checkpoint,
            streams=streams,
            find_key=self._find_key,
            encrypted=self._encrypted,
        )

    def position(self, checkpoint: int) -> int:
        if not self._segment_size:
            self.describe()
        return checkpoint * self._segment_size

    def verify(
        self, control: Control, on_damaged: Callable[[str, str, str], None], *, quick: bool, streams: int
    ) -> VerifyReport:
        return verify.run(
            self._key,
            self._container,
            control,
            lambda key, reason: on_damaged(self._name, key, reason),
            quick=quick,
            streams=streams,
            find_key=self._find_key,
            encrypted=self._encrypted,
        )


class _CinderFormat(Stored):
    def __init__(self, places: list[Place], control: Control) -> None:
        self._places = places
        self._control = control
        self._known: Chain | None = None

    @property
    def _chain(self) -> Chain:
        """The chain; reading its metadata takes a while, so it is read once."""
        self._known = self._known or Chain.of(self._places, self._control)
        return self._known

    def close(self) -> None:
        if self._known is not None:
            self._known.close()

    def describe(self) -> tuple[int, Mapping[str, Any]]:
        return self._chain.length, record_of(self._chain.head)

    def restore(
        self, target: BlockTarget, control: Control, checkpoint: Checkpoint | None = None, *, streams: int
    ) -> None:
        link_restore.run(self._chain, target, control, checkpoint, streams=streams)

    def position(self, checkpoint: int) -> int:
        return checkpoint

    def verify(
        self, control: Control, on_damaged: Callable[[str, str, str], None], *, quick: bool, streams: int
    ) -> VerifyReport:
        return link_verify.run(self._places, control, on_damaged, quick=quick, streams=streams)


def origin_of(container: str, prefix: str) -> dict[str, str]:
    """Return what the record of a converted backup says of the link from which it was made."""
    return {"container": container, "prefix": prefix}


def record_of(head: Head) -> Mapping[str, Any]:
    """Return what a link says of its volume, in the form of the record in a manifest of ours.

    Cinder names the volume's type by an id that only its own catalogue knows.
    """
    base, key = head.volume["base"], head.volume["base"].get("encryption_key_id")
    image = head.volume["image_metadata"]
    volume: dict[str, Any] = {
        "name": base.get("display_name"),
        "description": base.get("display_description"),
        "metadata": head.volume["metadata"],
        "bootable": base.get("bootable") is True or bool(image),
        "image_metadata": image,
    }
    if key is not None:
        volume["encryption"] = {"key_id": str(key)}
    return {"volume": volume}
