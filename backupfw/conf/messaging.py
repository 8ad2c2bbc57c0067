"""The message bus: ``[DEFAULT]`` between API and workers, ``[oslo_messaging_notifications]`` for others."""

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
        help="The exchange on the message bus.  Not that of other services, which may declare it as durable.",
    ),
)

#: The section that oslo.messaging has for notifications.
GROUP = "oslo_messaging_notifications"

# As oslo.messaging has them; stated here because it is an extra.
NOTIFICATIONS = (
    cfg.MultiStrOpt(
        "driver",
        default=[],
        help="How notifications are sent: messagingv2, messaging, log, noop; several times for several ways."
        "  Unset: they are not.  Needs the extra 'messaging'.",
    ),
    cfg.StrOpt(
        "transport_url",
        secret=True,
        help="The message bus for notifications; unset: [DEFAULT] transport_url.",
    ),
    cfg.ListOpt("topics", default=["notifications"], help="The topics that notifications are sent to."),
    cfg.IntOpt(
        "retry",
        default=-1,
        min=-1,
        help="How often the sending of a notification is tried again while the bus does not answer, before it"
        " is given up; -1: until it does.  Nothing else waits for it.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register these groups on a private ``conf``."""
    conf.register_opts(OPTS)
    conf.register_opts(NOTIFICATIONS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [("DEFAULT", OPTS), (GROUP, NOTIFICATIONS)]
