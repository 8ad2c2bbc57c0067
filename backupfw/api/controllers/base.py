"""What every controller has."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar, overload

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import policies, resource_filters
from backupfw.api.query import Listing, ListingRules, listing
from backupfw.api.routing import Call, Route
from backupfw.api.schemas import formats
from backupfw.api.views import common

if TYPE_CHECKING:
    from backupfw.manager.backups import BackupManager
    from backupfw.manager.messages import MessageManager
    from backupfw.manager.quota import QuotaManager
    from backupfw.manager.rows import Page
    from backupfw.manager.services import ServiceManager
    from backupfw.manager.snapshots import SnapshotManager
    from backupfw.manager.transfers import TransferManager
    from backupfw.manager.volume_types import VolumeTypeManager
    from backupfw.manager.volumes import VolumeManager

Item = TypeVar("Item", bound=common.HasId)


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
    resource_filters: Mapping[str, Sequence[str]] = field(default_factory=lambda: resource_filters.DEFAULT)
    knows_project: Callable[[str], bool] = lambda _project: True


class Controller:
    """Base of the controllers: stateless, so one object serves every thread."""

    def __init__(self, managers: Managers, policy: policies.Policy, settings: Settings) -> None:
        self.managers = managers
        self.policy = policy
        self.settings = settings

    def routes(self) -> Sequence[Route]:
        """Return this controller's lines of the route table."""
        raise NotImplementedError

    def enforce(self, call: Call, rule: str, project_id: str | None = None) -> None:
        """See :func:`policies.enforce`."""
        policies.enforce(self.policy, call.context, rule, project_id)

    def enforce_on(self, call: Call, rule: str, project_of: Callable[..., str], other_id: str | None) -> None:
        """Ask a rule about something that the body names too: what is read or written beside the path's.

        Only who sees the things of every project can name one of another project, and seeing it is no
        right to use it.

        :param project_of: the manager's method of that name.
        :param other_id: None where the body names nothing.
        :raises NotFound: it is not there.
        :raises Forbidden: the rule does not allow it for that project.
        """
        if other_id and call.context.is_admin:
            self.enforce(call, rule, project_of(call.context, other_id))

    def expect_project(self, project_id: str) -> None:
        """Refuse to keep something for a project that there is not.

        :raises BadRequest: the identity service does not know it.
        """
        if not self.settings.knows_project(project_id):
            raise api_errors.BadRequest(f"Project ID {project_id} is not a valid project.")

    def listing(self, call: Call, rules: ListingRules) -> Listing:
        """Read the query of a listing; see :func:`query.listing`."""
        return listing(
            call.query,
            rules,
            is_admin=call.context.is_admin,
            max_limit=self.settings.max_limit,
            version=call.version,
            allowed=(
                self.settings.resource_filters.get(rules.resource, ())
                if rules.resource
                else rules.filter_keys
            ),
        )

    def page(
        self,
        call: Call,
        lister: Callable[..., Page[Item]],
        collection: str,
        rules: ListingRules,
        view: Callable[[Item], dict[str, Any]],
        *,
        detail: bool,
    ) -> dict[str, Any]:
        """Answer a listing: read its query, ask the manager, show what came.

        :param lister: the manager's ``list``.
        :param collection: key of the answer's body, e.g. ``backups``.
        :param detail: whether the view shows everything.
        """
        wanted = self.listing(call, rules)
        page = lister(
            call.context,
            detail=detail,
            filters=wanted.filters,
            all_tenants=wanted.all_tenants,
            limit=wanted.limit,
            marker=wanted.marker,
            offset=wanted.offset,
            sort=wanted.sort,
            with_count=wanted.with_count,
        )
        return common.page(call, collection, page.items, wanted.limit, view, page.total)


def resource_id(call: Call, name: str, missing: type[errors.NotFound]) -> str:
    """Return the id in the path; what cannot be an id (a name, say) is simply not found.

    :raises NotFound: of the class ``missing``.
    """
    text = call.args[name]
    if not formats.is_id(text):
        raise missing(text)
    return text.lower()


@overload
def id_of(text: str) -> str: ...
@overload
def id_of(text: None) -> None: ...
def id_of(text: str | None) -> str | None:
    """Return an id of a body in the one spelling that ids are kept in; the schema takes them all."""
    return None if text is None else str(uuid.UUID(text))


def stripped(text: str | None) -> str | None:
    """Take blanks off both ends; None stays None."""
    return None if text is None else text.strip()


def display_fields(
    wanted: Mapping[str, Any], name: str | None = None, description: str | None = None
) -> tuple[str | None, str | None]:
    """Return name and description of a body, blanks taken off; the older keys are known too.

    :param name, description: what counts where the body does not name them.
    """
    if "name" in wanted or "display_name" in wanted:
        name = wanted.get("name", wanted.get("display_name"))
    if "description" in wanted or "display_description" in wanted:
        description = wanted.get("description", wanted.get("display_description"))
    return stripped(name), stripped(description)
