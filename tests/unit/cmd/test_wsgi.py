"""The API for WSGI servers, in a process of its own: it sets up logging and ends with the process."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

from backupfw.cmd import database
from backupfw.cmd.configure import load

CONFIGURATION = """
[api]
auth_strategy = keystone
[keystone_authtoken]
auth_type = none
endpoint = http://127.0.0.1:1/v3
www_authenticate_uri = http://127.0.0.1:1/v3
"""
ASKS = """
from webob import Request
from backupfw.cmd.wsgi import application
print(*(Request.blank(path).send(application).status_int for path in ("/v3", "/console")))
"""


@pytest.mark.check
@pytest.mark.parametrize(("more", "answers"), [("", "200 404"), ("[console]\nenabled = true\n", "200 303")])
def test_the_console_has_to_be_asked_for(tmp_path: Path, more: str, answers: str) -> None:
    """The embedded profile turns it on on loopback; where this server listens is not known."""
    config = tmp_path / "backupfw.conf"
    config.write_text(CONFIGURATION + more)
    state = str(tmp_path / "state")
    conf = load(argparse.Namespace(config_file=[str(config)], state_dir=state, debug=False)).conf
    assert conf.console.enabled
    database.prepare(conf, make=True, upgrade=True)
    environment = {"BACKUPFW_CONFIG_FILE": str(config), "BACKUPFW_STATE_DIR": state}
    done = subprocess.run([sys.executable, "-c", ASKS], env=environment, capture_output=True, text=True)
    assert done.stdout.split("\n")[-2] == answers, done.stderr
