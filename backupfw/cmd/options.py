"""Options of installed plug-ins for oslo-config-generator (entry point ``backupfw.plugins``)."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from backupfw.chunkstore.layers.options import layer_options
from backupfw.chunkstore.loader import installed_drivers, load_driver
from backupfw.conf.stores import COMMON
from backupfw.volume.loader import PROVIDERS


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return the options of every installed volume provider, and a store's section for each driver."""
    listed: list[tuple[str, Sequence[cfg.Opt]]] = []
    for name in PROVIDERS.names():
        listed.append(("volumes", tuple(PROVIDERS.load(name).options())))
    for info in installed_drivers():
        if info.problem is None:
            driver = load_driver(info.name)
            own = tuple(driver.options())
            # What keeps nothing needs no section to copy from.
            if own:
                listed.append((f"store:my-{info.name}", (*COMMON, *own, *layer_options(driver))))
    return listed
