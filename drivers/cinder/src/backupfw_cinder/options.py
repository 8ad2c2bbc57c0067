"""The options of the provider, in ``[volumes:NAME]``: those of keystoneauth, of this host, and of Ceph."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

from backupfw_rbd.provider import RbdProvider
from keystoneauth1 import exceptions, loading
from oslo_config import cfg

from backupfw.errors import ConfigError

#: Begins the names of the options that are the provider ``rbd``'s.
RBD = "rbd_"

# How the service's user can identify itself.
_PLUGINS = ("password", "v3applicationcredential")
# Options of keystoneauth's that have no meaning in a section of its own.
_LEFT_OUT = frozenset(
    {
        "auth_section",
        "collect_timing",
        "connect_retry_delay",
        "interface",
        "max_version",
        "min_version",
        "retriable_status_codes",
        "split_loggers",
        "status_code_retry_delay",
        "tls_ciphers",
        "tls_min_version",
        "version",
    }
)

# How this host reaches volumes that are not in Ceph.
_HOST = (
    cfg.StrOpt(
        "attach_dir",
        default="/var/lib/backupfw/attached",
        help="Absolute path of a directory for locks and mounted shares, for volumes that are not in Ceph. "
        "All workers of a host have the same.",
    ),
    cfg.StrOpt(
        "root_helper",
        default="sudo",
        help="What begins the commands that must run as root to attach a volume. A worker that is root "
        "does not use it.",
    ),
    cfg.StrOpt(
        "connector_ip",
        help="The address by which the Block Storage service knows this host. Unset: that of its default "
        "route.",
    ),
    cfg.BoolOpt("multipath", default=False, help="Attach volumes by several paths; needs multipathd."),
)


def cinder_options() -> Sequence[cfg.Opt]:
    """Return the provider's options."""
    found: dict[str, cfg.Opt] = {}
    for opt in _keystone_options():
        if opt.dest in _LEFT_OUT or opt.dest in found:
            continue
        # A copy, because the library may give the same object again.
        found[opt.dest] = own = copy.copy(opt)
        # What one of the plug-ins needs another does not; it is checked when the plug-in is loaded.
        own.required = False
    found["auth_type"].default = "password"
    found["auth_type"].help = f"How the service's user identifies itself: one of {', '.join(_PLUGINS)}."
    # Without a limit, a Cinder that hangs would occupy every thread of the API.
    found["timeout"].default = 60
    found["service_type"].default = "block-storage"
    for opt in _HOST:
        found[opt.dest] = opt
    for opt in RbdProvider.options():
        renamed = copy.copy(opt)
        renamed.name = RBD + opt.name
        renamed.dest = RBD + opt.dest
        renamed.required = False
        found[renamed.dest] = renamed
    return tuple(found.values())


def _keystone_options() -> Iterator[cfg.Opt]:
    yield from loading.get_auth_common_conf_options()
    for name in _PLUGINS:
        yield from loading.get_auth_plugin_conf_options(name)
    yield from loading.get_session_conf_options()
    yield from loading.get_adapter_conf_options()


def session_of(options: Any) -> Any:
    """Return a session of the service's user; nothing is asked yet.

    :raises ConfigError: an option is missing, or has a value that cannot be.
    """
    if options.auth_type not in _PLUGINS:
        raise ConfigError(
            f"option auth_type: {options.auth_type!r} is not allowed; allowed: one of {', '.join(_PLUGINS)}"
        )
    if not options.auth_url:
        raise ConfigError("option auth_url: needs a value")
    loader: Any = loading.get_plugin_loader(options.auth_type)
    try:
        auth = loader.load_from_options_getter(lambda opt: getattr(options, opt.dest, None))
        return loading.session.Session().load_from_options(
            insecure=options.insecure,
            cacert=options.cafile,
            cert=options.certfile,
            key=options.keyfile,
            timeout=options.timeout,
            auth=auth,
        )
    except exceptions.MissingRequiredOptions as error:
        missing = ", ".join(opt.dest for opt in error.options)
        raise ConfigError(f"option {missing}: needs a value with auth_type = {options.auth_type}") from error
    except exceptions.OptionError as error:
        raise ConfigError(f"option auth_type: {options.auth_type!r} needs more: {error}") from error


def attach_directory(options: Any) -> str:
    """Return the real path of ``attach_dir``; it need not exist.

    :raises ConfigError: it is no absolute path.
    """
    if not os.path.isabs(options.attach_dir or ""):
        raise ConfigError(f"option attach_dir: {options.attach_dir!r} is not an absolute path")
    return os.path.realpath(str(options.attach_dir))


def rbd_values(options: Any) -> Any | None:
    """Return the values of the provider ``rbd``'s options; None if no pool is named."""
    if not options.rbd_pools:
        return None
    return SimpleNamespace(**{opt.dest: getattr(options, RBD + opt.dest) for opt in RbdProvider.options()})
