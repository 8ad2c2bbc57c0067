"""``[DEFAULT]``: the message bus between API and workers."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

#: Sections of a configuration file that oslo.messaging reads by itself.
LIBRARY_SECTIONS = "oslo_messaging_"

OPTS = (
    cfg.StrOpt(
        "transport_url",
        secret=True,
        help="The message bus that wakes workers up, e.g. rabbit://user:password@host:5672/vhost; needs the"
        " extra 'messaging'.  Without it workers look into the database every [backup] poll_seconds, which"
        " costs delay and nothing else.  Sections [oslo_messaging_...] of the same file are the library's"
        " own.",
    ),
    cfg.StrOpt(
        "control_exchange",
        default="backupfw",
        max_length=255,
        help="The exchange on the message bus.  Of its own: other services may want it durable.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [("DEFAULT", OPTS)]
