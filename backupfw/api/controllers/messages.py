"""User messages: what failed after it was accepted."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from backupfw.api import versions
from backupfw.api.controllers.base import Controller, checked_id
from backupfw.api.query import ListingRules, Query
from backupfw.api.request import Request, Response, expose
from backupfw.api.views import messages as views
from backupfw.errors import MessageNotFound

if TYPE_CHECKING:
    from backupfw.manager.rows import Message

_COLUMNS = ("resource_uuid", "resource_type", "event_id", "request_id", "message_level")
LISTING = ListingRules(
    sort_keys={
        **{column: column for column in (*_COLUMNS, "id", "created_at")},
        # All messages are kept for the same time.
        "guaranteed_until": "created_at",
    },
    filter_keys={column: column for column in _COLUMNS},
    resource="message",
)


class MessageController(Controller):
    """``/messages/{message_id}``."""

    message: Message

    def project_of(self, req: Request) -> str:
        """Find the message; return its project."""
        message_id = checked_id(self.parts[0], MessageNotFound)
        self.message = self.managers.messages.get(req.context, message_id)
        return self.message.project_id

    @expose("GET", rule="message:get")
    def show(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /messages/{id}``."""
        return {"message": views.detail(req, self.message)}

    @expose("DELETE", rule="message:delete", status=204)
    def delete(self, req: Request, resp: Response) -> None:
        """``DELETE /messages/{id}``."""
        self.managers.messages.delete(req.context, self.message.id)


class MessagesController(Controller):
    """``/messages``."""

    since = versions.MESSAGES
    item = ("message_id", MessageController)

    @expose("GET", rule="message:get_all")
    def index(self, req: Request, resp: Response) -> dict[str, Any]:
        """``GET /messages``; before 3.5 the query is ignored."""
        if req.version < versions.MESSAGES_PAGINATION:
            req.query = Query(())
        view = functools.partial(views.detail, req)
        return self.page(req, self.managers.messages.list, "messages", LISTING, view)
