"""Pecan hooks: what happens around every call."""

from __future__ import annotations

from typing import Any

import pecan.hooks
import webob

from backupfw.api import faults


class JsonHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Everything is answered in JSON, whatever ``Accept`` or the path's ending says."""

    priority = 10

    def on_route(self, state: Any) -> None:
        """Settle the content type before Pecan negotiates one."""
        state.request.pecan["content_type"] = "application/json"


class FaultHook(pecan.hooks.PecanHook):  # type: ignore[misc]
    """Every error becomes the JSON that the table of :mod:`faults` gives it."""

    priority = 20

    def on_error(self, state: Any, error: Exception) -> webob.Response:
        """Return the answer to the error."""
        return faults.response_of(error, state.request.environ)
