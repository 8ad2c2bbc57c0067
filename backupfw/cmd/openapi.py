"""Writes the descriptions of the API into a folder: ``python -m backupfw.cmd.openapi docs/openapi``."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from backupfw.api import enforcer, openapi, versions
from backupfw.api.controllers import table
from backupfw.api.controllers.base import Managers, Settings


def documents() -> Mapping[str, str]:
    """Return the newest description of each major version, by the name of its file."""
    # Nothing is called: the table says what there is.
    nothing: dict[str, Any] = {part.name: None for part in dataclasses.fields(Managers)}
    routes = table.routes(Managers(**nothing), enforcer.defaults(), Settings())
    return {
        f"{prefix}.json": json.dumps(
            openapi.describe(routes, prefix, served.highest, "http://127.0.0.1:8776"), indent=1
        )
        + "\n"
        for prefix, served in versions.SERVED.items()
    }


def main(folder: Path) -> None:
    """Write the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in documents().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
