"""Nodes that are lost while the API and workers use both: what was promised holds, and nothing is a 500."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from backupfw.db.models import Base
from tests.integration.faults.load import Load
from tests.integration.faults.world import Installation, installation, wait
from tests.servers.databases import Galera

pytestmark = pytest.mark.server


@pytest.fixture
def installed(balanced_url: str, tmp_path: Path) -> Iterator[Installation]:
    """An installation whose connections go to both nodes."""
    (tmp_path / "both").mkdir()
    with installation(tmp_path / "both", balanced_url, None) as made:
        for name in ("one", "two"):
            made.start_worker(name)
        yield made


def assert_equal_nodes(cluster: Galera, database: str) -> None:
    """Both nodes hold the same rows."""
    names = ", ".join(f"`{made}`.`{name}`" for name in Base.metadata.tables for made in [database])

    def equal() -> bool:
        # One that was slow may be out of the cluster for a while.
        if not all(map(cluster.is_ready, range(2))):
            return False
        sums = [cluster.execute(number, f"CHECKSUM TABLE {names}") for number in range(2)]
        return bool(sums[0] == sums[1])

    # Workers report that they live.
    wait("both nodes to hold the same", equal)


@pytest.mark.parametrize("number", [0, 1])
def test_a_node_is_killed(cluster: Galera, installed: Installation, tmp_path: Path, number: int) -> None:
    with Load(installed, tmp_path) as load:
        load.go_on(1)
        cluster.stop_node(number, signal.SIGKILL)
        load.go_on(2)
        cluster.start_node(number)
        load.go_on(2)
    assert_equal_nodes(cluster, str(make_url(installed.database).database))


def test_a_partition(cluster: Galera, installed: Installation, tmp_path: Path) -> None:
    """The node outside the majority refuses everything; an API that has no other one says so meanwhile."""
    alone_url = make_url(installed.database).set(port=cluster.ports[1])
    (tmp_path / "alone").mkdir()
    with closing(
        Installation(tmp_path / "alone", alone_url.render_as_string(hide_password=False), None)
    ) as alone:
        alone.start_api()
        client, answers, end = alone.client(), [], threading.Event()

        def write_and_read() -> None:
            volume = client.expect(202, "POST", "/volumes", {"volume": {"size": 1}})["volume"]["id"]
            while not end.is_set():
                body = {"metadata": {"n": str(len(answers))}}
                answers.append(client.request("PUT", f"/volumes/{volume}/metadata", body))
                answers.append(client.request("GET", f"/volumes/{volume}"))

        with Load(installed, tmp_path) as load:
            writer = threading.Thread(target=write_and_read)
            writer.start()
            load.go_on(1)
            cluster.isolate(1, True)
            wait("the node to be outside", lambda: not cluster.is_ready(1))
            load.go_on(2)
            wait("the API to say so", lambda: answers[-1][0] == 503, alone.log_tail)
            cluster.isolate(1, False)
            wait("the node to be back", lambda: cluster.is_ready(1))
            load.go_on(2)
            wait("the API to be back", lambda: answers[-1][0] == 200, alone.log_tail)
            end.set()
            writer.join()
        assert {status for status, _ in answers} == {200, 503}, [
            answer for answer in answers if answer[0] not in (200, 503)
        ]
    assert_equal_nodes(cluster, str(make_url(installed.database).database))
