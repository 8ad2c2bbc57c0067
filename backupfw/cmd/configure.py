"""The options every command takes, and the configuration they lead to."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oslo_config import cfg

    from backupfw.conf import load as conf_load


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that every command takes."""
    from backupfw.conf.load import SYSTEM_CONFIG

    common = parser.add_argument_group("common options")
    common.add_argument(
        "--state-dir",
        metavar="DIR",
        help="state directory of an embedded instance; its backupfw.conf is read if there is one",
    )
    common.add_argument(
        "--config-file",
        metavar="FILE",
        action="append",
        default=[],
        help=f"configuration file, any number of times; later ones win (without both options:"
        f" {SYSTEM_CONFIG} if it exists, else an embedded instance in its usual place; of a state"
        " directory: those that 'backupfw serve' was started with)",
    )
    common.add_argument("--debug", action="store_true", help="log more, and show where an error came from")


def plug_ins() -> conf_load.PlugIns:
    """Return where options of installed drivers and providers come from."""
    from backupfw.chunkstore.layers.options import layer_options
    from backupfw.chunkstore.loader import load_driver
    from backupfw.conf import load as conf_load
    from backupfw.keys.loader import load_key_store
    from backupfw.volume.loader import load_provider

    return conf_load.PlugIns(
        store_driver=load_driver,
        layer_options=layer_options,
        volume_driver=load_provider,
        key_store=load_key_store,
    )


def load(
    args: argparse.Namespace,
    overrides: Sequence[tuple[str, str, object]] = (),
    remembered: bool = True,
) -> conf_load.Loaded:
    """Load the configuration that a command's options ask for.

    :param overrides: ``(section, option, value)`` from the command's own options.
    :param remembered: whether the files count that the state directory is served with.
    :raises ConfigError: something is wrong with it.
    """
    from backupfw.conf import load as conf_load

    if args.debug:
        overrides = [*overrides, ("DEFAULT", "debug", True)]
    return conf_load.load(
        plug_ins(),
        state_dir=args.state_dir,
        config_files=args.config_file,
        remembered=remembered,
        overrides=overrides,
    )


def load_conf(args: argparse.Namespace) -> cfg.ConfigOpts:
    """Like :func:`load`, for commands that only need the values; sets logging up as well.

    A command's log goes to standard error and holds warnings only, unless the file or ``--debug`` says
    otherwise: what a user wants to know is the command's own output.
    """
    from backupfw.conf import logging

    loaded = load(args)
    logging.setup(loaded.conf, quiet=True)
    return loaded.conf
