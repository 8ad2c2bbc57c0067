"""Options: bounds, and the table in the README."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from backupfw_swift.store import SwiftStore
from oslo_config import cfg

from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError

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


def table() -> str:
    """Return the README's table of options."""
    lines = ["| option | default | meaning |", "|---|---|---|"]
    for opt in SwiftStore.options():
        text = " ".join(str(opt.help).split()).replace("|", "\\|").replace("<", "&lt;")
        choices = getattr(opt.type, "choices", None)
        if choices:
            named = [f"`{choice}`" + (f" ({words})" if words else "") for choice, words in choices.items()]
            text += " One of " + ", ".join(named) + "."
        low, high = getattr(opt.type, "min", None), getattr(opt.type, "max", None)
        if isinstance(opt, (cfg.IntOpt, cfg.FloatOpt)) and low is not None:
            text += f" From {low:g} to {high:g}." if high is not None else f" At least {low:g}."
        if opt.required:
            text += " Needed."
        if opt.secret:
            text += " Secret."
        default = "" if opt.default is None else str(opt.default)
        default = default.lower() if isinstance(opt, cfg.BoolOpt) else default
        lines.append(f"| `{opt.name}` | {f'`{default}`' if default else ''} | {text} |")
    return "\n".join(lines) + "\n"


def test_the_readme_tells_all_options() -> None:
    """With ``BACKUPFW_WRITE_README`` set the table is written instead."""
    begin, end = "<!-- options -->\n", "<!-- end of options -->\n"
    head, _, rest = README.read_text().partition(begin)
    old, _, tail = rest.partition(end)
    assert tail
    if os.environ.get("BACKUPFW_WRITE_README"):
        README.write_text(head + begin + table() + end + tail)
        return
    assert old == table(), "run BACKUPFW_WRITE_README=1 pytest drivers/swift/tests/test_options.py"
