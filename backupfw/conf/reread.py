"""Read the files of a running process again: what can be changed while it runs, is."""

from __future__ import annotations

from collections.abc import Callable

from oslo_config import cfg

from backupfw.errors import ConfigError


def reread(conf: cfg.ConfigOpts, load: Callable[[], object]) -> tuple[str, ...]:
    """Read the files that ``conf`` was loaded from again and change its mutable options.

    Whoever depends on them has registered a hook with ``conf.register_mutate_hook``.  Of options that are
    not mutable a change is logged and otherwise ignored.

    :param conf: the running configuration.
    :param load: loads it anew, as the process did at its start; raises ConfigError.
    :returns: what has changed, as ``section.option``, sorted.
    :raises ConfigError: the files are wrong; then nothing has changed.
    """
    load()
    try:
        changed = conf.mutate_config_files()
    except cfg.Error as error:
        raise ConfigError(f"configuration: {' '.join(str(error).split())}") from error
    return tuple(sorted(f"{section or 'DEFAULT'}.{option}" for section, option in changed))
