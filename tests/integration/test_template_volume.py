"""What a vendor does with the template of volume providers, from the copy to a service that uses it."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.checkout import ROOT
from tests.integration.content import MIB
from tests.integration.newcomer import OFFLINE, commands, copied, followed, run
from tests.integration.service import running

#: No word of the template or of core.
NAME = "far_attic"
PAGE = (ROOT / "docs" / "writing-a-volume-driver.md").read_text()
#: Each command of the page after its first part, and who runs it here.
COMMANDS = {
    'pytest -k "v1_ or v2_ or v11_"': "a part of the suite",
    "python tests/rack.py --key secret": "endpoint",
    'pip install "${BACKUPFW}/drivers/posix"': "test_a_service_uses_it",
    "backupfw volume check main --config-file attic.conf --state-dir state": "test_a_service_uses_it",
    "backupfw serve --config-file attic.conf --state-dir state": "test_a_service_uses_it",
    "backupfw volume adopt --backend main DISK --config-file attic.conf --state-dir state": "the same",
    # These need an index.
    "pip install build twine": "",
    "python -m build": "",
    "twine check --strict dist/*": "",
    "twine upload dist/*": "",
}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The new provider, made as the page says, with an environment in which it is installed."""
    return followed(PAGE, tmp_path_factory.mktemp("vendor"), NAME)


@pytest.fixture(scope="module")
def python(project: Path) -> Path:
    return project / ".venv" / "bin" / "python"


@pytest.fixture
def endpoint(project: Path, python: Path) -> Iterator[str]:
    """The template's array, as a process."""
    command = [python, project / "tests" / "rack.py", "--key", "rack-secret"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.kill()


def test_the_page_has_no_other_commands() -> None:
    first = commands(PAGE.partition("\n## 2. ")[0])
    assert commands(PAGE) == [*first, *COMMANDS]


def test_nothing_of_the_template_is_left(project: Path) -> None:
    texts = [path for path in project.rglob("*") if path.suffix in (".py", ".toml", ".md")]
    texts = [path for path in texts if ".venv" not in path.parts]
    assert len(texts) > 8
    for path in texts:
        assert "emplate" not in f"{path.relative_to(project)} {path.read_text()}", path
    assert not (project / "rename.py").exists()


def test_its_suite_passes_in_its_environment(project: Path, python: Path) -> None:
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--guarantees", cwd=project)
    verdicts = re.findall(r"^V(\d+) +(.+)$", said, re.MULTILINE)
    assert verdicts == [(str(number), "ok") for number in range(1, 21)], said[-3000:]
    assert "skipped" not in said
    assert "guarantees of TestFarAtticProvider" in said


class Array:
    """The array, as the machine that uses its disks."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def call(self, method: str, path: str, body: bytes | None = None) -> bytes:
        headers = {"Authorization": "Bearer rack-secret"}
        request = urllib.request.Request(f"{self._endpoint}/{path}", body, headers, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())

    def write(self, disk: str, offset: int, data: bytes) -> None:
        latest = json.loads(self.call("PUT", f"{disk}/writer?attempt=0"))
        self.call("PUT", f"{disk}/bytes?offset={offset}&pass={latest}", data)


def test_a_service_uses_it_by_configuration_only(
    project: Path, python: Path, endpoint: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = project.parents[1] / "checkout" / "drivers" / "posix"
    run(python, "-m", "pip", "install", store, cwd=project, **OFFLINE)
    options = {
        "backup": {"segment_size": 4 * MIB, "pack_size": MIB, "verify_unchanged": 0},
        "volumes": {"enabled": "local, far"},
        "volumes:far": {"driver": NAME, "endpoint": endpoint, "key": "rack-secret"},
    }
    array, length = Array(endpoint), 24 * MIB + 512 * 7
    array.call("PUT", f"disk-1?length={length}")
    array.write("disk-1", 5 * MIB, b"first" * 1000)
    with running(tmp_path_factory.mktemp("service") / "state", options, python) as service:
        checked = service.command("volume", "check", "far").stdout
        assert checked.endswith("volume back end far: ok\n")
        assert "skipped" not in checked
        volume = service.command("volume", "adopt", "--backend", "far", "disk-1").stdout.strip()
        client = service.client()
        full = client.backup(volume)
        array.write("disk-1", 9 * MIB, b"second" * 1000)
        was = array.call("GET", f"disk-1/bytes?offset=0&length={length}")
        incremental = client.backup(volume, incremental=True)
        shown = json.loads(service.command("backup", "show", incremental, "--format", "json").stdout)
        assert shown["comparison"] == "changed blocks by token"
        # One grain of the array is read for what was written.
        assert 0 < shown["read_bytes"] <= 64 << 10
        client.delete_backup(full)
        array.write("disk-1", 0, b"third" * 100_000)
        client.restore(incremental, volume)
        assert array.call("GET", f"disk-1/bytes?offset=0&length={length}") == was
        client.delete_backup(incremental)
        assert service.command("volume", "delete", volume).returncode == 0
        assert "rack-secret" not in f"{service.log_tail(100_000)} {checked} {shown}"
    # The disk stays, and nothing else.
    assert json.loads(array.call("GET", "")) == ["disk-1"]


@pytest.mark.parametrize("name", ["template", "Mine", "9lives", "my-array", "a b", "", "../x"])
def test_names_that_cannot_be(tmp_path: Path, python: Path, name: str) -> None:
    folder = copied("template-volume", tmp_path / "copy")
    assert "cannot be a provider's name" in run(python, "rename.py", name, cwd=folder, expect=1)
    assert (folder / "src" / "backupfw_template_volume").is_dir()


def test_the_template_itself_is_not_renamed(python: Path) -> None:
    said = run(python, "rename.py", "mine", cwd=ROOT / "drivers" / "template-volume", expect=1)
    assert "copy the folder first" in said
