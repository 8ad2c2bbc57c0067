"""``[database]``: oslo.db's own options."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg
from oslo_db import options

GROUP = "database"


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(options.database_opts, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, options.database_opts)]
