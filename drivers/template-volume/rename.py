"""Give a copy of the template its name: ``python rename.py NAME``, once, in the copy.

NAME is what deployers will write as ``driver = NAME``: lower-case letters, digits and underscores, a letter
first.  The distribution becomes ``backupfw-NAME``, the package ``backupfw_NAME``, the class ``NameProvider``.
The script removes itself.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

#: What is not the provider's text.
SKIPPED = {".git", ".venv", "__pycache__", ".pytest_cache", "build", "dist"}


def rename(folder: Path, name: str) -> None:
    """Rename everything in the copy.

    :raises SystemExit: the name cannot be one, or the folder is no fresh copy.
    """
    package = folder / "src" / "backupfw_template_volume"
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.startswith("template"):
        sys.exit(f"{name!r} cannot be a provider's name: use lower-case letters, digits and underscores")
    if not package.is_dir():
        sys.exit(f"{package} is not there: this is no fresh copy of the template")
    if folder.name == "template-volume" and (folder.parent / "posix").is_dir():
        sys.exit("this is the template itself: copy the folder first, and run the copy's rename.py")
    kind = "".join(part.capitalize() for part in name.split("_"))
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.suffix not in (".py", ".toml", ".md") or SKIPPED & set(parts) or path == Path(__file__):
            continue
        text = path.read_text()
        if path.name == "README.md":
            text = re.sub(r"<!-- only in the template -->.*?<!-- end -->\n", "", text, flags=re.DOTALL)
        text = re.sub("template[-_]volume", name, text)
        path.write_text(text.replace("template", name).replace("Template", kind))
    package.rename(package.with_name(f"backupfw_{name}"))
    Path(__file__).unlink()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python rename.py NAME")
    rename(Path(__file__).resolve().parent, sys.argv[1])
    sys.stdout.write(f"this is backupfw-{sys.argv[1]} now: pip install -e '.[test]' && pytest --guarantees\n")
