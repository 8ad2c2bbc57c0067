"""The options of a volume back end, found in its section ``[volumes:NAME]``."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg


def options() -> Sequence[cfg.Opt]:
    """Return new option objects."""
    return (
        cfg.URIOpt(
            "endpoint",
            required=True,
            schemes=["http", "https"],
            help="The array's address, e.g. https://array.example.org.",
        ),
        cfg.StrOpt("key", required=True, secret=True, help="The key of the user to whom the disks belong."),
        cfg.FloatOpt(
            "timeout",
            default=60.0,
            min=0.1,
            max=3600,
            help="Seconds the array may be silent before a call fails.",
        ),
    )
