"""User messages: what failed after it was accepted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from backupfw.api import microversions
from backupfw.api.controllers.base import Controller, resource_id
from backupfw.api.query import ListingRules, Query
from backupfw.api.routing import Call, Route
from backupfw.api.views import messages as views
from backupfw.errors import MessageNotFound

if TYPE_CHECKING:
    from backupfw.manager.rows import Message

_COLUMNS = ("resource_uuid", "resource_type", "event_id", "request_id", "message_level")
LISTING = ListingRules(
    sort_keys={
        **{column: column for column in (*_COLUMNS, "id", "created_at")},
        # All are kept equally long.
        "guaranteed_until": "created_at",
    },
    filter_keys={column: column for column in _COLUMNS},
    resource="message",
)


class MessagesController(Controller):
    """``/messages``."""

    def routes(self) -> Sequence[Route]:
        """Return the lines of the route table."""
        since = microversions.MESSAGES
        return [
            Route("GET", "/messages", self.index, since=since),
            Route("GET", "/messages/{message_id}", self.show, since=since),
            Route("DELETE", "/messages/{message_id}", self.delete, status=204, since=since),
        ]

    def _get(self, call: Call, rule: str) -> Message:
        message = self.managers.messages.get(call.context, resource_id(call, "message_id", MessageNotFound))
        self.enforce(call, rule, message.project_id)
        return message

    def index(self, call: Call) -> dict[str, Any]:
        """``GET /messages``; before 3.5 whatever is asked for, all of them come."""
        self.enforce(call, "message:get_all")
        if call.version < microversions.MESSAGES_PAGINATION:
            call = replace(call, query=Query(()))
        view = functools.partial(views.detail, call)
        return self.page(call, self.managers.messages.list, "messages", LISTING, view, detail=True)

    def show(self, call: Call) -> dict[str, Any]:
        """``GET /messages/{id}``."""
        return {"message": views.detail(call, self._get(call, "message:get"))}

    def delete(self, call: Call) -> None:
        """``DELETE /messages/{id}``."""
        message = self._get(call, "message:delete")
        self.managers.messages.delete(call.context, message.id)
