"""``[quiesce:NAME]``: commands that let programs rest while a point of a volume is taken."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oslo_config import cfg

from backupfw.conf import named
from backupfw.conf.types import Command

#: What commands can have in braces.
PLACEHOLDERS = ("volume_id", "project_id", "location")

_COMMAND = Command(PLACEHOLDERS)

OPTS = (
    cfg.Opt(
        "freeze",
        type=_COMMAND,
        required=True,
        help="The command that a worker runs just before the point of a volume is taken: it brings what"
        " programs have in memory to the volume, and lets them wait.  An absolute path and arguments, quoted"
        " as in a shell, but no shell runs them.  {volume_id}, {project_id} and {location} (where the"
        " operator finds the volume's bytes) are replaced.  It gets no environment but PATH and LANG.",
    ),
    cfg.Opt(
        "thaw",
        type=_COMMAND,
        required=True,
        help="The command that undoes it, just after the point was taken, and whenever the freezing failed or"
        " its worker was lost: it must succeed as well if nothing is frozen, and may run twice.",
    ),
    cfg.IntOpt(
        "timeout_seconds",
        default=30,
        min=1,
        max=300,
        help="Seconds that each of the two commands gets; then it is killed, with all that it has started in"
        " its process group.",
    ),
    cfg.IntOpt(
        "frozen_seconds",
        default=60,
        min=1,
        max=600,
        help="Seconds after which a volume is thawed in any case.  A point that takes longer is made all the"
        " same, but does not count as quiesced.",
    ),
)


@dataclass(frozen=True, slots=True)
class QuiesceCommands:
    """The commands of one section.

    :ivar timeout: seconds that each of them gets.
    :ivar frozen_seconds: the longest time between the end of one and the beginning of the other.
    """

    freeze: tuple[str, ...]
    thaw: tuple[str, ...]
    timeout: int
    frozen_seconds: int


def group_of(name: str) -> str:
    """Return the section of a name, e.g. ``quiesce:guest-agent``."""
    return f"quiesce:{name}"


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register the section of every name in ``quiesce_commands``; ``conf`` has parsed its files already.

    :raises ConfigError: a name is there twice.
    """
    if conf.quiesce_commands:
        named.check_enabled(
            conf.quiesce_commands, None, ("DEFAULT", "quiesce_commands", ""), "pair of commands"
        )
    for section, opts in sections(conf):
        conf.register_opts(opts, section)


def sections(conf: cfg.ConfigOpts) -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` of every name."""
    return [(group_of(name), OPTS) for name in conf.quiesce_commands]


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return a section for the sample file."""
    return [(group_of("my-commands"), OPTS)]


def commands(conf: cfg.ConfigOpts) -> Mapping[str, QuiesceCommands]:
    """Return the commands of each name."""
    found = {}
    for name in conf.quiesce_commands:
        one = conf[group_of(name)]
        found[name] = QuiesceCommands(one.freeze, one.thaw, one.timeout_seconds, one.frozen_seconds)
    return found
