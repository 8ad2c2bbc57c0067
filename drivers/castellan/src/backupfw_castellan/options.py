"""The options of the key store ``castellan``, and the configuration of Castellan that they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castellan import options as castellan_options
from oslo_config import cfg

from backupfw.errors import ConfigError

BARBICAN, VAULT = "barbican", "vault"

OPTIONS: Sequence[cfg.Opt] = (
    cfg.StrOpt(
        "backend",
        choices=[BARBICAN, VAULT],
        default=BARBICAN,
        help="Where the keys are (driver castellan): barbican, or vault, which is also OpenBao.",
    ),
    cfg.StrOpt(
        "url", help="The URL of Vault, or of Barbican; unset for Barbican: as Keystone's catalogue says."
    ),
    cfg.StrOpt(
        "ca_file", help="The certificates with which the key manager is checked; unset: the system's."
    ),
    cfg.FloatOpt("timeout", default=30.0, min=1.0, help="Seconds until a request to Vault is given up."),
    cfg.StrOpt("token", secret=True, help="A token of Vault that can read, write and delete below kv_path."),
    cfg.StrOpt("approle_role_id", secret=True, help="The role's id with which a token of Vault is got."),
    cfg.StrOpt("approle_secret_id", secret=True, help="The secret id that belongs to it."),
    cfg.StrOpt("kv_mount", default="secret", help="Where Vault's key/value store is mounted."),
    cfg.StrOpt("kv_path", default="backupfw", help="The path of the keys in it; nothing else may be there."),
    cfg.IntOpt(
        "kv_version",
        choices=[1, 2],
        default=1,
        help="The version of the key/value store.  Version 2 keeps what was deleted, so it can be restored"
        " until an administrator of Vault destroys it.",
    ),
    cfg.StrOpt("namespace", help="The namespace in Vault or OpenBao."),
    cfg.StrOpt("auth_url", help="The URL of Keystone, for Barbican."),
    cfg.StrOpt("username", help="The service's user there, whose project the keys belong to."),
    cfg.StrOpt("password", secret=True, help="The user's password."),
    cfg.StrOpt("project_name", help="The user's project."),
    cfg.StrOpt("user_domain_name", default="Default", help="The user's domain."),
    cfg.StrOpt("project_domain_name", default="Default", help="The project's domain."),
    cfg.StrOpt("region_name", help="The region of Barbican in Keystone's catalogue."),
)

_NEEDED = {BARBICAN: ("auth_url", "username", "password", "project_name"), VAULT: ("url",)}
_SECRETS = ("token", "approle_role_id", "approle_secret_id", "password")


def check(options: Any) -> None:
    """Check the options together.

    :raises ConfigError: one is missing, or has a character that no request can carry.
    """
    for name in _NEEDED[options.backend]:
        if not getattr(options, name):
            raise ConfigError(f"option {name}: needs a value for the back end {options.backend}")
    if options.backend == VAULT and not (options.token or options.approle_role_id):
        raise ConfigError("option token: needs a value, or approle_role_id")
    for name in _SECRETS:
        value = getattr(options, name)
        if value and not (value.isascii() and value.isprintable() and value == value.strip()):
            # A library would show it.
            raise ConfigError(
                f"option {name}: has a blank around it, or a character that is not printable ASCII"
            )


def castellan_conf(options: Any) -> cfg.ConfigOpts:
    """Return a configuration of Castellan's own; no file is read."""
    conf = cfg.ConfigOpts()
    conf(args=[], project="backupfw-castellan", default_config_files=[], default_config_dirs=[])
    if options.backend == VAULT:
        castellan_options.set_defaults(
            conf,
            backend=VAULT,
            vault_url=options.url,
            vault_root_token_id=options.token,
            vault_approle_role_id=options.approle_role_id,
            vault_approle_secret_id=options.approle_secret_id,
            vault_kv_mountpoint=options.kv_mount,
            vault_kv_path=options.kv_path,
            vault_kv_version=options.kv_version,
            vault_ssl_ca_crt_file=options.ca_file,
            vault_namespace=options.namespace,
        )
        conf.set_default("timeout", options.timeout, group="vault")
    else:
        castellan_options.set_defaults(
            conf,
            backend=BARBICAN,
            barbican_endpoint=options.url,
            auth_endpoint=options.auth_url,
            verify_ssl_path=options.ca_file,
        )
        conf.set_default("barbican_region_name", options.region_name, group="barbican")
    return conf
