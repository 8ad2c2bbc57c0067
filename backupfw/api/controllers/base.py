"""The base of all controllers of resources."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar, overload

from backupfw import errors, naming
from backupfw.api import errors as api_errors
from backupfw.api import policies
from backupfw.api.query import Listing, ListingRules, Query, listing
from backupfw.api.request import Request
from backupfw.api.resource import Resource
from backupfw.api.schemas import formats

if TYPE_CHECKING:
    from backupfw.api.site import Managers, Settings
    from backupfw.manager.rows import Page


class HasId(Protocol):
    """A record with an id."""

    @property
    def id(self) -> str:
        """Its UUID."""


Item = TypeVar("Item", bound=HasId)
#: Turns an item into its part of the answer.
View = Callable[[Item], dict[str, Any]]


class Controller(Resource):
    """Base of the controllers."""

    @property
    def managers(self) -> Managers:
        """The use cases."""
        return self.site.managers

    @property
    def settings(self) -> Settings:
        """What the configuration says."""
        return self.site.settings

    def enforce(self, req: Request, rule: str, project_id: str | None = None) -> None:
        """Ask a rule of the policy besides the decorator's; see :func:`policies.enforce`."""
        policies.enforce(self.site.policy, req.context, rule, project_id)

    def allows(self, req: Request, rule: str, project_id: str | None = None) -> bool:
        """Whether a rule allows the caller an operation, in the caller's own project or another one."""
        own = req.context.project_id
        return self.site.policy.allows(req.context, rule, own if project_id is None else project_id)

    def enforce_on(
        self, req: Request, rule: str, project_of: Callable[..., str], other_id: str | None
    ) -> None:
        """Ask a rule about another resource that the body names.

        Only administrators can name a resource of another project.  They can see it, but the rule decides
        whether they may use it.

        :param project_of: the manager's method of that name.
        :param other_id: None if the body names none.
        :raises NotFound: it does not exist.
        :raises Forbidden: the rule does not allow it for that project.
        """
        if other_id and req.context.is_admin:
            self.enforce(req, rule, project_of(req.context, other_id))

    def expect_project(self, project_id: str) -> None:
        """Check that a project exists.

        :raises BadRequest: the identity service does not know it.
        """
        if not self.settings.knows_project(project_id):
            raise api_errors.BadRequest(f"Project ID {project_id} is not a valid project.")

    def listing(self, req: Request, rules: ListingRules, query: Query | None = None) -> Listing:
        """Read the query of a listing; see :func:`query.listing`.

        :param query: counts instead of the request's query.
        """
        return listing(
            req.query if query is None else query,
            rules,
            is_admin=bool(req.context.is_admin),
            max_limit=self.settings.max_limit,
            version=req.version,
            allowed=(
                self.settings.resource_filters.get(rules.resource, ())
                if rules.resource
                else rules.filter_keys
            ),
        )

    def page(
        self,
        req: Request,
        lister: Callable[..., Page[Item]],
        collection: str,
        rules: ListingRules,
        view: View[Item],
        plain: View[Item] | None = None,
        *,
        query: Query | None = None,
        links: str = "",
    ) -> dict[str, Any]:
        """Answer a listing: read the query, ask the manager, make the body.

        :param lister: the manager's ``list``.
        :param collection: key of the answer's body, e.g. ``backups``.
        :param view: shows an item.
        :param plain: shows an item if the path does not end in ``detail``; None: ``view`` shows it.
        :param query: counts instead of the request's query.
        :param links: key of the link to the next page; empty: ``<collection>_links``.
        """
        assert req.exposure is not None
        detail = plain is None or req.exposure.part == "detail"
        wanted = self.listing(req, rules, query)
        page = lister(
            req.context,
            detail=detail,
            filters=wanted.filters,
            all_tenants=wanted.all_tenants,
            limit=wanted.limit,
            marker=wanted.marker,
            offset=wanted.offset,
            sort=wanted.sort,
            with_count=wanted.with_count,
        )
        show = view if detail or plain is None else plain
        body: dict[str, Any] = {collection: [show(item) for item in page.items]}
        # A page that is not full is the last one; published schemas of answers refuse the key there.
        if page.items and len(page.items) >= wanted.limit:
            next_page = req.links.next_page(req.tail, req.query.pairs, page.items[-1].id)
            body[links or f"{collection}_links"] = next_page
        if page.total is not None:
            body["count"] = page.total
        return body


class NamedController(Controller):
    """Base of the controllers whose path has the name of a project or a class: any line of text.

    :cvar arg: how a refusal calls this part of the path.
    """

    arg: ClassVar[str] = ""

    def name(self) -> str:
        """Return the name.

        :raises BadRequest: it cannot be one.
        """
        name = self.parts[0]
        if not naming.is_name(name):
            raise api_errors.BadRequest(f"Invalid input received: {self.arg} is not a valid id")
        return name


def checked_id(text: str, missing: type[errors.NotFound]) -> str:
    """Return an id of the path; a part that cannot be an id, e.g. a name, is not found.

    :raises NotFound: of the class ``missing``.
    """
    if not formats.is_id(text):
        raise missing(text)
    return text.lower()


def checked_name(part: str, missing: type[errors.NotFound]) -> str:
    """Return a part of the path; one that no column can hold is not found.

    :raises NotFound: of the class ``missing``.
    """
    if not naming.is_name(part):
        raise missing(part)
    return part


@overload
def id_of(text: str) -> str: ...
@overload
def id_of(text: None) -> None: ...
def id_of(text: str | None) -> str | None:
    """Return an id of a body in the spelling of the database; the schema allows others, too."""
    return None if text is None else str(uuid.UUID(text))


def stripped(text: str | None) -> str | None:
    """Remove blanks at both ends; None stays None."""
    return None if text is None else text.strip()


def display_fields(
    wanted: Mapping[str, Any], name: str | None = None, description: str | None = None
) -> tuple[str | None, str | None]:
    """Return name and description of a body without blanks at both ends; their older keys count, too.

    :param name, description: their values if the body does not have them.
    """
    if "name" in wanted or "display_name" in wanted:
        name = wanted.get("name", wanted.get("display_name"))
    if "description" in wanted or "display_description" in wanted:
        description = wanted.get("description", wanted.get("display_description"))
    return stripped(name), stripped(description)
