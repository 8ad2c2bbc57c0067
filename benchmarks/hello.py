"""``python -m benchmarks.hello PORT``: a Pecan application that says hello, in the API's server."""

from __future__ import annotations

import sys
from typing import Any

import pecan
import waitress
from pecan.core import ExplicitPecan


class Root:
    """Answers ``/``."""

    @pecan.expose(content_type="application/json")  # type: ignore[untyped-decorator]
    def index(self, request: Any, response: Any) -> Any:
        """Say hello."""
        del request
        response.body = b'"hello"'
        return response


def main() -> None:
    """Serve until killed."""
    app = ExplicitPecan(Root(), use_context_locals=False)
    server = waitress.create_server(app, host="127.0.0.1", port=int(sys.argv[1]), threads=16)
    print("ready", flush=True)
    server.run()


if __name__ == "__main__":
    main()
