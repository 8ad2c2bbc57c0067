"""What an outsider does with the template: copy, rename, install beside core, test, configure, back up.

The environment is a new one in which nothing but the new driver is installed; core is reached from it where
the tests' own environment has it, so that nothing has to be fetched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.checkout import ROOT
from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.newcomer import commands, copied, followed, run
from tests.integration.service import running

LENGTH = 24 * MIB + 512 * 7
#: No word of the template or of core.
NAME = "far_attic"
PAGE = ROOT / "docs" / "writing-a-driver.md"

#: Every command of the page, and who runs it here: offline, and in one environment for all tests.
COMMANDS = {
    "export BACKUPFW=$PWD": "ROOT",
    "cp -r drivers/template ~/backupfw-attic": "copied()",
    "cd ~/backupfw-attic": "run(cwd=…)",
    "python rename.py attic": "project",
    "python -m venv .venv": "python",
    ". .venv/bin/activate": "python",
    'pip install -e "${BACKUPFW}[testing]"': "python: core.pth",
    "pip install -e '.[test]'": "python",
    "pytest --guarantees": "test_its_suite_passes_in_its_environment",
    'pytest -k "g1_ or g2_ or g4_"': "a part of the one before",
    "python tests/shelf.py --user tester --password secret": "endpoint",
    "backupfw store list --config-file attic.conf --state-dir state": "test_a_service_uses_it",
    "backupfw store check main --config-file attic.conf --state-dir state": "test_a_service_uses_it",
    "backupfw serve --config-file attic.conf --state-dir state": "test_a_service_uses_it",
    "python -m build": "python: pip wheel, which builds the same wheel",
    # These need a registry.
    "pip install build twine": "",
    "twine check --strict dist/*": "",
    "twine upload dist/*": "",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The renamed copy."""
    folder = copied("template", tmp_path_factory.mktemp("outside") / f"backupfw-{NAME}")
    run(sys.executable, "rename.py", NAME, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def python(project: Path) -> Path:
    """The interpreter of a new environment with the driver as its only distribution."""
    environment = project.parent / "environment"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=project)
    python = environment / "bin" / "python"
    found = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=project).strip()
    core = sysconfig.get_path("purelib")
    Path(found, "core.pth").write_text(f"import site; site.addsitedir({core!r})\n")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    # As it would be published: what the wheel lacks, the installed driver lacks.
    run(*pip, "--python", python, "wheel", *offline, "--wheel-dir", "dist", ".", cwd=project)
    (wheel,) = (project / "dist").iterdir()
    run(*pip, "--python", python, "install", *offline, wheel, cwd=project)
    shutil.rmtree(project / "src")
    return python


@pytest.fixture
def endpoint(project: Path, python: Path) -> Iterator[str]:
    """The template's server, as a process."""
    server = subprocess.Popen(
        [python, project / "tests" / "shelf.py", "--password", "shelf-password"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.kill()
    server.wait()
    server.stdout.close()


def test_nothing_of_the_template_is_left(project: Path, python: Path) -> None:
    left = [path for path in project.rglob("*") if path.is_file() and "emplate" in str(path)]
    assert left == []
    for path in (*project.glob("*.*"), *project.glob("tests/*.py")):
        assert "emplate" not in path.read_text(), path
    assert not (project / "rename.py").exists()
    (site,) = (project.parent / "environment").glob("lib/*/site-packages")
    installed = site / f"backupfw_{NAME}"
    assert (installed / "py.typed").exists()
    for path in installed.glob("*.py"):
        assert "emplate" not in path.read_text(), path


def test_its_suite_passes_in_its_environment(project: Path, python: Path) -> None:
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--guarantees", cwd=project)
    verdicts = re.findall(r"^G(\d+) +(\S+)$", said, re.MULTILINE)
    # Its store has no locks, which the three tests of G20 are about; everything else is shown.
    expected = [*((str(number), "ok") for number in range(1, 20)), ("20", "skipped")]
    # Twice: the driver, and the driver under all layers.
    assert sorted(verdicts) == sorted(expected * 2), said[-3000:]
    assert re.findall(r"(\d+) skipped", said) == ["6"]


def test_the_page_has_no_other_commands() -> None:
    assert set(commands(PAGE.read_text())) == set(COMMANDS)


def test_the_page_can_be_followed_without_an_index(tmp_path: Path) -> None:
    made = followed(PAGE.read_text(), tmp_path, NAME)
    said = run(made / ".venv" / "bin" / "python", "-m", "pytest", "-q", "-k", "g1_ or g2_", cwd=made)
    assert " passed" in said


def test_a_service_uses_it_by_configuration_only(
    python: Path, endpoint: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = {
        "backup": {"segment_size": 4 * MIB, "pack_size": MIB},
        "DEFAULT": {"enabled_stores": "far", "default_store": "far"},
        "store:far": {"driver": NAME, "endpoint": endpoint, "user": "tester", "password": "shelf-password"},
    }
    image = tmp_path / "image.raw"
    write_image(image, LENGTH)
    with running(tmp_path_factory.mktemp("service") / "state", options, python) as service:
        listed = service.command("store", "list").stdout.splitlines()
        (line,) = [line.split() for line in listed if line.startswith(NAME)]
        assert line == [NAME, f"backupfw-{NAME}", "0.1.0", "1", "far", "(default)", "ok"]
        checked = service.command("store", "check", "far").stdout
        assert checked.endswith("store far: ok\n")
        assert "shelf-password" not in checked
        client = service.client()
        volume = client.adopt(image)
        full = client.backup(volume)
        change_image(image, 5)
        incremental = client.backup(volume, incremental=True)
        client.delete_backup(full)
        restored = client.restore(incremental)
        assert same_content(image, client.volume_path(restored), LENGTH)
        assert service.command("backup", "verify", incremental).returncode == 0
        shown = client.expect(200, "GET", f"/backups/{incremental}/export_record")["backup-record"]
        assert shown["backup_service"] == f"backupfw_{NAME}.store.FarAtticStore"
        client.delete_backup(incremental)
        assert "shelf-password" not in service.log_tail(100_000)


@pytest.mark.parametrize("name", ["template", "Mine", "9lives", "my-store", "a b", "", "../x"])
def test_names_that_cannot_be(tmp_path: Path, name: str) -> None:
    folder = copied("template", tmp_path / "copy")
    assert "cannot be a driver's name" in run(sys.executable, "rename.py", name, cwd=folder, expect=1)
    assert (folder / "src" / "backupfw_template").is_dir()


def test_the_template_itself_is_not_renamed() -> None:
    said = run(sys.executable, "rename.py", "mine", cwd=ROOT / "drivers" / "template", expect=1)
    assert "copy the folder first" in said
