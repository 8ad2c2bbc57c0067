"""Wake-ups over a broker that goes away, comes back, and loses what it had."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from oslo_config import cfg

from backupfw.conf import messaging
from backupfw.dispatch.messages import MessageDispatch
from tests.servers.rabbitmq import RabbitMQ

pytestmark = pytest.mark.server

PATIENCE = 60.0


@pytest.fixture
def conf(broker: RabbitMQ, tmp_path: Path) -> cfg.ConfigOpts:
    file = tmp_path / "backupfw.conf"
    file.write_text(
        f"[DEFAULT]\ntransport_url = {broker.url}\n[oslo_messaging_rabbit]\nkombu_reconnect_delay = 0.2\n"
    )
    conf = cfg.ConfigOpts()
    messaging.register_opts(conf)
    conf(args=[], project="backupfw", default_config_files=[str(file)], default_config_dirs=[])
    return conf


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, conf: cfg.ConfigOpts, *, listens: bool) -> MessageDispatch:
    dispatch = MessageDispatch(conf, listens=listens)
    stack.callback(dispatch.close)
    return dispatch


def test_every_worker_hears(conf: cfg.ConfigOpts, stack: ExitStack) -> None:
    workers = [opened(stack, conf, listens=True) for _ in range(2)]
    api = opened(stack, conf, listens=False)
    for worker in workers:
        assert worker.wait(PATIENCE), "it was not subscribed"
    api.wake()
    for worker in workers:
        assert worker.wait(PATIENCE)


def test_a_broker_that_is_away_holds_nobody_up(
    broker: RabbitMQ, conf: cfg.ConfigOpts, stack: ExitStack
) -> None:
    early = opened(stack, conf, listens=True)
    assert early.wait(PATIENCE)
    api = opened(stack, conf, listens=False)
    broker.stop()
    try:
        start = time.monotonic()
        for _ in range(1000):
            api.wake()
        late = opened(stack, conf, listens=True)
        # Asking costs an event; the broker's absence is somebody else's to wait for.
        assert time.monotonic() - start < PATIENCE / 2
        assert not late.wait(0.1)
    finally:
        broker.start()
    # What was to be said is said when the broker is back: to those that were subscribed, and to others.
    assert late.wait(PATIENCE)

    def heard() -> bool:
        api.wake()
        return early.wait(0.5)

    end = time.monotonic() + PATIENCE
    while not heard():
        assert time.monotonic() < end, "the old subscription never came back"


def test_a_process_ends_while_the_broker_is_away(broker: RabbitMQ, conf: cfg.ConfigOpts) -> None:
    broker.stop()
    try:
        dispatch = MessageDispatch(conf, listens=True)
        dispatch.wake()
        dispatch.close()
    finally:
        broker.start()
