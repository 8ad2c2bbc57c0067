"""Chromium without a screen, and Playwright, which drives it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.servers.programs import find_program, servers_directory

PROGRAM = "chromium-headless-shell"


def missing() -> list[str]:
    """Return what is not installed."""
    lacks = [] if find_program(PROGRAM) else [PROGRAM]
    return lacks if _packages() else [*lacks, "playwright"]


def _packages() -> str | None:
    """Return where Playwright is: an environment of its own, for it is large and only these tests need it."""
    found = sorted(servers_directory().glob("browser/lib/python3*/site-packages/playwright"))
    return str(found[0].parent) if found else None


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a running browser (``playwright.sync_api.Browser``)."""
    place = _packages()
    assert place is not None
    # Last, so that nothing else comes from there.
    sys.path.append(place)
    try:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            # As root there is no sandbox in a sandbox.
            running = playwright.chromium.launch(
                executable_path=find_program(PROGRAM), args=["--no-sandbox", "--force-color-profile=srgb"]
            )
            yield running
            running.close()
    finally:
        sys.path.remove(place)
