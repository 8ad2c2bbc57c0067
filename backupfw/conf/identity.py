"""``[keystone_authtoken]``: how tokens are validated, with ``[api] auth_strategy = keystone``.

The options are those of keystonemiddleware and of the keystoneauth plug-in that ``auth_type`` names, with
other defaults.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from oslo_config import cfg

from backupfw.errors import ConfigError

GROUP = "keystone_authtoken"


def register_opts(conf: cfg.ConfigOpts) -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Register the options of the identity service; none if it is not used.

    :returns: ``(section, options)`` pairs, for validation.
    :raises ConfigError: the libraries are not installed, or the plug-in is missing or unknown.
    """
    if conf.api.auth_strategy != "keystone":
        return []
    try:
        # The API's cache of tokens needs it.
        importlib.import_module("cachetools")
        from keystoneauth1 import loading
        from keystonemiddleware import auth_token
    except ImportError as error:
        missing = (error.name or "keystonemiddleware").partition(".")[0]
        raise ConfigError(
            f"section [api], option auth_strategy: keystone needs the package {missing}"
            " (pip install 'backupfw[keystone]')"
        ) from error
    listed = [(section, tuple(opts)) for section, opts in auth_token.list_opts()]
    for section, opts in listed:
        conf.register_opts(opts, section)
    group = conf[GROUP].auth_section or GROUP
    common = tuple(loading.get_auth_common_conf_options())
    conf.register_opts(common, group)
    plug_in_opts = _plug_in_opts(conf, group)
    conf.register_opts(plug_in_opts, group)
    _set_defaults(conf, group)
    return [*listed, (group, (*common, *plug_in_opts))]


def _plug_in_opts(conf: cfg.ConfigOpts, group: str) -> tuple[cfg.Opt, ...]:
    from keystoneauth1 import exceptions, loading

    name = conf[group].auth_type
    try:
        if name:
            return tuple(loading.get_auth_plugin_conf_options(name))
    except exceptions.NoMatchingPlugin:
        pass
    said = "needs a value" if not name else f"{name!r} is not known"
    raise ConfigError(
        f"section [{group}], option auth_type: {said}; allowed: one of"
        f" {', '.join(sorted(loading.get_available_plugin_names()))}"
    )


def _set_defaults(conf: cfg.ConfigOpts, group: str) -> None:
    # Without a limit a Keystone that hangs would occupy every thread of the API.
    conf.set_default("http_connect_timeout", 10, GROUP)
    # The name of this service in access rules of application credentials.
    conf.set_default("service_type", "block-storage", GROUP)
    # Otherwise the first answer without a token would need Keystone's catalogue.
    conf.set_default("www_authenticate_uri", getattr(conf[group], "auth_url", None), GROUP)


def check(conf: cfg.ConfigOpts) -> None:
    """Check values against each other; each value was checked before.

    :raises ConfigError: two values contradict each other, or one needs a package that is not installed.
    """
    if conf.api.auth_strategy != "keystone":
        return
    section = conf[GROUP]
    if section.delay_auth_decision:
        raise ConfigError(
            f"section [{GROUP}], option delay_auth_decision: nothing behind the middleware decides; allowed:"
            " false"
        )
    if section.memcached_servers and importlib.util.find_spec("memcache") is None:
        raise ConfigError(f"section [{GROUP}], option memcached_servers: needs the package python-memcached")
    if section.memcache_security_strategy.lower() != "none" and not section.memcache_secret_key:
        raise ConfigError(
            f"section [{GROUP}], option memcache_secret_key: needs a value where memcache_security_strategy"
            " has one"
        )
