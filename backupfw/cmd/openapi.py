"""Writes the descriptions of the API into a folder: ``python -m backupfw.cmd.openapi docs/openapi``."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from backupfw.api import openapi, versions
from backupfw.api.controllers.root import ROUTES


def documents() -> Mapping[str, str]:
    """Return the newest description of each major version, by the name of its file."""
    return {
        f"{prefix}.json": json.dumps(
            openapi.describe(ROUTES, prefix, served.highest, "http://127.0.0.1:8776"), indent=1
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
