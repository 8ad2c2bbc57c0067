"""Opens oslo.messaging's transports for a configuration of our own."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import TYPE_CHECKING

from oslo_config import cfg

from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_messaging.transport import RPCTransport


def library_conf(conf: cfg.ConfigOpts) -> cfg.ConfigOpts:
    """Return a configuration for oslo.messaging alone, of the same files.

    The library registers its options wherever it is handed a configuration, some of them under names of
    ours; and it looks for two groups that it registers on the global one only.

    :raises ConfigError: the library is not installed.
    """
    try:
        load_library()
        from oslo_messaging import opts
        from oslo_messaging._metrics.client import oslo_messaging_metrics
        from oslo_messaging._tracing.client import oslo_messaging_tracing
    except ImportError as error:
        raise ConfigError(
            "section [DEFAULT], option transport_url: needs oslo.messaging; install backupfw[messaging]"
        ) from error
    own = cfg.ConfigOpts()
    own(args=[], project="backupfw", default_config_files=list(conf.config_file), default_config_dirs=[])
    for group, group_opts in opts.list_opts():
        own.register_opts(group_opts, group)
    own.register_opts(oslo_messaging_metrics, "oslo_messaging_metrics")
    own.register_opts(oslo_messaging_tracing, "oslo_messaging_tracing")
    return own


def load_library() -> None:
    """Import oslo.messaging.

    The first import belongs into the main thread: in a thread that answers requests it leaves behind what
    keeps a WSGI server's process from ending.

    :raises ImportError: it is not installed.
    """
    # What comes along warns at length, on standard error, of eventlet, which nothing here uses.
    with warnings.catch_warnings(record=True):
        _choose_threads()
        importlib.import_module("oslo_messaging")


def _choose_threads() -> None:
    """Keep the library's helper from its default, green threads, which patch the whole process."""
    from oslo_service import backend

    with contextlib.suppress(backend.exceptions.BackendAlreadySelected):
        backend.init_backend(backend.BackendType.THREADING)


def open_transport(conf: cfg.ConfigOpts) -> RPCTransport:
    """Return the transport for RPC; no connection is made yet.

    :param conf: ``transport_url`` and ``control_exchange``.
    :raises ConfigError: the URL cannot be used, or the library is not installed.
    """
    own = library_conf(conf)
    import oslo_messaging

    own.set_override("control_exchange", conf.control_exchange)
    try:
        return oslo_messaging.get_rpc_transport(own, url=conf.transport_url)
    except (oslo_messaging.InvalidTransportURL, oslo_messaging.DriverLoadFailure, ValueError) as error:
        # The error's own words hold the URL, and with it a password.
        raise ConfigError(
            "section [DEFAULT], option transport_url: this is not the URL of a message bus; allowed: e.g."
            " rabbit://user:password@host:5672/vhost"
        ) from error
