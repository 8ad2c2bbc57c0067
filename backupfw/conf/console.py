"""``[console]``: the web pages for people, below ``/console/`` of the API."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = "console"

OPTS = (
    cfg.BoolOpt(
        "enabled",
        default=False,
        help="Serve the console below /console/, on the API's address and port.  The embedded profile sets"
        " true while the API listens on loopback addresses only.  With auth_strategy = noauth its users log"
        " in with a token that 'backupfw serve' and 'backupfw api' print when they start; other WSGI servers"
        " serve it with keystone only.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
