"""``[oslo_policy]``: the file that says who may do what; oslo.policy's own options."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg
from oslo_policy import opts


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    for section, options in list_opts():
        conf.register_opts(options, section)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation; the library lists them for the sample file."""
    return list(opts.list_opts())
