"""``[placement:NAME]``: rules that choose the store of a new backup by its project, zone and volume type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from oslo_config import cfg

from backupfw.conf import stores
from backupfw.errors import ConfigError

#: The criteria of a rule; a rule without any would hide every rule after it.
CRITERIA = ("projects", "availability_zones", "volume_types")

OPTS = (
    cfg.StrOpt(
        "store",
        required=True,
        help="The store of backups that match the rule.  One of enabled_stores.",
    ),
    cfg.StrOpt(
        "container",
        max_length=255,
        help="Their container, unless the request names one; unset: the store's own default.",
    ),
    cfg.StrOpt(
        "encryption",
        choices=[
            (stores.OFF, "they are stored as they are"),
            (stores.PROJECT, "they are encrypted with a key of their project"),
        ],
        help="Whether their data is encrypted; unset: as the option encryption of their store says.",
    ),
    cfg.ListOpt(
        "copies",
        default=[],
        help="Stores of enabled_stores to which each of these backups is copied when it is available, into"
        " the container that the store's section names.  A copy costs its store what the backup costs, and"
        " the backup's store a read of what is new.  Empty: no copies.",
    ),
    cfg.ListOpt(
        "projects",
        default=[],
        help="Ids of projects; matches backups that are made in one of them.  Empty: in any.",
    ),
    cfg.ListOpt(
        "availability_zones",
        default=[],
        help="Matches backups with one of these zones in their request; if the request names none, backups"
        " of volumes in one of them.  Empty: any.",
    ),
    cfg.ListOpt(
        "volume_types",
        default=[],
        help="Names of volume types; matches backups of their volumes.  Empty: of any type, or none.",
    ),
)


def group_of(rule: str) -> str:
    """Return the section of a rule, e.g. ``placement:gold``."""
    return f"placement:{rule}"


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the section of every rule in ``placement_rules``; ``conf`` has parsed its files already."""
    for section, opts in sections(conf):
        conf.register_opts(opts, section)


def sections(conf: cfg.ConfigOpts) -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` of every active rule."""
    return [(group_of(rule), OPTS) for rule in conf.placement_rules]


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return a section for the sample file."""
    return [(group_of("my-rule"), OPTS)]


def check(conf: cfg.ConfigOpts, drivers: Mapping[str, stores.Driver]) -> None:
    """Check that every rule can be used.

    :param drivers: the driver class of every enabled store.
    :raises ConfigError: a rule is named twice, names a store that is not enabled or a container name that the
        store does not accept, wants a copy in its own store, or matches everything.
    """
    rules: list[str] = conf.placement_rules
    if len(set(rules)) != len(rules):
        raise ConfigError("section [DEFAULT], option placement_rules: a rule is named twice")
    for rule in rules:
        values = conf[group_of(rule)]
        where = f"section [{group_of(rule)}], option"
        if values.store not in drivers:
            raise ConfigError(
                f"{where} store: {values.store!r} is not enabled; allowed: one of {', '.join(drivers)}"
            )
        for number, store in enumerate(values.copies):
            if store not in drivers:
                raise ConfigError(
                    f"{where} copies: {store!r} is not enabled; allowed: some of {', '.join(drivers)}"
                )
            if store == values.store:
                raise ConfigError(f"{where} copies: {store!r} is the rule's own store; allowed: other ones")
            if store in values.copies[:number]:
                raise ConfigError(f"{where} copies: {store!r} is named twice")
        if values.container is not None:
            problem = stores.container_problem(drivers[values.store], values.container)
            if problem:
                raise ConfigError(f"{where} container: {values.container!r}: {problem}")
        stores.check_keys(conf, group_of(rule))
        if not any(values[criterion] for criterion in CRITERIA):
            raise ConfigError(
                f"{where} {CRITERIA[0]}: the rule fits every backup, which is what default_store is for;"
                f" allowed: a value for at least one of {', '.join(CRITERIA)}"
            )
