"""The table of options in a driver's README: made from the options, between two marks.

::

    <!-- options -->
    <!-- end of options -->

A test calls :func:`require_options_table`; run once with ``BACKUPFW_WRITE_README`` set, it writes the table.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from oslo_config import cfg

BEGIN, END = "<!-- options -->\n", "<!-- end of options -->\n"


def options_table(options: Sequence[cfg.Opt]) -> str:
    """Return a Markdown table of options: name, default, and meaning with bounds and choices."""
    lines = ["| option | default | meaning |", "|---|---|---|", *(_line(opt) for opt in options)]
    return "\n".join(lines) + "\n"


def _line(opt: cfg.Opt) -> str:
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
    return f"| `{opt.name}` | {f'`{default}`' if default else ''} | {text} |"


def require_options_table(readme: Path, options: Sequence[cfg.Opt]) -> None:
    """Fail unless the README's table is that of the options; with ``BACKUPFW_WRITE_README`` set, write it."""
    head, _, rest = readme.read_text().partition(BEGIN)
    old, end, tail = rest.partition(END)
    assert end, f"{readme} has no place for the options: {BEGIN.strip()} and {END.strip()}"
    wanted = options_table(options)
    if os.environ.get("BACKUPFW_WRITE_README"):
        readme.write_text(head + BEGIN + wanted + END + tail)
        return
    assert old == wanted, f"{readme} is not up to date: run its test once with BACKUPFW_WRITE_README=1"
