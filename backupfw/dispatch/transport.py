"""Opens oslo.messaging's transports, with a configuration of their own."""

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
    """Return a configuration for oslo.messaging, read from the same files.

    The library registers its options with the configuration that it gets, some of them under names of ours.
    It needs two groups that it registers with the global configuration only.

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

    Call it in the main thread first: an import in a thread that answers requests keeps the process of a WSGI
    server from ending.

    :raises ImportError: it is not installed.
    """
    # A dependency warns of eventlet on standard error; nothing here uses eventlet.
    with warnings.catch_warnings(record=True):
        _choose_threads()
        importlib.import_module("oslo_messaging")


def _choose_threads() -> None:
    """Let the library use threads; its default, green threads, would patch the whole process."""
    from oslo_service import backend

    with contextlib.suppress(backend.exceptions.BackendAlreadySelected):
        backend.init_backend(backend.BackendType.THREADING)


def open_transport(conf: cfg.ConfigOpts) -> RPCTransport:
    """Return the transport for RPC; it is not connected yet.

    :param conf: ``transport_url`` and ``control_exchange``.
    :raises ConfigError: the URL cannot be used, or the library is not installed.
    """
    own = library_conf(conf)
    import oslo_messaging

    own.set_override("control_exchange", conf.control_exchange)
    try:
        return oslo_messaging.get_rpc_transport(own, url=conf.transport_url)
    except (oslo_messaging.InvalidTransportURL, oslo_messaging.DriverLoadFailure, ValueError) as error:
        # The error's text holds the URL with the password.
        raise ConfigError(
            "section [DEFAULT], option transport_url: this is not the URL of a message bus; allowed: e.g."
            " rabbit://user:password@host:5672/vhost"
        ) from error
