"""The driver's options, in ``[store:NAME]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

#: What each way to authenticate needs; a tuple of alternatives where one of several is enough.
NEEDED: dict[str, tuple[tuple[str, ...], ...]] = {
    "password": (("username", "user_id"), ("password",), ("project_name", "project_id")),
    "application_credential": (
        ("application_credential_id", "application_credential_name"),
        ("application_credential_secret",),
    ),
    "v1": (("username",), ("password",)),
}


def options() -> Sequence[cfg.Opt]:
    """Return new option objects."""
    return (*_identity(), *_service(), *_transport(), *_requests())


def _identity() -> Sequence[cfg.Opt]:
    return (
        cfg.StrOpt(
            "auth",
            default="password",
            choices=[
                ("password", "Keystone v3 with user, password and project"),
                ("application_credential", "Keystone v3 with an application credential"),
                ("v1", "Swift's own v1 authentication (tempauth, radosgw)"),
            ],
            help="How to authenticate.",
        ),
        cfg.URIOpt(
            "auth_url",
            required=True,
            schemes=["http", "https"],
            help="Keystone's URL, with or without /v3; for v1 the whole URL, e.g. "
            "https://swift.example.org/auth/v1.0.",
        ),
        cfg.StrOpt("username", help="The user's name; for v1 account:user."),
        cfg.StrOpt("user_id", help="The user's id, instead of its name and domain."),
        cfg.StrOpt(
            "user_domain_name", default="Default", help="Name of the user's domain, unless its id is given."
        ),
        cfg.StrOpt("user_domain_id", help="Id of the user's domain."),
        cfg.StrOpt("password", secret=True, help="The user's password; for v1 the key."),
        cfg.StrOpt("project_name", help="The project whose account holds the containers."),
        cfg.StrOpt("project_id", help="The project's id, instead of its name and domain."),
        cfg.StrOpt(
            "project_domain_name",
            default="Default",
            help="Name of the project's domain, unless its id is given.",
        ),
        cfg.StrOpt("project_domain_id", help="Id of the project's domain."),
        cfg.StrOpt("application_credential_id", help="The application credential's id."),
        cfg.StrOpt(
            "application_credential_name",
            help="The application credential's name, instead of its id; needs the user too.",
        ),
        cfg.StrOpt("application_credential_secret", secret=True, help="The application credential's secret."),
        cfg.FloatOpt(
            "token_renew_before",
            default=30.0,
            min=0,
            max=86400,
            help="A token is renewed this many seconds before it expires, yet not in the first quarter of "
            "its life. One that is refused is renewed at once in any case.",
        ),
    )


def _service() -> Sequence[cfg.Opt]:
    return (
        cfg.StrOpt("region_name", help="The region to look up in the catalogue. None takes the first."),
        cfg.StrOpt(
            "interface",
            default="public",
            choices=["public", "internal", "admin"],
            help="The interface to look up in the catalogue.",
        ),
        cfg.StrOpt(
            "service_type", default="object-store", help="The service type to look up in the catalogue."
        ),
        cfg.URIOpt(
            "storage_url",
            schemes=["http", "https"],
            help="URL of the account, e.g. https://swift.example.org/v1/AUTH_1234, instead of what the "
            "catalogue or the v1 answer says.",
        ),
        cfg.StrOpt(
            "storage_policy",
            help="Storage policy of new containers. None takes the cluster's default. Containers that are "
            "there keep theirs.",
        ),
        cfg.StrOpt(
            "check_container",
            help="An existing container in which checks may write an object. Without it a check makes one of "
            "its own and removes it, which needs a role on the account.",
        ),
    )


def _transport() -> Sequence[cfg.Opt]:
    return (
        cfg.StrOpt("cacert", help="File of the CA certificates to trust. None takes the common ones."),
        cfg.BoolOpt(
            "insecure", default=False, help="Accept every certificate. Anybody on the way can then read all."
        ),
        cfg.StrOpt("cert", help="File of the client certificate, where the server asks for one."),
        cfg.StrOpt("cert_key", help="File of the client certificate's key, unless it is in the same file."),
        cfg.FloatOpt(
            "connect_timeout",
            default=10.0,
            min=0.1,
            max=600,
            help="Seconds until a connection must be made.",
        ),
        cfg.FloatOpt(
            "read_timeout",
            default=60.0,
            min=0.1,
            max=3600,
            help="Seconds the server may be silent. The layer's operation_timeout bounds the whole call.",
        ),
    )


def _requests() -> Sequence[cfg.Opt]:
    return (
        cfg.BoolOpt(
            "bulk_delete",
            default=True,
            help="Delete many objects by one request where the server says that it can (/info).",
        ),
        cfg.IntOpt(
            "bulk_delete_size",
            default=1000,
            min=1,
            max=10000,
            help="Most objects in one bulk delete; the server's own limit holds too.",
        ),
    )


def missing(options: Any) -> str | None:
    """Say which option is missing for the chosen way to authenticate, or None."""
    for names in NEEDED[options.auth]:
        if not any(getattr(options, name) for name in names):
            return f"auth = {options.auth} needs {' or '.join(names)}"
    by_name = options.auth == "application_credential" and not options.application_credential_id
    if by_name and not (options.username or options.user_id):
        return "application_credential_name needs username or user_id"
    if options.cert_key and not options.cert:
        return "cert_key needs cert"
    return None
