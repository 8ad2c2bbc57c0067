"""What SIGHUP does in the commands that serve."""

from __future__ import annotations

import argparse
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from oslo_log import log

from backupfw.cmd.configure import load
from backupfw.conf import logging
from backupfw.conf.load import reread
from backupfw.errors import ConfigError

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)


def reloader(
    args: argparse.Namespace, overrides: Sequence[tuple[str, str, object]], conf: cfg.ConfigOpts
) -> Callable[[], None]:
    """Return a function that reads the configuration again.  It never raises; it logs the result.

    It may take a moment and logs: not to be called in a signal's handler, but in a thread.

    :param args, overrides: what ``conf`` was loaded with.
    """
    one_at_a_time = threading.Lock()

    def reload() -> None:
        with one_at_a_time:
            try:
                changed = reread(conf, lambda: load(args, overrides))
                # If 'debug' changed, oslo.log has set the level of all loggers.
                logging.set_levels(conf)
            except ConfigError as error:
                LOG.error("The configuration stays as it was: %s", error)
            except Exception:
                LOG.exception("The configuration could not be read again")
            else:
                LOG.info("Read the configuration again; changed: %s", ", ".join(changed) or "nothing")

    return reload
