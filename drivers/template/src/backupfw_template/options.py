"""The options of a store, found in its section ``[store:NAME]``."""

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
            help="The server's address, e.g. https://objects.example.org.",
        ),
        cfg.StrOpt("user", required=True, help="The user to whom the backups belong."),
        cfg.StrOpt("password", required=True, secret=True, help="The user's password."),
        cfg.FloatOpt(
            "timeout",
            default=60.0,
            min=0.1,
            max=3600,
            help="Seconds the server may be silent before a call counts as a temporary failure.",
        ),
    )
