"""Servers and accounts that the modules share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.servers.gcs import GcsServer, emulator_missing, fake_gcs, fake_gcs_missing, gcs_emulator
from tests.servers.gcs_gate import Account, Gate, gcs_gate

#: What may be in front of the gate: name -> (what is missing, how to run it).
SERVERS: dict[str, tuple[Callable[[], str | None], Callable[[Path], AbstractContextManager[GcsServer]]]] = {
    "fake": (fake_gcs_missing, fake_gcs),
    "emulator": (emulator_missing, gcs_emulator),
}


@pytest.fixture(scope="session")
def account() -> Account:
    """A service account that may do everything."""
    return Account("backup")


@pytest.fixture(scope="session")
def reader() -> Account:
    """One that may only read."""
    return Account("reader", frozenset(("POST", "DELETE", "PUT")))


def _server(name: str, directory: Path) -> Iterator[GcsServer]:
    missing, run = SERVERS[name]
    if problem := missing():
        pytest.skip(problem)
    with run(directory) as server:
        yield server


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """fake-gcs-server."""
    yield from _server("fake", tmp_path_factory.mktemp("fake"))


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    """gcp-storage-emulator."""
    yield from _server("emulator", tmp_path_factory.mktemp("emulator"))


def _gate(server: GcsServer, account: Account, reader: Account) -> Iterator[Gate]:
    with gcs_gate(server.port) as gate:
        gate.admit(account)
        gate.admit(reader)
        yield gate


@pytest.fixture
def gate(fake: GcsServer, account: Account, reader: Account) -> Iterator[Gate]:
    """A gate in front of fake-gcs-server, with no faults and no tokens."""
    yield from _gate(fake, account, reader)


@pytest.fixture
def emulator_gate(emulator: GcsServer, account: Account, reader: Account) -> Iterator[Gate]:
    """A gate in front of gcp-storage-emulator."""
    yield from _gate(emulator, account, reader)
