"""``[alerts]``: who is told of failures, for operators without Prometheus."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from oslo_config import cfg, types

from backupfw.errors import ConfigError

GROUP = "alerts"

#: What an address can be made of.
_VISIBLE = re.compile("[!-~]+")

OPTS = (
    cfg.Opt(
        "webhook_url",
        type=types.URI(schemes=["http", "https"]),
        secret=True,
        help="Alerts are posted there as JSON; unset: they are not.  Redirects are not followed.",
    ),
    cfg.StrOpt(
        "webhook_secret",
        secret=True,
        help="Key of the HMAC-SHA256 of the body that each request has in the header X-Backupfw-Signature, as"
        " sha256=HEX; unset: no header.",
    ),
    cfg.ListOpt("mail_to", default=[], help="Addresses that alerts are mailed to; empty: they are not."),
    cfg.StrOpt("mail_from", help="Address that the mails are from; needed with mail_to."),
    cfg.HostAddressOpt("smtp_host", default="localhost", help="The mail server."),
    cfg.PortOpt("smtp_port", default=25, help="Its port, e.g. 587 with starttls, 465 with tls."),
    cfg.StrOpt(
        "smtp_security",
        default="none",
        choices=[
            ("none", "in clear text, for a mail server on this host"),
            ("starttls", "encrypted after a greeting in clear text; refused if the server cannot"),
            ("tls", "encrypted from the beginning"),
        ],
        help="How the connection to the mail server is protected.",
    ),
    cfg.StrOpt("smtp_user", help="Name to log in with at the mail server; unset: no log-in."),
    cfg.StrOpt("smtp_password", secret=True, help="The password that belongs to it."),
    cfg.IntOpt(
        "store_down_after",
        default=300,
        min=1,
        help="Seconds for which a store must not answer a worker before an alert is sent.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]


def ways(conf: cfg.ConfigOpts) -> tuple[str, ...]:
    """Return the ways in which alerts are sent; none: they are not."""
    found = conf[GROUP]
    return (*(("webhook",) if found.webhook_url is not None else ()), *(("mail",) if found.mail_to else ()))


def check(conf: cfg.ConfigOpts) -> None:
    """Check values against each other.

    :raises ConfigError: one of them cannot be used with another.
    """
    found = conf[GROUP]
    if found.webhook_url is not None and not _can_be_asked(found.webhook_url):
        # The value may hold a secret.
        raise ConfigError(
            f"section [{GROUP}], option webhook_url: no address that can be asked; allowed: http or https, a"
            " host, a port or none, a path and a query without spaces; no user and password before the host"
        )
    if found.mail_to and not found.mail_from:
        raise ConfigError(f"section [{GROUP}], option mail_from: needs a value, because mail_to has one")
    if (found.smtp_user is None) != (found.smtp_password is None):
        raise ConfigError(f"section [{GROUP}], options smtp_user, smtp_password: one needs the other")
    if found.smtp_user is not None and found.smtp_security == "none":
        raise ConfigError(
            f"section [{GROUP}], option smtp_security: a password must not be sent in clear text;"
            " allowed with smtp_user: starttls, tls"
        )
    if found.webhook_secret is not None and found.webhook_url is None:
        raise ConfigError(f"section [{GROUP}], option webhook_url: needs a value, because webhook_secret has")


def _can_be_asked(url: str) -> bool:
    """Whether Python's client can ask what the type of the option lets through."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return False
    return "@" not in parts.netloc and _VISIBLE.fullmatch(url) is not None
