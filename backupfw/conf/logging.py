"""Logging: oslo.log's options, in ``[DEFAULT]``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

from oslo_config import cfg
from oslo_log import log

from backupfw.context import current_caller
from backupfw.plugins import entry_points

#: A log line; ``request`` is the id of the request that caused it.
FORMAT = "%(asctime)s.%(msecs)03d %(process)d %(levelname)s %(name)s [{request}] %(message)s"

#: Groups of entry points whose packages log as this service does: drivers and providers.
_PLUG_INS = ("backupfw.chunkstore", "backupfw.volume")


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Register oslo.log's options on a private ``conf``.

    Not through ``log.register_options``: that makes command line options of them, and then the parser ends
    the process at a wrong value in a file.
    """
    for _section, opts in list_opts():
        conf.register_opts(opts)
    # Levels of other libraries, see set_levels.
    conf.set_default("default_log_levels", [])
    # Standard output is for results: ids, paths, the line that says "ready".
    conf.set_default("use_stderr", True)
    # One format for all lines; a line without a request has a dash.
    conf.set_default("logging_default_format_string", FORMAT.format(request="-"))
    conf.set_default("logging_context_format_string", FORMAT.format(request="%(request_id)s"))


class RequestFilter(logging.Filter):
    """Adds to every line the caller that its thread works for."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Add the attributes that oslo.log's formatter needs."""
        caller = current_caller()
        if caller is not None and "context" not in record.__dict__:
            record.context = caller
        return True


@cache
def list_opts() -> Sequence[tuple[str, Sequence[cfg.Opt]]]:
    """Return ``(section, options)`` pairs for validation, as :func:`libraries.list_opts`."""
    (entry,) = entry_points("oslo.config.opts").select(name="oslo.log")
    return [("DEFAULT", tuple(opts)) for _section, opts in entry.load()()]


def setup(conf: cfg.ConfigOpts, quiet: bool = False) -> None:
    """Start logging as ``conf`` says; once per process.

    :param quiet: warnings and worse only, unless ``debug`` is set.
    """
    if not (conf.log_file or conf.log_dir or conf.use_journal):
        # oslo.log would use standard output, which is for the results of commands.
        conf.set_default("use_stderr", True)
    log.setup(conf, "backupfw")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RequestFilter())
    set_levels(conf, quiet)


def set_levels(conf: cfg.ConfigOpts, quiet: bool = False) -> None:
    """Set the levels: the service and its plug-ins log as ``debug`` says, other libraries only warnings.

    An SDK may log each of its requests.  To see that, name its logger in ``default_log_levels``, or use a
    file for ``log_config_append``, which then replaces all this.

    :param quiet: warnings and worse only, unless ``debug`` is set.
    """
    if conf.log_config_append:
        return
    logging.getLogger().setLevel(logging.WARNING)
    level = logging.DEBUG if conf.debug else logging.WARNING if quiet else logging.INFO
    asked = {pair.partition("=")[0] for pair in conf.default_log_levels}
    plug_ins = {point.module.partition(".")[0] for group in _PLUG_INS for point in entry_points(group)}
    for name in {"backupfw", *plug_ins} - asked:
        logging.getLogger(name).setLevel(level)
