"""What every controller of one application has: the use cases, the policy, the settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from backupfw.api import query
from backupfw.api.policies import Policy

if TYPE_CHECKING:
    from backupfw.manager.messages import MessageManager
    from backupfw.manager.queue.services import ServiceManager
    from backupfw.manager.rules.quota import QuotaManager
    from backupfw.manager.rules.volume_types import VolumeTypeManager
    from backupfw.manager.usecases.backups import BackupManager
    from backupfw.manager.usecases.snapshots import SnapshotManager
    from backupfw.manager.usecases.transfers import TransferManager
    from backupfw.manager.usecases.volumes import VolumeManager


@dataclass(frozen=True)
class Managers:
    """The use cases, one object a resource; all thread-safe."""

    backups: BackupManager
    volumes: VolumeManager
    snapshots: SnapshotManager
    quota: QuotaManager
    services: ServiceManager
    messages: MessageManager
    types: VolumeTypeManager
    transfers: TransferManager


@dataclass(frozen=True)
class Settings:
    """What the API takes from the configuration.

    :ivar max_limit: the longest page, and the one that is given when no limit is asked for.
    :ivar max_body: bytes.
    :ivar public_endpoint: what links begin with; None takes it from each request.
    :ivar trust_forwarded: whether ``X-Forwarded-*`` headers are believed.
    :ivar noauth_roles: roles of requests that name none, under ``noauth``.
    :ivar resource_filters: the filters that everybody may use from 3.31 on, by resource.
    :ivar knows_project: whether there is a project with this id, as far as can be told.
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
    """One application's; all of it thread-safe."""

    managers: Managers
    policy: Policy
    settings: Settings
