"""Logging: oslo.log's options, in ``[DEFAULT]``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.metadata import entry_points

from oslo_config import cfg
from oslo_log import log

#: Libraries that tell more than an operator wants at the level of the service itself.
QUIET = (
    "alembic=WARNING",
    "oslo.messaging=WARNING",
    "sqlalchemy=WARNING",
    "stevedore=WARNING",
    "urllib3.connectionpool=WARNING",
    "waitress=WARNING",
)


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register oslo.log's options on a private ``conf``.

    Not through ``log.register_options``: that makes them command line options, whose wrong values in a
    file end the process from inside the parser.
    """
    for _section, opts in list_opts():
        conf.register_opts(opts)
    conf.set_default("default_log_levels", list(QUIET))
    # Standard output is for what was asked for: ids, paths, the line that says "ready".
    conf.set_default("use_stderr", True)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation."""
    (entry,) = entry_points(group="oslo.config.opts", name="oslo.log")
    return [("DEFAULT", tuple(opts)) for _section, opts in entry.load()()]


def setup(conf: cfg.ConfigOpts, quiet: bool = False) -> None:
    """Start logging as ``conf`` says; once per process.

    :param quiet: warnings and worse only, unless ``debug`` is set.
    """
    if not (conf.log_file or conf.log_dir or conf.use_journal):
        # oslo.log's own last resort is standard output, which belongs to what a command was asked for.
        conf.set_default("use_stderr", True)
    log.setup(conf, "backupfw")
    if quiet and not conf.debug:
        logging.getLogger().setLevel(logging.WARNING)
