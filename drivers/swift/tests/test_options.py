"""Options: bounds, and the table in the README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from backupfw_swift.store import SwiftStore

from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError
from backupfw.testing.readme import require_options_table

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.parametrize(
    "values",
    [
        {"auth": "v2"},
        {"auth_url": None},
        {"auth_url": "ftp://swift.example.org"},
        {"storage_url": "swift.example.org"},
        {"interface": "secret"},
        {"connect_timeout": 0},
        {"read_timeout": -1},
        {"bulk_delete_size": 0},
        {"bulk_delete_size": 10_001},
        {"token_renew_before": -1},
    ],
)
def test_values_that_cannot_be(values: dict[str, Any]) -> None:
    given = {"auth_url": "https://keystone.example.org", **values}
    with pytest.raises(ConfigError):
        option_values(SwiftStore.options(), **{name: v for name, v in given.items() if v is not None})


def test_secrets_are_declared() -> None:
    secret = {opt.name for opt in SwiftStore.options() if opt.secret}
    assert secret == {"password", "application_credential_secret"}


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, SwiftStore.options())
