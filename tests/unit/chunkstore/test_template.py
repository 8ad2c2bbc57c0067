"""What the template does beyond the conformance suite: in a busy service, and when it is copied."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backupfw_template.link import Answer, Link
from backupfw_template.store import TemplateStore
from shelf import Shelf

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import Unavailable
from backupfw.chunkstore.options import option_values
from tests.architecture.checkout import ROOT


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    shelf = Shelf("tester", "password")
    yield shelf
    shelf.stop()


@pytest.fixture
def store(shelf: Shelf) -> Iterator[TemplateStore]:
    values = {"endpoint": shelf.endpoint, "user": "tester", "password": "password"}
    store = TemplateStore("test", option_values(TemplateStore.options(), **values))
    yield store
    store.close()


@contextmanager
def descriptors_in_use(number: int) -> Iterator[None]:
    """Use so many descriptors, the lowest ones."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 2 * number)), hard))
    used = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while used[-1] < number:
            used.append(os.dup(used[0]))
        yield
    finally:
        for descriptor in used:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_with_many_descriptors(store: TemplateStore) -> None:
    # A service has one for every client, image and connection; select() knows 1024.
    with descriptors_in_use(1100):
        store.ensure_container("box")
        store.put("box", "key", Body.from_bytes(b"x"))
        assert store.get("box", "key") == b"x"


@pytest.mark.parametrize("body", [b"<html>", b"1"])
def test_an_answer_that_makes_no_sense(
    store: TemplateStore, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    monkeypatch.setattr(Link, "call", lambda *_, **__: Answer(200, {}, body))
    for use in (lambda: list(store.list_containers()), lambda: list(store.list("box"))):
        with pytest.raises(Unavailable):
            use()


def test_a_copy_beside_the_other_drivers(tmp_path: Path) -> None:
    (tmp_path / "posix").mkdir()
    for name, status in (("template", 1), ("attic", 0)):
        folder = tmp_path / name
        shutil.copytree(ROOT / "drivers" / "template", folder, ignore=shutil.ignore_patterns("__pycache__"))
        done = subprocess.run([sys.executable, "rename.py", "attic"], cwd=folder, capture_output=True)
        assert done.returncode == status, done
