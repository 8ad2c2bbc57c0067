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
    cfg.BoolOpt(
        "shared",
        default=False,
        help="Every worker can open every volume: its storage is there on all hosts, under the same path."
        "  Without it a volume is served by the workers of the host that made or adopted it.  The embedded"
        " service has it on where it is alone: on SQLite.",
    ),
)


def host_of_new(conf: cfg.ConfigOpts) -> str | None:
    """Return the host that volumes made here are bound to; None: all hosts can open them."""
    return None if conf.volumes.shared else str(conf.host)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
