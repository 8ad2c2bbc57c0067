"""Two workers delete relatives at the same moment."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.content import MIB, change_image, same_content, write_image
from tests.integration.faults.world import ON_BOTH, Installation, installation
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.server


@pytest.fixture
def installed(fresh_database: Callable[[], str], broker: RabbitMQ, tmp_path: Path) -> Iterator[Installation]:
    """One whose workers may stand still for a while and keep their tasks."""
    with installation(tmp_path, fresh_database(), broker.url, {"backup": {"lease_seconds": 60}}) as made:
        yield made


@ON_BOTH
def test_a_relative_that_is_deleted_between_plan_and_removal(
    installed: Installation, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in ("w1", "w2"):
        installed.start_worker(name)
    client = installed.client()
    # Not below the state directory: what lies there is the service's own.
    image = tmp_path_factory.mktemp("images") / "image.raw"
    write_image(image, 8 * MIB, 1)
    volume = client.adopt(image)
    chain = [client.backup(volume)]
    for number in range(3):
        change_image(image, number)
        chain.append(client.backup(volume, incremental=True))
    first, second, third, last = chain

    # One worker has planned to ask the first and the third one, and stands still.
    installed.traps.forget_reached()
    installed.traps.set("delete.planned", signal.SIGSTOP)
    client.expect(202, "DELETE", f"/backups/{second}")
    stopped = installed.wait_struck("delete.planned")
    # The other one deletes a relative of it.
    client.expect(202, "DELETE", f"/backups/{first}")
    client.wait_status("backup", first, None)
    stopped.signal(signal.SIGCONT)

    while (status := client.status("backup", second)) is not None:
        assert status == "deleting", installed.log_tail()
    assert same_content(image, installed.path_of(client.restore(last)), 8 * MIB)
    client.delete_backup(third)
    assert same_content(image, installed.path_of(client.restore(last)), 8 * MIB)
    installed.audit()
