"""The one table of all routes."""

from __future__ import annotations

from collections.abc import Iterable

from backupfw.api.controllers.absent import AbsentController
from backupfw.api.controllers.backups import BackupsController
from backupfw.api.controllers.base import Managers, Settings
from backupfw.api.controllers.messages import MessagesController
from backupfw.api.controllers.quotas import QuotasController
from backupfw.api.controllers.services import ServicesController
from backupfw.api.controllers.snapshots import SnapshotsController
from backupfw.api.controllers.surroundings import SurroundingsController
from backupfw.api.controllers.transfers import TransfersController
from backupfw.api.controllers.volume_types import VolumeTypesController
from backupfw.api.controllers.volumes import VolumesController
from backupfw.api.policies import Policy
from backupfw.api.routing import Route

_CONTROLLERS = (
    BackupsController,
    VolumesController,
    SnapshotsController,
    QuotasController,
    ServicesController,
    SurroundingsController,
    VolumeTypesController,
    TransfersController,
    MessagesController,
    AbsentController,
)


def routes(managers: Managers, policy: Policy, settings: Settings) -> list[Route]:
    """Return every line of the route table."""
    return [route for controller in _CONTROLLERS for route in controller(managers, policy, settings).routes()]


def collections(routes: Iterable[Route]) -> frozenset[str]:
    """Return the first part of every route: what can stand where a path leaves its project out."""
    return frozenset(route.template.split("/")[1] for route in routes)
