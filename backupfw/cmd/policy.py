"""The enforcer of the ``oslopolicy-…`` tools (entry point ``oslo.policy.enforcer``)."""

from __future__ import annotations

import os
import sys

from oslo_config import cfg
from oslo_policy import policy

from backupfw.api import enforcer
from backupfw.conf.load import SYSTEM_CONFIG


def get_enforcer() -> policy.Enforcer:
    """Return an enforcer with our rules, and the files of ``--config-file`` or of the usual place.

    The tools parse their command line into oslo.config's global object before, and read it afterwards.
    """
    usual = [SYSTEM_CONFIG] if os.path.isfile(SYSTEM_CONFIG) else []
    cfg.CONF(sys.argv[1:], project="backupfw", default_config_files=usual, default_config_dirs=[])
    return enforcer.register(policy.Enforcer(cfg.CONF))
