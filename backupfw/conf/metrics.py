"""``[metrics]``: where a process serves its metrics and health checks."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = "metrics"

OPTS = (
    cfg.PortOpt(
        "port",
        help="TCP port on which this process answers /metrics (Prometheus), /live and /ready; unset: it does"
        " not.  One per process: the second process of 'backupfw worker' takes the next one, and so on.",
    ),
    cfg.PortOpt(
        "api_port",
        help="The same for 'backupfw api', so that one file is good for a host that runs a worker as well;"
        " unset: [metrics] port.",
    ),
    cfg.HostAddressOpt(
        "listen",
        default="127.0.0.1",
        help="Address for [metrics] port.  Every caller who reaches it can read the metrics."
        "  Callers are not authenticated.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
