"""Load a configuration (files, profile, options of plug-ins, checks), and read its files again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oslo_config import cfg

from backupfw import naming
from backupfw.conf import (
    alerts,
    api,
    backup,
    console,
    default,
    embedded,
    identity,
    keys,
    libraries,
    logging,
    messaging,
    metrics,
    named,
    placement,
    quiesce,
    stores,
    validate,
    volumes,
)
from backupfw.errors import ConfigError

#: Read when neither a file nor a state directory is given, if it exists.
SYSTEM_CONFIG = "/etc/backupfw/backupfw.conf"

GROUPS = (default, logging, messaging, api, console, libraries, backup, metrics, alerts, volumes)


@dataclass(frozen=True)
class PlugIns:
    """Functions that return the options of plug-ins (this package imports none of them).

    :ivar store_driver: driver name -> driver class; raises ConfigError for an unknown one.
    :ivar layer_options: driver class -> options of the layers around it.
    :ivar volume_driver: provider name -> its class; raises ConfigError for an unknown one.
    :ivar key_store: key store name -> its class; raises ConfigError for an unknown one.
    """

    store_driver: Callable[[str], stores.Driver]
    layer_options: Callable[[Any], Sequence[cfg.Opt]]
    volume_driver: Callable[[str], named.Driver]
    key_store: Callable[[str], named.Driver]


@dataclass(frozen=True)
class Loaded:
    """A loaded and checked configuration.

    :ivar conf: the values; private to the caller.
    :ivar files: the files that were read.
    :ivar embedded: whether the embedded profile applies.
    :ivar unused_sections: sections of the files that nothing reads.
    """

    conf: cfg.ConfigOpts
    files: tuple[str, ...]
    embedded: bool
    unused_sections: tuple[str, ...]


def _choose_files(
    state_dir: str | None, config_files: Sequence[str], remembered: bool
) -> tuple[tuple[str, ...], bool]:
    """Return the files to read, and whether the embedded profile applies."""
    if config_files:
        return tuple(config_files), state_dir is not None
    if state_dir is None and Path(SYSTEM_CONFIG).is_file():
        return (SYSTEM_CONFIG,), False
    place = state_dir or embedded.absolute(embedded.default_state_dir())
    if remembered and (served := embedded.remembered(place)) is not None:
        return served
    own = Path(place) / embedded.CONFIG_FILE
    files = (str(own),) if state_dir is not None and own.is_file() else ()
    return files, True


def load(
    plug_ins: PlugIns,
    *,
    state_dir: str | None = None,
    config_files: Sequence[str] = (),
    remembered: bool = True,
    overrides: Sequence[tuple[str, str, object]] = (),
) -> Loaded:
    """Read and check a configuration.  Opens no store and no database.

    Files: those given; else, without a state directory, ``/etc/backupfw/backupfw.conf``; else those that the
    state directory is served with; else its ``backupfw.conf``.  The embedded profile applies when a state
    directory is given or no file is found; for a served state directory, as ``serve`` recorded it.

    :param state_dir: the embedded profile's state directory.
    :param config_files: later ones win.
    :param remembered: whether to use the files that ``serve`` recorded in the state directory.
    :param overrides: ``(section, option, value)`` from the command line; they win over files.
    :raises ConfigError: anything is wrong; the message names section, option and what is allowed.
    """
    if state_dir is not None:
        state_dir = embedded.absolute(state_dir)
    files, profile = _choose_files(state_dir, config_files, remembered)
    conf = cfg.ConfigOpts()
    for group in GROUPS:
        group.register_opts(conf)
    listed = [pair for group in GROUPS for pair in group.list_opts()]
    try:
        conf(args=[], project="backupfw", default_config_files=list(files), default_config_dirs=[])
    except cfg.Error as error:
        raise ConfigError(f"configuration: {' '.join(str(error).split())}") from error
    if profile:
        embedded.apply(conf, state_dir or embedded.absolute(embedded.default_state_dir()))
    for section, option, value in overrides:
        _override(conf, section, option, value)
    if profile and api.is_on_loopback(conf):
        conf.set_default("enabled", True, console.GROUP)
    # First check the values that decide about further options.
    validate.check_values(conf, validate.merge(listed))
    if len(conf.enabled_stores) == 1:
        conf.set_default("default_store", conf.enabled_stores[0])
    validate.check_together(conf)
    further = [*identity.register_opts(conf), *_register_plug_ins(conf, plug_ins, profile)]
    placement.register_opts(conf)
    further += placement.sections(conf)
    quiesce.register_opts(conf)
    further += quiesce.sections(conf)
    validate.check_values(conf, validate.merge(further))
    identity.check(conf)
    alerts.check(conf)
    problem = naming.container_problem(conf.backup.container)
    if problem:
        raise ConfigError(f"section [backup], option container: {conf.backup.container!r}: {problem}")
    drivers = {
        name: plug_ins.store_driver(conf[stores.group_of(name)].driver) for name in conf.enabled_stores
    }
    stores.check(conf, drivers)
    placement.check(conf, drivers)
    unused = validate.check_names(files, validate.merge([*listed, *further]))
    if keys.GROUP in unused:
        raise ConfigError(f"section [{keys.GROUP}], option driver: needs a value; {keys.NEEDED}")
    if conf.transport_url or conf[messaging.GROUP].driver:
        unused = [section for section in unused if not section.startswith(messaging.LIBRARY_SECTIONS)]
    return Loaded(conf, files, profile, tuple(unused))


def _override(conf: cfg.ConfigOpts, section: str, option: str, value: object) -> None:
    try:
        conf.set_override(option, value, None if section == "DEFAULT" else section)
    except ValueError as error:
        raise ConfigError(f"section [{section}], option {option}: {validate.words(error)}") from error


def _register_plug_ins(
    conf: cfg.ConfigOpts, plug_ins: PlugIns, profile: bool
) -> list[tuple[str, Sequence[cfg.Opt]]]:
    defaults = (embedded.BACKENDS, embedded.STORES, embedded.KEYS) if profile else ({}, {}, {})
    return [
        *(
            volumes.register_backend(conf, name, plug_ins.volume_driver, defaults[0].get(name, {}))
            for name in conf.volumes.enabled
        ),
        *(
            stores.register_opts(
                conf, name, plug_ins.store_driver, plug_ins.layer_options, defaults[1].get(name, {})
            )
            for name in conf.enabled_stores
        ),
        *keys.register_opts(conf, plug_ins.key_store, defaults[2]),
    ]


def reread(conf: cfg.ConfigOpts, load: Callable[[], object]) -> tuple[str, ...]:
    """Read the files that ``conf`` was loaded from again and change its mutable options.

    Code that depends on them has registered a hook with ``conf.register_mutate_hook``.  A change of an option
    that is not mutable is only logged.

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
