"""Alerts reach a real HTTP server and a small mail server, and a broken one holds up nothing."""

from __future__ import annotations

import hashlib
import hmac
import json
import socketserver
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from sqlalchemy import select

from backupfw.cmd import service
from backupfw.conf import alerts as options
from backupfw.db.models import Base, OutboxEvent
from backupfw.db.session import Database
from backupfw.dispatch import alerts as module
from backupfw.dispatch.alerts import Alerts, AlertsNotSent, Mail, Webhook
from backupfw.errors import ConfigError
from backupfw.manager.queue import outbox
from tests.waiting import PATIENCE, wait_until

ALERT = {
    "id": 7,
    "event": "store.down",
    "at": "2030-01-01T00:00:00Z",
    "text": "Down … for long.",
    "store": "main",
}


class Post(BaseHTTPRequestHandler):
    """Keeps what was posted; answers as its server says."""

    server: Hooks

    def do_POST(self) -> None:
        self.server.pause.wait(PATIENCE)
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, dict(self.headers), body))
        self.send_response(self.server.status)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write nothing."""


class Hooks(HTTPServer):
    """A web server that gets alerts."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Post)
        self.status = 200
        self.posted: list[tuple[str, dict[str, str], bytes]] = []
        self.pause = threading.Event()
        self.pause.set()
        self.url = f"http://127.0.0.1:{self.server_port}/hook/s3cret"


class Session(socketserver.StreamRequestHandler):
    """One connection of a mail client."""

    server: PostOffice

    def handle(self) -> None:
        self.say("220 here")
        for line in self.rfile:
            word = line.split()[0].upper()
            self.server.said.append(line.strip())
            if word == b"DATA":
                self.say("354 go on")
                self.server.mails.append(b"".join(iter(self.rfile.readline, b".\r\n")))
            self.say("451 no" if word == self.server.refuses else "221 bye" if word == b"QUIT" else "250 ok")

    def say(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


class PostOffice(socketserver.TCPServer):
    """A mail server that keeps what it takes."""

    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.said: list[bytes] = []
        self.mails: list[bytes] = []
        self.refuses = b""


@contextmanager
def serving(server: socketserver.TCPServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def hooks() -> Iterator[Hooks]:
    server = Hooks()
    with serving(server):
        yield server


@pytest.fixture
def office() -> Iterator[PostOffice]:
    server = PostOffice()
    with serving(server):
        yield server


def configured(**values: Any) -> cfg.ConfigOpts:
    conf = cfg.ConfigOpts()
    options.register_opts(conf)
    conf.register_opt(cfg.StrOpt("host", default="node1"))
    conf(args=[], default_config_files=[], default_config_dirs=[])
    for name, value in values.items():
        conf.set_override(name, value, "alerts")
    return conf


def mailing(office: PostOffice, **values: Any) -> cfg.ConfigOpts:
    place = {"smtp_host": "127.0.0.1", "smtp_port": office.server_address[1]}
    return configured(mail_to=["ops@x.org", "me@x.org"], mail_from="b@x.org", **place, **values)


def test_a_webhook_gets_json_with_a_signature(hooks: Hooks) -> None:
    Webhook(hooks.url, "key").send([ALERT, ALERT])
    ((path, headers, body),) = hooks.posted
    assert path == "/hook/s3cret"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body) == {"alerts": [ALERT, ALERT]}
    expected = hmac.new(b"key", body, hashlib.sha256).hexdigest()
    assert headers["X-Backupfw-Signature"] == f"sha256={expected}"
    Webhook(hooks.url).send([ALERT])
    assert "X-Backupfw-Signature" not in hooks.posted[-1][1]


@pytest.mark.parametrize("status", [301, 307, 404, 500])
def test_what_is_no_success_is_a_failure_and_no_redirect_is_followed(hooks: Hooks, status: int) -> None:
    hooks.status = status
    with pytest.raises(AlertsNotSent, match=f"answered {status}") as caught:
        Webhook(hooks.url).send([ALERT])
    assert len(hooks.posted) == 1
    assert "s3cret" not in repr(caught.getrepr())


def test_a_webhook_that_does_not_answer(hooks: Hooks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.1)
    hooks.pause.clear()
    with pytest.raises(AlertsNotSent, match="does not answer: TimeoutError"):
        Webhook(hooks.url).send([ALERT])
    hooks.pause.set()
    with pytest.raises(AlertsNotSent) as caught:
        Webhook("http://127.0.0.1:1/s3cret").send([ALERT])
    assert caught.value.__suppress_context__
    assert "s3cret" not in str(caught.value)


def test_one_mail_for_all_that_was_gathered(office: PostOffice) -> None:
    conf = mailing(office)
    Mail(conf.alerts, "node1").send([ALERT] * 250)
    (mail,) = (message_from_bytes(raw, policy=policy.default) for raw in office.mails)
    assert (mail["From"], mail["To"]) == ("b@x.org", "ops@x.org, me@x.org")
    assert mail["Subject"] == "backupfw on node1: 250 alerts"
    text = mail.get_content().replace("\r\n", "\n")
    assert text.startswith("2030-01-01T00:00:00Z  store.down\n    Down … for long.\n\n")
    assert text.count("Down … for long.") == module.MOST_AT_ONCE
    assert text.endswith("… and 150 more.\n")
    Mail(conf.alerts, "node1").send([ALERT])
    assert b"Subject: backupfw on node1: store.down" in office.mails[-1]


@pytest.mark.parametrize("word", [b"MAIL", b"DATA"])
def test_a_mail_server_that_refuses(office: PostOffice, word: bytes) -> None:
    office.refuses = word
    with pytest.raises(AlertsNotSent, match="did not take the mail"):
        Mail(mailing(office).alerts, "node1").send([ALERT])


def test_no_password_goes_over_a_connection_that_is_not_encrypted(office: PostOffice) -> None:
    """A server that does not offer encryption gets neither the password nor the mail."""
    conf = mailing(office, smtp_security="starttls", smtp_user="me", smtp_password="s3cret")
    with pytest.raises(AlertsNotSent):
        Mail(conf.alerts, "node1").send([ALERT])
    assert office.mails == []
    assert not [line for line in office.said if b"AUTH" in line or b"MAIL" in line]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"mail_to": ["a@x.org"]}, "mail_from"),
        ({"smtp_user": "me"}, "smtp_password"),
        ({"smtp_user": "me", "smtp_password": "s3cret"}, "smtp_security"),
        ({"webhook_secret": "s3cret"}, "webhook_url"),
        # Python's client could not send to them, and would not say why.
        ({"webhook_url": "https://me:s3cret@x.org/hook"}, "webhook_url"),
        ({"webhook_url": "https://x.org/s3cret here"}, "webhook_url"),
        ({"webhook_url": "https://x.org:99999/s3cret"}, "webhook_url"),
    ],
)
def test_options_that_do_not_go_together(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=f"{named}.*") as caught:
        options.check(configured(**values))
    assert "s3cret" not in str(caught.value)
    options.check(configured())
    for url in ("https://x.org", "http://[::1]:8080/hook?token=s3cret&x=a%20b@c"):
        options.check(configured(webhook_url=url))


def test_a_process_sends_what_is_stored(
    hooks: Hooks, office: PostOffice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what was stored before it began, and by one way while the other is down."""
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 0)
    conf = mailing(office, webhook_url=hooks.url)
    conf.register_opt(cfg.MultiStrOpt("driver", default=[]), "oslo_messaging_notifications")
    hooks.status = 503
    with closing(Database(f"sqlite:///{tmp_path}/db")) as db:
        Base.metadata.create_all(db.engine)
        with service.sending_events(conf, db) as box:
            service.tell_of_store(box, "node1", "main", 300.4, False)
            wait_until("a mail", lambda: office.mails)
            wait_until("two posts", lambda: len(hooks.posted) > 1)
        hooks.posted.clear()
        hooks.status = 204
        with service.sending_events(conf, db) as box:
            service.tell_of_store(box, "node1", "main", 90, True)
            wait_until(
                "both to be told",
                lambda: len(hooks.posted) == 2 or b"store.up" in b"".join(each[2] for each in hooks.posted),
            )
        told = [one["text"] for _path, _headers, body in hooks.posted for one in json.loads(body)["alerts"]]
        assert told == [
            "The store main has not answered for 5 minutes, says the worker on node1.",
            "The store main answers again, after 90 seconds, says the worker on node1.",
        ]


def test_a_command_adds_what_others_send(tmp_path: Path) -> None:
    conf = configured(webhook_url="https://x.org/", mail_to=["a@x.org"], mail_from="b@x.org")
    conf.register_opt(cfg.MultiStrOpt("driver", default=[]), "oslo_messaging_notifications")
    with closing(Database(f"sqlite:///{tmp_path}/db")) as db:
        Base.metadata.create_all(db.engine)
        outbox.keep(db, conf)
        outbox.Outbox(db).alert("object.damaged", "Damaged.")
        with db.read() as session:
            assert sorted(session.scalars(select(OutboxEvent.way)), key=str) == ["mail", "webhook"]


@pytest.mark.parametrize("char", ["\n", "\r\n.\r\nQUIT\r\n", "\ud800", "\0", "\x1b[2J", "\u2028", "\u202e"])
def test_what_others_said_is_one_line_and_keeps_no_alert_from_being_sent(
    office: PostOffice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, char: str
) -> None:
    """A store's error may hold anything, and much of it."""
    monkeypatch.setattr(outbox, "GATHER_SECONDS", 0)
    with closing(Database(f"sqlite:///{tmp_path}/db")) as db:
        Base.metadata.create_all(db.engine)
        box = outbox.Outbox(db, ways=("mail",))
        box.alert("store.down", f"It said: {char}2030-01-01  store.up" + "é" * 100_000)
        box.deliver_alerts("mail", Mail(mailing(office).alerts, "node1").send)
    (mail,) = (message_from_bytes(raw, policy=policy.default) for raw in office.mails)
    head, told, *rest = mail.get_content().splitlines()
    assert head.endswith("  store.down")
    assert told.startswith("    It said: ")
    assert told.endswith("é")
    assert len(told) < 1100
    assert rest == []


def test_nothing_runs_where_nothing_is_configured() -> None:
    with closing(Alerts(configured())) as alerts:
        before = threading.active_count()
        alerts.start(lambda *_: None)
        assert (alerts.ways, threading.active_count()) == ((), before)
