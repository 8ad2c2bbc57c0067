"""The request object: Pecan's, with the body read strictly and nothing guessed from it."""

from __future__ import annotations

from typing import Any

import pecan
from webob.multidict import MultiDict

from backupfw.api import bodies, errors


class ApiRequest(pecan.Request):  # type: ignore[misc]
    """A request whose parameters reach handlers by name only, never as Pecan's arguments."""

    @property
    def GET(self) -> MultiDict:  # noqa: N802  (WebOb's name)
        """Nothing: Pecan would turn parameters into arguments.  :class:`query.Query` reads them."""
        return MultiDict()

    @property
    def params(self) -> MultiDict:
        """Nothing, for the same reason."""
        return MultiDict()

    @property
    def json(self) -> Any:
        """Nothing, for the same reason.  :meth:`read_json` reads the body."""
        return {}

    def read_json(self) -> Any:
        """Return the parsed body; None when it is empty.

        :raises UnsupportedMediaType: it says it is not JSON.
        :raises MalformedBody: it is no JSON.
        """
        try:
            raw: bytes = self.body
        except (OSError, ValueError) as error:  # cut off, or a length that is no number
            raise errors.MalformedBody from error
        if raw:
            bodies.check_media_type(self.environ.get("CONTENT_TYPE", ""))
        return bodies.parse(raw)
