"""The page about clients says no more than was shown; ``conftest.py`` has this run last."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.clients.table import Shown
from tests.integration.clients.world import World

HERE = Path(__file__).parent


@pytest.mark.server
def test_every_cell_was_shown(
    request: pytest.FixtureRequest, shows: Shown, world: World, clients: Path, gopher: Path, horizon: Path
) -> None:
    """The fixtures say what every one of the other tests needs."""
    chosen = [Path(word.partition("::")[0]).resolve() for word in request.config.args if "::" not in word]
    if not any(HERE.is_relative_to(path) for path in chosen) or request.config.option.keyword:
        pytest.skip("declared: only some of the tests were chosen")
    assert not shows.missing()
