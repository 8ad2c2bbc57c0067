"""``[oslo_messaging_notifications]``: who hears what happens to backups; the library's own options."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

GROUP = "oslo_messaging_notifications"

# As oslo.messaging has them; stated here because it is an extra.
OPTS = (
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
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]
