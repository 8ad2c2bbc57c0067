"""User messages as answers show them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from backupfw.api.request import Request
from backupfw.api.views import timestamp

if TYPE_CHECKING:
    from backupfw.manager.rows import Message


def detail(req: Request, message: Message) -> dict[str, Any]:
    """What show and the list show."""
    return {
        "id": message.id,
        "event_id": message.event_id,
        "user_message": message.user_message,
        "message_level": message.message_level,
        "resource_type": message.resource_type,
        "resource_uuid": message.resource_uuid,
        "created_at": timestamp(message.created_at),
        "guaranteed_until": timestamp(message.guaranteed_until),
        # Clients need a text, also if no request caused the message.
        "request_id": message.request_id or "",
        "links": req.links.of("messages", message.id),
    }
