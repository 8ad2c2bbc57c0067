"""What all controllers of an application share: use cases, policy and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupfw.api import query
from backupfw.api.policies import Policy

if TYPE_CHECKING:
    from backupfw.manager.messages import MessageManager
    from backupfw.manager.policies.manager import PolicyManager
    from backupfw.manager.queue.services import ServiceManager
    from backupfw.manager.rules.quota import QuotaManager
    from backupfw.manager.rules.volume_types import VolumeTypeManager
    from backupfw.manager.usecases.backups import BackupManager
    from backupfw.manager.usecases.snapshots import SnapshotManager
    from backupfw.manager.usecases.transfers import TransferManager
    from backupfw.manager.usecases.volumes import VolumeManager


@dataclass(frozen=True)
class Managers:
    """The use cases, one object for each kind of resource; all are thread-safe."""

    backups: BackupManager
    volumes: VolumeManager
    snapshots: SnapshotManager
    quota: QuotaManager
    services: ServiceManager
    messages: MessageManager
    types: VolumeTypeManager
    transfers: TransferManager
    policies: PolicyManager


@dataclass(frozen=True)
class Settings:
    """Options of the API.

    :ivar max_limit: the longest page, which is also the page of a request without a limit.
    :ivar max_body: bytes.
    :ivar public_endpoint: the beginning of links; None: it is taken from each request.
    :ivar trust_forwarded: whether ``X-Forwarded-*`` headers are believed.
    :ivar noauth_roles: with ``noauth``, the roles of requests that name none.
    :ivar resource_filters: the filters that everybody may use from 3.31 on, by resource.
    :ivar knows_project: whether the identity service knows a project; True where there is none to ask.
    """

    max_limit: int = 1000
    max_body: int = 114688
    public_endpoint: str | None = None
    trust_forwarded: bool = False
    auth_strategy: str = "noauth"
    noauth_roles: tuple[str, ...] = ("member",)
    availability_zone: str = "nova"
    resource_filters: Mapping[str, Sequence[str]] = field(default_factory=lambda: query.FILTERS)
    knows_project: Callable[[str], bool] = lambda _project: True


@dataclass(frozen=True)
class Site:
    """What the controllers share; thread-safe."""

    managers: Managers
    policy: Policy
    settings: Settings
