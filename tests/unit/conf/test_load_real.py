"""The configuration with the plug-ins that are installed."""

from __future__ import annotations

import argparse
from pathlib import Path

from backupfw.cmd import configure


def test_the_embedded_profile_fits_the_installed_plug_ins(tmp_path: Path) -> None:
    args = argparse.Namespace(state_dir=str(tmp_path), config_file=[], debug=False)
    conf = configure.load(args).conf
    assert conf["store:main"].path == f"{tmp_path}/store"
    assert conf["volumes:local"].volumes_dir == f"{tmp_path}/volumes"
    assert conf["store:main"].retry_tries >= 1
