"""The options and what the README tells of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from backupfw_posix.store import PosixStore

from backupfw.chunkstore.options import ConfigError, option_values
from backupfw.testing.readme import require_options_table

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("path", "not/absolute"),
        ("file_mode", "999"),
        ("directory_mode", "rwx"),
        ("min_free_bytes", "-1"),
        ("fsync", "perhaps"),
    ],
)
def test_values_that_cannot_be(name: str, value: str) -> None:
    with pytest.raises(ConfigError, match=name):
        option_values(PosixStore.options(), **{"path": "/srv", name: value})


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, PosixStore.options())
