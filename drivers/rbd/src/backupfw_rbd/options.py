"""The options of the provider, in ``[volumes:NAME]``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from oslo_config import cfg

from backupfw.errors import ConfigError
from backupfw_rbd.cluster import Connection
from backupfw_rbd.places import name_problem


def rbd_options() -> Sequence[cfg.Opt]:
    """Return the provider's options."""
    return (
        cfg.ListOpt(
            "pools",
            required=True,
            help="The pools with the images of volumes, each POOL or POOL/NAMESPACE. New images are made in"
            " the first; images in no other pool or namespace can be adopted, read or written.",
        ),
        cfg.StrOpt(
            "ceph_conf",
            default="/etc/ceph/ceph.conf",
            help="Absolute path of the cluster's configuration. Empty: none is read, and mon_host and keyring"
            " are needed.",
        ),
        cfg.StrOpt("user", default="backupfw", help="The Ceph user, without 'client.'."),
        cfg.StrOpt(
            "keyring",
            help="Absolute path of the user's keyring. Unset: as the cluster's configuration says, else in"
            " /etc/ceph.",
        ),
        cfg.StrOpt(
            "mon_host",
            help="Addresses of the monitors, with commas between. Unset: as the cluster's configuration"
            " says.",
        ),
        cfg.FloatOpt(
            "timeout",
            default=60.0,
            min=1,
            max=3600,
            help="Seconds after which a request that the cluster does not answer is an error. The operation"
            " is tried again later.",
        ),
        cfg.FloatOpt(
            "fence_wait",
            default=45.0,
            min=0,
            max=600,
            help="Seconds that a restore waits for an image that other clients have open, before it is tried"
            " again later. Ceph forgets a client that died after 30 seconds.",
        ),
    )


def connection(options: Any) -> Connection:
    """Return how the cluster is reached.

    :raises ConfigError: an option has a value that cannot be.
    """
    for name in ("ceph_conf", "keyring"):
        path = getattr(options, name)
        if path and not os.path.isabs(path):
            raise ConfigError(f"option {name}: {path!r} is not an absolute path")
    for name in ("user", "mon_host"):
        value = getattr(options, name)
        if value is not None and (not value or not value.isprintable()):
            raise ConfigError(f"option {name}: {value!r} cannot be")
    if not options.ceph_conf and not options.mon_host:
        raise ConfigError("option mon_host: needed where there is no ceph_conf")
    return Connection(
        conf=options.ceph_conf or None,
        user=options.user,
        keyring=options.keyring or None,
        mon_host=options.mon_host,
        timeout=float(options.timeout),
    )


def pools(options: Any) -> tuple[tuple[str, str], ...]:
    """Return the configured pools, each with its namespace ("" for none).

    :raises ConfigError: there is none, or a name cannot be.
    """
    found = []
    for text in options.pools or ():
        pool, slash, namespace = text.partition("/")
        for name in (pool, *((namespace,) if slash else ())):
            if problem := name_problem(name):
                raise ConfigError(f"option pools: {text!r} has {problem}")
        found.append((pool, namespace))
    if not found:
        raise ConfigError("option pools: at least one pool is needed")
    return tuple(found)
