"""A random history over HTTP of the embedded service, which is killed, stopped and frozen all the while.

Steps of the long variants: ``BACKUPFW_HISTORY_STEPS`` (10000).
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.files import files_below
from tests.integration.content import MIB
from tests.integration.faults.history import History, Monkey, volume_in
from tests.integration.service import Service

LONG = int(os.environ.get("BACKUPFW_HISTORY_STEPS", "10000"))
OPTIONS = {
    "backup": {
        "segment_size": MIB,
        "pack_size": MIB // 4,
        "lease_seconds": 5,
        "poll_seconds": 1,
        # A task may be unlucky very often.
        "max_attempts": 1000,
        "delete_retry_seconds": 1,
    },
    "volumes": {"snapshot_settle": 0.1},
    "quota": dict.fromkeys(("backups", "backup_gigabytes", "volumes", "gigabytes", "snapshots"), -1),
    "store:main": {"max_requests_per_second": 60},
}


def harms(service: Service, encryption: str) -> dict[str, Callable[[random.Random], None]]:
    """What is done to the service, and to its keys if there are any."""

    def kill(_rng: random.Random) -> None:
        service.kill()
        service.start()

    def stop(_rng: random.Random) -> None:
        assert service.stop() == 0
        service.start()

    def freeze(rng: random.Random) -> None:
        os.kill(service.pid, signal.SIGSTOP)
        # Some longer than a lease.
        time.sleep(rng.uniform(0.1, 8))
        os.kill(service.pid, signal.SIGCONT)

    def rotate(_rng: random.Random) -> None:
        # There is no key before the first backup.
        if json.loads(service.command("keys", "list", "--format", "json").stdout):
            service.command("keys", "rotate", "--project", "demo")

    keys = {} if encryption == "off" else {"rotate": rotate}
    return {"kill": kill, "stop": stop, "freeze": freeze, **keys}


@pytest.mark.parametrize(
    ("steps", "pause", "encryption"),
    [
        pytest.param(60, (0.3, 2), "off", id="60"),
        pytest.param(LONG, (0.5, 7), "off", marks=pytest.mark.soak, id="long"),
        pytest.param(LONG, (0.5, 7), "project", marks=pytest.mark.soak, id="long-encrypted"),
    ],
)
def test_nothing_is_lost(tmp_path: Path, steps: int, pause: tuple[float, float], encryption: str) -> None:
    """The pauses are those between two harms, in seconds."""
    seed = 1 if steps == 60 else random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    options = {**OPTIONS, "store:main": {**OPTIONS["store:main"], "encryption": encryption}}
    service = Service(tmp_path / "state", options).start()
    try:
        monkey = Monkey(harms(service, encryption), random.Random(rng.random()), pause)
        history = History(
            service.client(), "disk", rng, volume_in(service.state / "volumes"), disks=3, check=monkey.check
        )
        number = 0
        while number < steps:
            with monkey.at_work():
                for _ in range(min(250, steps - number)):
                    history.step()
                    number += 1
                    time.sleep(rng.uniform(0, 0.15))
                history.settle()
            history.settle()
            history.check(most=5)
            audit(service, history, monkey)
        history.check()
        history.remove_all()
        audit(service, history, monkey)
        assert files_below(service.state / "store") == []
        print(f"{number} steps: {dict(history.done)}; sent again: {history.api.again}; {dict(monkey.done)}")
    finally:
        service.stop()


def audit(service: Service, history: History, monkey: Monkey) -> None:
    """Database and store say the same, before any sweep."""
    end = time.monotonic() + 120
    while True:
        # Tasks that users do not see may still run.
        done = service.command("audit", check=False)
        if done.returncode == 0:
            return
        told = f"{done.stdout}{done.stderr}\n{service.log_tail()}\n{history.done} {monkey.done}"
        assert time.monotonic() < end, told
        time.sleep(1)
