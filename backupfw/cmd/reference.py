"""References that are made from the code.

These are the diagrams of states (``backupfw lifecycle``), the API's descriptions (``python -m
backupfw.cmd.reference docs/openapi``), plug-ins' options for ``oslo-config-generator``, and policies for
the tools of oslo.policy.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from backupfw.cmd import base

if TYPE_CHECKING:
    from oslo_config import cfg
    from oslo_policy import policy


class Lifecycle(base.Command):
    """Print the states of backups, volumes and snapshots (Mermaid)."""

    def take_action(self, parsed_args: argparse.Namespace) -> None:  # noqa: ARG002
        """Print the diagrams, which are drawn from the tables that the code runs on."""
        from backupfw.manager.lineage import lifecycle

        self.app.stdout.write(lifecycle.mermaid())


def openapi() -> Mapping[str, str]:
    """Return the newest description of each major version of the API, by the name of its file."""
    from backupfw.api import openapi, versions
    from backupfw.api.controllers.root import ROUTES

    return {
        f"{prefix}.json": json.dumps(
            openapi.describe(ROUTES, prefix, served.highest, "http://127.0.0.1:8776"), indent=1
        )
        + "\n"
        for prefix, served in versions.SERVED.items()
    }


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return a back end's section for each volume provider, a store's for each driver, and the key stores'.

    The entry point ``backupfw.plugins`` of ``oslo.config.opts``.
    """
    from backupfw.chunkstore.layers.options import layer_options
    from backupfw.chunkstore.loader import installed_drivers, load_driver
    from backupfw.conf import keys
    from backupfw.conf.stores import COMMON
    from backupfw.conf.volumes import common, group_of
    from backupfw.keys.loader import KEY_STORES
    from backupfw.volume.loader import PROVIDERS

    listed: list[tuple[str, Sequence[cfg.Opt]]] = []
    for name in PROVIDERS.names():
        listed.append((group_of(name), (*common(name), *PROVIDERS.load(name).options())))
    for info in installed_drivers():
        if info.problem is None:
            driver = load_driver(info.name)
            own = tuple(driver.options())
            # A store without options (in memory) needs no sample section.
            if own:
                listed.append((f"store:my-{info.name}", (*COMMON, *own, *layer_options(driver))))
    own = tuple(opt for name in KEY_STORES.names() for opt in KEY_STORES.load(name).options())
    listed.append((keys.GROUP, (keys.DRIVER, *own)))
    return listed


def get_enforcer() -> policy.Enforcer:
    """Return an enforcer with our rules, and the files of ``--config-file`` or of the usual place.

    The entry point of ``oslo.policy.enforcer``.  Its tools parse their command line into oslo.config's global
    object before, and read it afterwards.
    """
    from oslo_config import cfg
    from oslo_policy import policy

    from backupfw.api import enforcer
    from backupfw.conf.load import SYSTEM_CONFIG

    usual = [SYSTEM_CONFIG] if os.path.isfile(SYSTEM_CONFIG) else []
    cfg.CONF(sys.argv[1:], project="backupfw", default_config_files=usual, default_config_dirs=[])
    return enforcer.register(policy.Enforcer(cfg.CONF))


def main(folder: Path) -> None:
    """Write the descriptions of the API into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in openapi().items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
