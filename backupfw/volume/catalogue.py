"""The interface of foreign catalogues: services whose volumes have statuses, owners and quotas there.

A provider whose volumes belong to such a service returns a :class:`Catalogue` from its ``catalogue`` method.
The API asks it before a transaction begins, because its answers come over the network.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Protocol


class Caller(Protocol):
    """Who asks."""

    @property
    def project_id(self) -> str:
        """The project that he asks for."""

    @property
    def user_token(self) -> str | None:
        """What he has identified himself with; None: an operator's command asks."""


@dataclass(frozen=True, slots=True)
class ForeignVolume:
    """A volume as its catalogue describes it.

    :ivar status: in the words of the Block Storage API, e.g. ``available``, ``in-use``.
    :ivar size: GiB.
    :ivar volume_type: the type's name.
    :ivar encryption_key_id: of the key with which the catalogue encrypts it, at most 36 characters; None: it
        is not encrypted.
    """

    id: str
    project_id: str
    status: str
    size: int
    user_id: str | None = None
    name: str | None = None
    description: str | None = None
    volume_type: str | None = None
    availability_zone: str | None = None
    bootable: bool = False
    encryption_key_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    image_metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForeignSnapshot:
    """A snapshot as its catalogue describes it; fields as in :class:`ForeignVolume`.

    :ivar created_at: naive UTC.
    """

    id: str
    volume_id: str
    project_id: str
    status: str
    size: int
    created_at: datetime
    name: str | None = None


class Catalogue(abc.ABC):
    """What a foreign catalogue says.  Thread-safe.

    Every method acts for the caller, with his own token, so the catalogue's own rules decide what he sees and
    may do.  An operator's command has no token: then the service's own credentials are used.

    All methods raise :class:`~backupfw.errors.ServiceUnavailable` if the catalogue does not answer.

    :cvar lists: whether there is a :meth:`volumes`; without it, backup policies must name its volumes.
    """

    lists: ClassVar[bool] = False

    @abc.abstractmethod
    def volume(self, caller: Caller, volume_id: str) -> ForeignVolume:
        """Return a volume.

        :raises VolumeNotFound: there is none, or not for this caller.
        """

    def volumes(self, project_id: str) -> Iterable[ForeignVolume]:
        """Yield all volumes of a project, none twice, and none that the service has made for itself.

        A backup policy asks, while no user is there: the service's own credentials are used.
        """
        raise NotImplementedError

    @abc.abstractmethod
    def snapshot(self, caller: Caller, snapshot_id: str) -> ForeignSnapshot:
        """Return a snapshot.

        :raises SnapshotNotFound: there is none, or not for this caller.
        """

    @abc.abstractmethod
    def create_volume(
        self,
        caller: Caller,
        *,
        size: int,
        name: str,
        volume_type: str | None,
        availability_zone: str | None,
        metadata: Mapping[str, str],
        request: str,
        copy_of: str | None = None,
    ) -> ForeignVolume:
        """Make a volume in the caller's project; it may still be ``creating`` at the return.

        :param request: an id of this request.  The answer of a catalogue may be lost, or whoever asks be
            killed before he has it: if a volume was made for an earlier request of the same id, it is that
            one.
        :param copy_of: the id of an encrypted volume: the new one is a copy of it, with a copy of its key.
            None: it is empty.
        :raises InvalidInput: the catalogue refuses it; with its reason.
        :raises QuotaExceeded: the project has no room for it.
        :raises Forbidden: the caller may not make volumes.
        """

    def spoil_volume(self, volume_id: str, owner: str) -> None:  # noqa: B027  (optional)
        """Show that a restore failed whose end no worker tells: see :meth:`VolumeProvider.end_restore`.

        The service's own credentials are used.

        :param owner: the project whose volume it was when the restore was asked for.
        """

    @abc.abstractmethod
    def delete_volume(self, caller: Caller, volume_id: str) -> None:
        """Delete a volume whose restore did not begin; a missing one counts as deleted."""
