"""How tests look at the files of a store while a service may write and remove some."""

from __future__ import annotations

import os
from fnmatch import fnmatchcase
from pathlib import Path


def files_below(directory: Path, pattern: str = "*") -> list[Path]:
    """Return the files below a directory whose names match a pattern, without the holder objects of stores.

    Unlike :meth:`pathlib.Path.rglob` it passes over a directory that goes meanwhile.
    """
    found = (Path(parent, name) for parent, _, names in os.walk(directory) for name in names)
    return [path for path in found if fnmatchcase(path.name, pattern) and ".holder" not in path.name]
