"""The holder object: says which database a container's objects of an installation belong to.

A living service renews the object (:mod:`backupfw.worker.holding`), so somebody who takes the installation
over for another database sees that it changes.  Only changes count, because clocks of two machines may
differ.  Not every store can decide between two writers, so the safety of data does not rest on this object:
keys never have two writers, and deletions spare what unknown manifests name.

The object lies beside the installation's prefix, not below it, so it is no object of a backup: audits, sweeps
and releases do not list it, and neither do earlier releases.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from backupfw import naming
from backupfw.chunkstore.base import Body
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound, RangeError
from backupfw.engine.ports import Control
from backupfw.errors import Conflict

#: A living service renews the object so often, in seconds.
RENEW_SECONDS = 20.0
#: If it does not change for so long, no service lives.
SILENT_SECONDS = 45.0
#: Seconds between two looks of somebody who waits.
_LOOK_SECONDS = 1.0

_MAGIC = b"backupfw holder 1\n"
#: Magic, the database, a random number.
_LENGTH = len(_MAGIC) + 33 + 17


class Holder:
    """The holder object of an installation, as one database sees it in one container.  Not thread-safe.

    :param database: identifies our database: 32 hexadecimal digits.
    """

    def __init__(self, installation: str, database: str) -> None:
        self.key = holder_key(installation)
        self._installation = installation
        self._ours = _MAGIC + database.encode("ascii") + b"\n"
        self._seen: bytes | None = None

    def renew(self, container: Container) -> None:
        """Change the object, unless another process of our service did so since the last call.

        :raises Conflict: it is another database's, and stays.
        :raises ChunkStoreError: the store does not answer.
        """
        found = self._read(container)
        if found is not None and not found.startswith(self._ours):
            raise Conflict(
                f"The objects of installation {self._installation} in {_place(container)} were taken over by"
                " another database's service: stop one of the two."
            )
        if found is None or found == self._seen:
            found = self.take(container)
        self._seen = found

    def wait(
        self, container: Container, control: Control, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        """Return when it is sure that no service with another database lives, as far as the object tells.

        :raises Conflict: one lives.
        :raises ChunkStoreError: the store does not answer.
        """
        first = self._read(container)
        waited = 0.0
        while first is not None and not first.startswith(self._ours) and waited < SILENT_SECONDS:
            control.check()
            sleep(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
            if self._read(container) != first:
                raise Conflict(
                    f"A service of installation {self._installation} works in {_place(container)}: stop it"
                    " first."
                )

    def take(self, container: Container) -> bytes:
        """Make the object ours, and return what it holds; call :meth:`wait` before.

        :raises ChunkStoreError: the store does not do it.
        """
        data = self._ours + secrets.token_hex(8).encode("ascii") + b"\n"
        container.put(self.key, Body.from_bytes(data))
        return data

    def give_up(self, container: Container) -> None:
        """Remove the object if it is ours.

        :raises ChunkStoreError: the store does not do it.
        """
        found = self._read(container)
        if found is not None and found.startswith(self._ours):
            container.delete([self.key])

    def _read(self, container: Container) -> bytes | None:
        try:
            return container.get(self.key, 0, _LENGTH)
        except NotFound:
            return None
        except RangeError:
            # Something else stands there.
            return b""


def _place(container: Container) -> str:
    return f"container {container.name} of store {container.store.name}"


def holder_key(installation: str) -> str:
    """Return the key of an installation's holder object."""
    return f"{naming.key_part(installation)}.holder"
