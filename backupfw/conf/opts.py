"""Core's options for oslo-config-generator (entry point ``oslo.config.opts``: ``backupfw``)."""

from __future__ import annotations

from collections.abc import Sequence

from oslo_config import cfg

from backupfw.conf import (
    alerts,
    api,
    backup,
    console,
    default,
    libraries,
    messaging,
    metrics,
    placement,
    quiesce,
    volumes,
)


def list_opts() -> list[tuple[str, Sequence[cfg.Opt]]]:
    """Return every group of core; oslo.log lists its own, ``backupfw.cmd.reference`` the plug-ins'."""
    groups = (default, messaging, api, console, backup, metrics, alerts, volumes, placement, quiesce)
    return [libraries.of_database(), *(pair for group in groups for pair in group.list_opts())]
