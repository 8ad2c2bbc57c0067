"""The world of these tests."""

from __future__ import annotations

import pytest

from tests.unit.manager.policies.support import PolicyWorld


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> PolicyWorld:
    """Return an empty one; it is noon of the first of January 2026."""
    return PolicyWorld(monkeypatch)
