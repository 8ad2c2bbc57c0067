"""Pecan's root, and the tree of controllers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pecan

from backupfw.api import errors, openapi, urls, versions
from backupfw.api.controllers.backup_policies import PoliciesController
from backupfw.api.controllers.backups import BackupsController
from backupfw.api.controllers.messages import MessagesController
from backupfw.api.controllers.quotas import LimitsController, QuotaClassesController, QuotaSetsController
from backupfw.api.controllers.services import HostsController, ServicesController
from backupfw.api.controllers.snapshots import SnapshotsController
from backupfw.api.controllers.surroundings import (
    ExtensionsController,
    GroupsController,
    GroupSnapshotsController,
    QosSpecsController,
    ResourceFiltersController,
    ZonesController,
)
from backupfw.api.controllers.transfers import NewTransfersController, TransfersController
from backupfw.api.controllers.volume_types import DefaultTypesController, VolumeTypesController
from backupfw.api.controllers.volumes import VolumesController
from backupfw.api.request import Request, Response
from backupfw.api.resource import Resource, Route, routes
from backupfw.api.site import Site


class ProjectController(Resource):
    """``/v2/{project_id}``, ``/v3/{project_id}`` and ``/v3``: everything but documents."""

    children = {
        "backups": BackupsController,
        "backup-policies": PoliciesController,
        "volumes": VolumesController,
        "snapshots": SnapshotsController,
        "limits": LimitsController,
        "os-quota-sets": QuotaSetsController,
        "os-quota-class-sets": QuotaClassesController,
        "os-services": ServicesController,
        "os-hosts": HostsController,
        "os-availability-zone": ZonesController,
        "extensions": ExtensionsController,
        "resource_filters": ResourceFiltersController,
        "types": VolumeTypesController,
        "default-types": DefaultTypesController,
        "os-volume-transfer": TransfersController,
        "volume-transfers": NewTransfersController,
        "messages": MessagesController,
        "qos-specs": QosSpecsController,
        "groups": GroupsController,
        "group_snapshots": GroupSnapshotsController,
    }


#: Every call that is served.
ROUTES: tuple[Route, ...] = tuple(routes(ProjectController))
#: The parts that can follow a version when the path has no project.
COLLECTIONS = frozenset(ProjectController.children)


class RootController:
    """The root: documents, and the tree of controllers behind a project."""

    def __init__(self, site: Site) -> None:
        self._project = ProjectController(site)
        self._descriptions = openapi.Descriptions(ROUTES)

    @pecan.expose()  # type: ignore[untyped-decorator]
    def _route(self, args: list[str], request: Request) -> tuple[Callable[..., Any], Any]:
        """Return the method that answers a request, whose path :class:`pipeline.Negotiation` has cut.

        :raises UnknownRoute: there is none.
        """
        del args
        path: urls.Path = request.environ[urls.PATH]
        if not path.is_document:
            found: tuple[Callable[..., Any], Any] = self._project._route(path.rest, request)
            return found
        if request.method not in ("GET", "HEAD"):
            raise errors.UnknownRoute
        if path.prefix is None:
            return self.versions, ()
        return (self.description if path.rest else self.version), ()

    @pecan.expose(content_type="application/json")  # type: ignore[untyped-decorator]
    def versions(self, request: Request, response: Response) -> Mapping[str, Any]:
        """Return the document of all versions."""
        response.status = 300
        return versions.document(request.links.base)

    @pecan.expose(content_type="application/json")  # type: ignore[untyped-decorator]
    def version(self, request: Request, response: Response) -> Mapping[str, Any]:
        """Return the document of one version."""
        del response
        return versions.document(request.links.base, request.environ[urls.PATH].prefix)

    @pecan.expose(content_type="application/json")  # type: ignore[untyped-decorator]
    def description(self, request: Request, response: Response) -> Response:
        """Return a version's description, or 304 to a client that has it already."""
        prefix = request.environ[urls.PATH].prefix
        body, response.etag = self._descriptions.of(prefix, request.version, request.links.base)
        # Clients may keep it, but must ask whether it is current: an upgrade changes it.
        response.cache_control = "no-cache"
        if response.etag in request.if_none_match:
            response.status = 304
        else:
            response.content_type, response.body = "application/json", body
        return response
