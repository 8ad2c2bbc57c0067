"""Notifications over a real broker, and over one that is away."""

from __future__ import annotations

import queue
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import oslo_messaging
import pytest
from oslo_config import cfg

from backupfw.conf import default, messaging
from backupfw.dispatch import notifications as sender
from backupfw.dispatch.notifications import Notifications
from backupfw.dispatch.transport import library_conf
from backupfw.errors import ConfigError
from tests.servers.rabbitmq import RabbitMQ

PATIENCE = 60.0


def make_conf(folder: Path, lines: str) -> cfg.ConfigOpts:
    file = folder / "backupfw.conf"
    file.write_text(lines)
    conf = cfg.ConfigOpts()
    for group in (default, messaging):
        group.register_opts(conf)
    conf(args=[], project="backupfw", default_config_files=[str(file)], default_config_dirs=[])
    return conf


class Endpoint:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: queue.Queue[tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = queue.Queue()

    def info(self, context: Any, publisher: str, event: str, payload: Any, metadata: Any) -> None:
        self.heard.put((publisher, event, payload, context))


@contextmanager
def listening(conf: cfg.ConfigOpts) -> Iterator[Endpoint]:
    endpoint = Endpoint()
    transport = oslo_messaging.get_notification_transport(library_conf(conf), url=conf.transport_url)
    listener = oslo_messaging.get_notification_listener(
        transport, [oslo_messaging.Target(topic="backups")], [endpoint], executor="threading"
    )
    listener.start()
    try:
        yield endpoint
    finally:
        listener.stop()
        listener.wait()
        transport.cleanup()


@pytest.mark.server
def test_an_event_arrives(broker: RabbitMQ, tmp_path: Path) -> None:
    conf = make_conf(
        tmp_path,
        f"[DEFAULT]\ntransport_url = {broker.url}\nhost = here\n"
        "[oslo_messaging_notifications]\ndriver = messagingv2\ntopics = backups\n",
    )
    with listening(conf) as endpoint, closing(Notifications(conf)) as notifications:
        notifications.start(
            lambda send: send("backup.create.start", {"backup_id": "b"}, {"request_id": "req-1"})
        )
        publisher, event, payload, context = endpoint.heard.get(timeout=PATIENCE)
    assert (publisher, event, payload) == ("backup.here", "backup.create.start", {"backup_id": "b"})
    assert context["request_id"] == "req-1"


def test_a_bus_that_is_away_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "MOST_WAITING", 10)
    monkeypatch.setattr(sender, "LAST_SECONDS", 0.1)
    conf = make_conf(
        tmp_path,
        "[DEFAULT]\ntransport_url = rabbit://nobody:x@127.0.0.1:1//\n"
        "[oslo_messaging_notifications]\ndriver = messagingv2\n",
    )
    with closing(Notifications(conf)) as notifications:
        notifications.start(lambda send: send("backup.create.start", {}, {}))
        # Many more than wait at most: it returns at once, each time.
        for number in range(1000):
            notifications.send("backup.createprogress", {"number": number}, {})
            notifications.nudge()


@pytest.mark.parametrize("driver", ["log", "noop", "test"])
def test_drivers_without_a_bus(tmp_path: Path, driver: str) -> None:
    conf = make_conf(tmp_path, f"[oslo_messaging_notifications]\ndriver = {driver}\n")
    with closing(Notifications(conf)) as notifications:
        notifications.send("backup.create.start", {"backup_id": "b"}, {})
        notifications.start(bool)
    if driver == "test":
        from oslo_messaging.notify import _impl_test

        (_context, message, priority, _retry) = _impl_test.NOTIFICATIONS.pop()
        assert (message["event_type"], message["payload"]) == ("backup.create.start", {"backup_id": "b"})
        assert priority == "INFO"


def test_a_wrong_url_says_so_without_its_password(tmp_path: Path) -> None:
    conf = make_conf(
        tmp_path,
        "[oslo_messaging_notifications]\ndriver = messagingv2\ntransport_url = nonsense://u:secret@h/\n",
    )
    with pytest.raises(ConfigError, match="transport_url") as caught:
        Notifications(conf)
    assert "secret" not in str(caught.value)
