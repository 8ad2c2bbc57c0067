"""Installs what ``make dist`` built into a clean environment outside the checkout, and runs it there.

    python -m tests.installed [DIST]

It looks at what only an installation can miss: a module or data file that no wheel has, a dependency that is
not declared, an entry point that leads nowhere.  Versions are those of constraints.txt.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import venv
from importlib.metadata import entry_points
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What a site installs with core; the other wheels of the checkout are installed with it.
EXTRAS = "keystone,messaging,mysql,postgresql"
DRIVERS = ("castellan", "cinder", "gcs", "nbd", "posix", "rbd", "s3", "swift")
#: The package of each wheel beside core's, by the wheel's name.
PACKAGES = {
    **{f"backupfw_{driver}": f"backupfw_{driver}" for driver in DRIVERS},
    "python_backupfwclient": "backupfwclient",
}
#: The groups of entry points of drivers, and the commands that list what is installed.
GROUPS = {"backupfw.chunkstore": ("store", "list"), "backupfw.volume": ("volume", "backends")}
#: Seconds that one step may take, on a machine that is busy with other things.
PATIENCE = 600

#: Imports every installed module.  The suite for authors of drivers needs the extra 'testing'; migrations are
#: imported by Alembic only, which check_database() shows.
IMPORT_ALL = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    assert "site-packages" in package.__file__, package.__file__
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.startswith(("backupfw.testing.", "backupfw.db.migrations.")):
            importlib.import_module(module.name)
"""

#: A program of somebody who uses the packages' types.
TYPED = """
from backupfw.chunkstore.base import ChunkStore
from backupfw.keys.base import KeyStore
from backupfw.volume.base import VolumeProvider
from backupfw_castellan.key_store import CastellanKeyStore
from backupfw_cinder.provider import CinderProvider
from backupfw_gcs.store import GcsStore
from backupfw_nbd.exports import NbdProvider
from backupfw_nbd.machines import QemuProvider
from backupfw_posix.store import PosixStore
from backupfw_rbd.provider import RbdProvider
from backupfw_s3.store import S3Store
from backupfw_swift.store import SwiftStore

stores: list[type[ChunkStore]] = [GcsStore, PosixStore, S3Store, SwiftStore]
providers: list[type[VolumeProvider]] = [CinderProvider, NbdProvider, QemuProvider, RbdProvider]
key_stores: list[type[KeyStore]] = [CastellanKeyStore]
"""


#: Serves the console and fetches a page of it, with all its files; the argument is a state directory.
CONSOLE = """
import argparse, re, sys, urllib.request
from backupfw.cmd import database, service
from backupfw.cmd.configure import load
given = argparse.Namespace(config_file=[], state_dir=sys.argv[1], debug=False)
conf = load(given, [("api", "port", 0)]).conf
with database.only_service(conf.state_dir):
    database.prepare(conf, make=True, upgrade=True)
    with service.EmbeddedService(conf, service.console_token(conf)) as running:
        page = urllib.request.urlopen(running.url + "console/login").read().decode()
        files = re.findall(r'(?:href|src)="/(console/static/[^"]+)"', page)
        assert len(files) == 4, page
        for path in files:
            assert urllib.request.urlopen(running.url + path).read(), path
"""


class Installation:
    """A virtual environment with the wheels, and a directory to work in; both outside the checkout.

    :param place: an empty directory.
    :param dist: where the wheels are.
    """

    def __init__(self, place: Path, dist: Path) -> None:
        self.root = place / "environment"
        self.work = place / "work"
        self.work.mkdir()
        venv.create(self.root, with_pip=True)
        wheels = {path.name.partition("-")[0]: path for path in sorted(dist.glob("*.whl"))}
        wanted = {"backupfw", *PACKAGES}
        if set(wheels) != wanted:
            raise SystemExit(f"{dist} holds {sorted(wheels)}, not one wheel each of {sorted(wanted)}")
        self.run(
            *("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
            *("-c", ROOT / "constraints.txt", f"{wheels.pop('backupfw')}[{EXTRAS}]", *wheels.values()),
        )

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of the environment's programs; returns what it printed.

        :raises SystemExit: it failed.
        """
        # Nothing of the checkout's environment leads back to it.
        clean = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "BACKUPFW"))
        }
        done = subprocess.run(
            [self.root / "bin" / program, *arguments],
            cwd=self.work,
            env=clean,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        if done.returncode:
            raise SystemExit(f"{program} {' '.join(map(str, arguments))}: {done.stdout}\n{done.stderr}")
        return done.stdout


def check_modules(installed: Installation) -> None:
    """Every module is there, with what it imports; the drivers are found by their entry points."""
    installed.run("python", "-m", "pip", "check", "--disable-pip-version-check")
    installed.run("python", "-c", IMPORT_ALL, "backupfw", *PACKAGES.values())
    for words, group in (
        (("store", "list"), "backupfw.chunkstore"),
        (("volume", "backends"), "backupfw.volume"),
    ):
        listed = installed.run(
            "backupfw", *words, *("--format", "json", "--state-dir", installed.work / "state")
        )
        found = {each["driver"] for each in json.loads(listed) if each["state"] == "ok"}
        assert found == {point.name for point in entry_points(group=group)}, listed


def check_client(installed: Installation) -> None:
    """The openstack command has the client's commands."""
    for version in ("2", "3"):
        words = ("--os-volume-api-version", version, "volume", "backup", "progress", "--help")
        assert "usage: openstack volume backup progress" in installed.run("openstack", *words)


def check_database(installed: Installation) -> None:
    """The migrations are there."""
    state = installed.work / "migrated"
    installed.run("backupfw", "db", "sync", "--state-dir", state)
    installed.run("backupfw", "db", "check", "--state-dir", state)
    assert (state / "backupfw.sqlite").stat().st_size


def check_samples(installed: Installation) -> None:
    """The samples and units are there, and the samples can be made anew."""
    share = installed.root / "share" / "backupfw"
    for path in sorted((ROOT / "etc").rglob("*")):
        if path.suffix in (".sample", ".service"):
            folder = share / "systemd" if path.suffix == ".service" else share
            assert (folder / path.name).read_bytes() == path.read_bytes(), path
    for name in ("prometheus/backupfw.rules.yml", "grafana/backupfw.json"):
        assert (share / name).read_bytes() == (ROOT / "etc" / name).read_bytes(), name
    page = Path("man", "man1", "backupfw.1")
    assert (installed.root / "share" / page).read_bytes() == (ROOT / "docs" / "man" / page.name).read_bytes()
    config = installed.run(
        "oslo-config-generator",
        *("--namespace", "backupfw", "--namespace", "backupfw.plugins", "--wrap-width", "100"),
    )
    assert "[database]" in config
    policy = installed.run("oslopolicy-sample-generator", "--namespace", "backupfw")
    assert "backup:create" in policy


def check_types(installed: Installation) -> None:
    """A type checker takes the packages' types."""
    program = installed.work / "typed.py"
    program.write_text(TYPED)
    subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-error-summary"),
            *("--config-file=", "--cache-dir", installed.work / "cache"),
            *("--python-executable", installed.root / "bin" / "python", program),
        ],
        cwd=installed.work,
        check=True,
        timeout=PATIENCE,
    )


def check_console(installed: Installation) -> None:
    """The console is served, with its templates and files."""
    installed.run("python", "-c", CONSOLE, installed.work / "console")
    templates = "from importlib.resources import files; print(*(one.name for one in files('backupfw.console')"
    names = installed.run("python", "-c", f"{templates}.joinpath('templates').iterdir()))").split()
    assert set(names) == {path.name for path in (ROOT / "backupfw/console/templates").glob("*.mako")}, names


def check_service(installed: Installation) -> None:
    """``serve``, backups, restores and deletes: the demo, with a small volume."""
    installed.run("python", ROOT / "demo" / "demo.py", "--mib", "24")


def main(arguments: list[str]) -> int:
    """Run all checks; returns the exit status."""
    dist = Path(arguments[0] if arguments else "dist").resolve()
    with tempfile.TemporaryDirectory(prefix="backupfw-installed-") as place:
        installed = Installation(Path(place), dist)
        checks = (check_modules, check_client, check_database, check_samples, check_types, check_console)
        for check in (*checks, check_service):
            check(installed)
            print(f"ok: {(check.__doc__ or '').splitlines()[0]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
