"""``[api]``: where the API listens, and how callers are authenticated."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg, types

from backupfw.conf.types import Size
from backupfw.errors import ConfigError

GROUP = "api"
OPTS = (
    cfg.StrOpt(
        "listen",
        default="127.0.0.1",
        help="Address or host name the API listens on.  With auth_strategy = noauth only loopback addresses"
        " are accepted unless allow_noauth_beyond_loopback is set.",
    ),
    cfg.PortOpt("port", default=8776, help="TCP port the API listens on; 0 takes any free one."),
    cfg.URIOpt(
        "public_endpoint",
        schemes=["http", "https"],
        help="The base URL of links in answers, e.g. https://backup.example.org; unset: from the request.",
    ),
    cfg.BoolOpt(
        "enable_proxy_headers_parsing",
        default=False,
        help="Use X-Forwarded-Proto, -Host, -Port and -Prefix to make links.  Only if a proxy of"
        " yours sets them: otherwise any caller chooses the targets of links.",
    ),
    cfg.StrOpt(
        "auth_strategy",
        default="noauth",
        choices=[
            ("noauth", "callers are not authenticated; project and roles are those in the token"),
            (
                "keystone",
                "Keystone validates tokens, with [keystone_authtoken]; needs the extra 'keystone'",
            ),
        ],
        help="How callers are authenticated.",
    ),
    cfg.ListOpt(
        "noauth_roles",
        default=["member"],
        item_type=types.String(choices=["reader", "member", "admin"]),
        bounds=False,
        help="With noauth: the roles of a caller whose token names none (user:project), has no colon or is"
        " missing.  The embedded profile of 'backupfw serve' sets admin.",
    ),
    cfg.BoolOpt(
        "allow_noauth_beyond_loopback",
        default=False,
        help="Let everybody who can reach the listening address read, overwrite and delete every volume and"
        " backup.  Needed to listen beyond loopback with noauth; only behind another authentication.",
    ),
    cfg.IntOpt(
        "osapi_max_limit",
        default=1000,
        min=1,
        max=100_000,
        help="The largest number of items on a page of a listing, and the number if no limit is given.",
    ),
    cfg.StrOpt(
        "resource_filters_file",
        help="JSON file with the fields by which all callers may filter listings from microversion 3.31 on,"
        ' e.g. {"backup": ["name", "name~", "status"], "volume": ["name"]}; ~ allows a part of the text.'
        "  Unset: name, status and volume_id of backups, and the like of volumes and snapshots."
        "  Administrators may filter by any field.",
    ),
    cfg.Opt(
        "max_request_body_size",
        type=Size(1 << 10, 1 << 30),
        default="1 MiB",
        help="The largest request body that is read; a longer one is refused with 413.",
    ),
    cfg.IntOpt("threads", default=16, min=1, max=1024, help="Requests the API answers at once."),
    cfg.IntOpt(
        "connection_limit",
        default=2048,
        min=16,
        max=65536,
        help="Connections that the API keeps open at once.  One more closes the connection that has been"
        " idle for longest.  Each needs a file descriptor.",
    ),
    cfg.IntOpt(
        "connections_per_address",
        default=256,
        min=0,
        max=65536,
        help="The same for connections of one address (IPv6: of one /64 network); 0: no such limit.  Behind a"
        " proxy all come from the proxy's address.",
    ),
    cfg.FloatOpt(
        "header_timeout",
        default=20,
        min=0.1,
        max=3600,
        help="Seconds a request's line and headers may take from their first byte.  The first request of a"
        " connection must begin within the same time.",
    ),
    cfg.FloatOpt(
        "body_timeout",
        default=60,
        min=0.1,
        max=3600,
        help="Seconds a request's body may take, and seconds a client may read nothing of its answer.",
    ),
    cfg.FloatOpt(
        "idle_timeout",
        default=75,
        min=0.1,
        max=86400,
        help="Seconds for which an idle connection is kept; longer than a proxy in front keeps its own.",
    ),
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register this group on a private ``conf``."""
    conf.register_opts(OPTS, GROUP)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation and the sample file."""
    return [(GROUP, OPTS)]


def _is_loopback(address: str) -> bool:
    # A scope id (fe80::1%eth0) is no part of the address.
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def is_on_loopback(conf: cfg.ConfigOpts) -> bool:
    """Say whether the API listens on loopback addresses only."""
    try:
        return _all_loopback(socket.getaddrinfo(conf.api.listen, None, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        return False


def _all_loopback(found: Sequence[Any]) -> bool:
    return all(_is_loopback(str(entry[4][0])) for entry in found)


def check_listen(conf: cfg.ConfigOpts) -> None:
    """Refuse to serve all callers by accident; called before the API listens.

    :raises ConfigError: the address cannot be resolved, or noauth would be open beyond loopback.
    """
    listen = conf.api.listen
    try:
        found = socket.getaddrinfo(listen, conf.api.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"section [api], option listen: {listen!r} is not an address or host name of this machine"
        ) from error
    if conf.api.auth_strategy != "noauth" or conf.api.allow_noauth_beyond_loopback:
        return
    if not _all_loopback(found):
        raise ConfigError(
            f"section [api], option listen: {listen!r} can be reached from other machines and auth_strategy ="
            " noauth authenticates nobody; allowed: loopback addresses (127.0.0.1, ::1, localhost), or"
            " any address with allow_noauth_beyond_loopback = true"
        )
