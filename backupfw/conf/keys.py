"""``[keys]``: the key store, which keeps the keys of projects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from oslo_config import cfg

from backupfw.conf import named

GROUP = "keys"
DRIVER = cfg.StrOpt(
    "driver",
    help="The key store: an installed entry point of group backupfw.keys.  The embedded service uses file;"
    " unset: there is none, and nothing can be encrypted.",
)
ALGORITHM = cfg.StrOpt(
    "algorithm",
    default="aes-256-gcm",
    choices=[
        ("aes-256-gcm", "fast where processors have instructions for AES, which nearly all have"),
        ("chacha20-poly1305", "faster on the others"),
    ],
    help="How the data of new backups is encrypted.  Older backups can be read whatever it is.",
)
#: The options of the section, whatever the driver.
COMMON = (DRIVER, ALGORITHM)
#: Why the section needs a driver.
NEEDED = "it is the key store of this installation"


def is_set_up(conf: cfg.ConfigOpts) -> bool:
    """Return whether there is a key store."""
    return conf[GROUP].driver is not None


def register_opts(
    conf: cfg.ConfigOpts, find_driver: Callable[[str], named.Driver], defaults: Mapping[str, object]
) -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Register the section; ``conf`` has parsed its files already.

    Without a driver it is none that anything reads.

    :param find_driver: returns the class of a key store; raises ConfigError where there is none.
    :param defaults: defaults that differ from the plug-in's own.
    :returns: what was registered.
    :raises ConfigError: the driver is unknown.
    """
    conf.register_opts(COMMON, GROUP)
    if conf[GROUP].driver is None and "driver" not in defaults:
        return []
    return [named.register_opts(conf, GROUP, COMMON, find_driver, defaults, needed_by=NEEDED)]
