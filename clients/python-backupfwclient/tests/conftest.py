"""The ``openstack`` command in this process, against the real API without a worker."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from backupfwclient import service
from openstackclient.shell import OpenStackShell
from packaging.version import Version

from tests.functional.cloud import Cloud


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit status and what it wrote."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What ``-f json`` printed."""
        return json.loads(self.out)


Run = Callable[..., Outcome]
#: Older ones speak version 2 by python-cinderclient, which has given it up.
VERSIONS = ["2", "3"] if Version(version("python-openstackclient")) >= Version("10.5") else ["3"]


@pytest.fixture(scope="session")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once."""
    return tmp_path_factory.mktemp("templates")


@pytest.fixture
def cloud(tmp_path: Path, templates: Path) -> Iterator[Cloud]:
    """An empty installation, in which the tests end the tasks."""
    made = Cloud(tmp_path, templates)
    yield made
    made.close()


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  (the library's name)
        """Write nothing between what a command writes."""


@pytest.fixture
def address(cloud: Cloud) -> Iterator[str]:
    """Where the installation's API is served."""
    with make_server("127.0.0.1", 0, cloud.app.app, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(params=VERSIONS)
def run(
    request: pytest.FixtureRequest,
    address: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Type a command without Keystone, with each version of the API."""
    # No settings of whoever runs the tests, and no pauses.
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(service, "PAUSE", 0.01)
    words = ("--os-auth-type", "none", "--os-endpoint", f"{address}/v{request.param}/demo")
    words += ("--os-volume-api-version", request.param)

    def runner(*typed: str) -> Outcome:
        capsys.readouterr()
        handlers = logging.root.handlers[:]
        try:
            status = OpenStackShell().run([*words, *typed])
        except SystemExit as error:
            status = int(error.code or 0)
        finally:
            # The shell adds one that writes to this command's standard error.
            logging.root.handlers[:] = handlers
        text = capsys.readouterr()
        return Outcome(status, text.out, text.err)

    return runner
