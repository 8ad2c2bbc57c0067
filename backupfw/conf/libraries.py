"""Sections of libraries: the database, the policy file, and the middleware in front of the API."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from oslo_config import cfg
from oslo_db import options as oslo_db
from oslo_middleware import opts as oslo_middleware
from oslo_policy import opts as oslo_policy

#: Headers that scripts in browsers may send and read, in addition to the usual ones.
ALLOW_HEADERS = ("X-Auth-Token", "X-OpenStack-Request-ID", "OpenStack-API-Version")
EXPOSE_HEADERS = ("X-OpenStack-Request-ID", "X-Compute-Request-ID", "OpenStack-API-Version", "Retry-After")
ALLOW_METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register these groups on a private ``conf``."""
    for section, options in list_opts():
        conf.register_opts(options, section)
    conf.set_default("allow_headers", list(ALLOW_HEADERS), "cors")
    conf.set_default("expose_headers", list(EXPOSE_HEADERS), "cors")
    conf.set_default("allow_methods", list(ALLOW_METHODS), "cors")


def of_database() -> tuple[str, Sequence[cfg.Opt]]:
    """Return ``[database]`` and its options; oslo.db does not list them by the section's name."""
    return "database", oslo_db.database_opts


@cache
def list_opts() -> Sequence[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation; the libraries list most for the sample file.

    They make copies of them each time, which takes some ms: these are made once.
    """
    return [
        of_database(),
        *oslo_policy.list_opts(),
        *oslo_middleware.list_opts_cors(),
        *oslo_middleware.list_opts_healthcheck(),
    ]
