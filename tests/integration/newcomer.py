"""Follows the pages of docs for authors of drivers as a newcomer does, outside the checkout and offline."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.architecture.checkout import ROOT

#: What core is installed from.
CORE = ("backupfw", "etc", "docs/man", "setup.cfg", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")
#: What running tests and building leaves.
LEFT = shutil.ignore_patterns("__pycache__", "*.egg-info", ".pytest_cache", "build", "dist")

#: pip's variables; the second one is its way to say --no-build-isolation.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(*words: str | Path, cwd: Path, expect: int = 0, **variables: str) -> str:
    """Run a command outside the checkout; returns what it prints."""
    hidden = ("PYTHONPATH", "BACKUPFW_REQUIRE", "PYTEST_ADDOPTS")
    done = subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={name: value for name, value in os.environ.items() if name not in hidden} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == expect, f"{words}: {done.returncode}\n{done.stdout[-5000:]}"
    return done.stdout


def copied(template: str, folder: Path) -> Path:
    """Copy a template, without what running its tests left in it."""
    shutil.copytree(ROOT / "drivers" / template, folder, ignore=LEFT)
    return folder


def commands(page: str) -> list[str]:
    """Return the commands of a page, without their comments."""
    return re.findall(r"^\$ (.*?)(?: +#.*)?$", page, re.MULTILINE)


def followed(page: str, folder: Path, name: str) -> Path:
    """Follow the first part of a page with another name, without an index; returns the new project's folder.

    :param folder: an empty folder for the checkout and the home directory.
    """
    checkout, home = folder / "checkout", folder / "home"
    home.mkdir()
    for part in (*CORE, "drivers"):
        source, target = ROOT / part, checkout / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=LEFT)
        else:
            shutil.copy(source, target)
    first = page.partition("\n## 1. ")[2].partition("\n## 2. ")[0]
    lines = [line.replace("attic", name) for line in commands(first)]
    assert lines.pop() == "pytest --guarantees"
    activate = lines.index(". .venv/bin/activate") + 1
    # What an index would give, with neither core nor a driver; Python brings an old setuptools itself.
    index = folder / "index"
    index.mkdir()
    for found in Path(sysconfig.get_path("purelib")).iterdir():
        if "backupfw" not in found.name:
            (index / found.name).symlink_to(found)
    lines[activate:activate] = [
        "pip uninstall --yes setuptools",
        f"echo {index} > $(echo .venv/lib/python*/site-packages)/index.pth",
    ]
    run(
        "bash",
        "-ec",
        "\n".join(lines),
        cwd=checkout,
        HOME=str(home),
        PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **OFFLINE,
    )
    return home / f"backupfw-{name}"
