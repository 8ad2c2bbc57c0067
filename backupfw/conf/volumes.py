"""``[volumes]``: where volumes come from; the provider adds its own options to the section."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = "volumes"
OPTS = (
    cfg.StrOpt(
        "provider",
        default="local",
        help="The volume provider: an installed entry point of group backupfw.volume.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
