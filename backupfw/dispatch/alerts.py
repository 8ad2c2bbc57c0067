"""Sends alerts to operators: posts them to a webhook, and mails them.

Each way has a thread of its own, so one that is down holds up nothing else.  What waits, and for how long
alerts are gathered, the event outbox decides.  A way that fails is tried again as long as it does; the log
says so once.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

from oslo_log import log

from backupfw.conf.alerts import ways
from backupfw.outages import Outages

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)

#: An alert as JSON holds it.
Alert = Mapping[str, Any]
#: Sends the alerts of a way: its name, the function that sends some, and how many it takes at most.
Deliver = Callable[[str, Callable[[Sequence[Alert]], object], int], object]

#: Seconds between two looks for alerts that can be sent.
LOOK_SECONDS = 10.0
#: Seconds that a webhook or mail server may take for one answer.
PATIENCE = 10.0
#: How long the end of a process waits for alerts that are being sent, seconds.
LAST_SECONDS = 5.0
#: How many alerts a request to a webhook holds at most; a mail has a line for as many, and counts the others.
MOST_AT_ONCE = 100


class AlertsNotSent(Exception):
    """A webhook or a mail server refused alerts, or did not answer; the text holds no secret."""


@dataclass(frozen=True, slots=True)
class _Way:
    send: Callable[[Sequence[Alert]], object]
    most: int


class Alerts:
    """Sends alerts as ``[alerts]`` says; :meth:`start` and :meth:`close` it.

    :ivar ways: the ways that are configured; none: nothing is sent.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        options = conf.alerts
        self._ways: dict[str, _Way] = {}
        if "webhook" in ways(conf):
            self._ways["webhook"] = _Way(
                Webhook(options.webhook_url, options.webhook_secret).send, MOST_AT_ONCE
            )
        if "mail" in ways(conf):
            # One mail for all that was gathered, however much that is.
            self._ways["mail"] = _Way(Mail(options, conf.host).send, 1_000_000)
        self.ways = tuple(self._ways)
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self, deliver: Deliver) -> None:
        """Start to send.

        :param deliver: called for each way, every :data:`LOOK_SECONDS`.
        """
        for name, way in self._ways.items():
            thread = threading.Thread(
                target=self._run, args=(deliver, name, way), name=f"alerts-{name}", daemon=True
            )
            self._threads.append(thread)
            thread.start()

    def close(self) -> None:
        """End; what waits is sent by another process, or after the next start."""
        self._ending.set()
        for thread in self._threads:
            thread.join(LAST_SECONDS)

    def _run(self, deliver: Deliver, name: str, way: _Way) -> None:
        outages = Outages()
        while not self._ending.wait(LOOK_SECONDS):
            with outages.guard(f"Alerts could not be sent by {name}"):
                deliver(name, way.send, way.most)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: the operator named one address."""


class Webhook:
    """Posts ``{"alerts": […]}`` to an address.

    :param secret: key of the signature; None: none.
    """

    def __init__(self, url: str, secret: str | None = None) -> None:
        self._url = url
        self._secret = secret
        self._opener = urllib.request.build_opener(_NoRedirects)

    def send(self, alerts: Sequence[Alert]) -> None:
        """Post some alerts in one request.

        :raises AlertsNotSent: the answer is not a success, or there is none.
        """
        body = json.dumps({"alerts": list(alerts)}).encode()
        headers = {"Content-Type": "application/json", "User-Agent": "backupfw"}
        if self._secret is not None:
            digest = hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
            headers["X-Backupfw-Signature"] = f"sha256={digest}"
        try:
            # The address is the operator's, http or https.
            request = urllib.request.Request(self._url, body, headers, method="POST")  # noqa: S310
            with self._opener.open(request, timeout=PATIENCE):
                pass
        except HTTPError as error:
            error.close()
            raise AlertsNotSent(f"the webhook answered {error.code}") from None
        except (OSError, HTTPException, ValueError) as error:
            # Their texts may hold the address, and that a secret.
            raise AlertsNotSent(f"the webhook does not answer: {type(error).__name__}") from None


class Mail:
    """Mails alerts: one mail with a line for each.

    :param options: ``[alerts]``.
    :param host: named in the subject.
    """

    def __init__(self, options: Any, host: str) -> None:
        self._options = options
        self._host = host

    def message(self, alerts: Sequence[Alert]) -> EmailMessage:
        """Return the mail."""
        lines = [f"{each['at']}  {each['event']}\n    {each['text']}" for each in alerts[:MOST_AT_ONCE]]
        if len(alerts) > len(lines):
            lines.append(f"… and {len(alerts) - len(lines)} more.")
        mail = EmailMessage()
        mail["From"] = self._options.mail_from
        mail["To"] = ", ".join(self._options.mail_to)
        first = alerts[0]["event"] if len(alerts) == 1 else f"{len(alerts)} alerts"
        mail["Subject"] = f"backupfw on {self._host}: {first}"
        mail.set_content("\n\n".join(lines) + "\n")
        return mail

    def send(self, alerts: Sequence[Alert]) -> None:
        """Send one mail.

        :raises AlertsNotSent: the mail server refused it, or did not answer.
        """
        options = self._options
        place = (options.smtp_host, options.smtp_port)
        try:
            if options.smtp_security == "tls":
                context = ssl.create_default_context()
                server: smtplib.SMTP = smtplib.SMTP_SSL(*place, timeout=PATIENCE, context=context)
            else:
                server = smtplib.SMTP(*place, timeout=PATIENCE)
            with server:
                if options.smtp_security == "starttls":
                    server.starttls(context=ssl.create_default_context())
                if options.smtp_user is not None:
                    server.login(options.smtp_user, options.smtp_password)
                refused = server.send_message(self.message(alerts))
        except (OSError, smtplib.SMTPException) as error:
            raise AlertsNotSent(f"the mail server did not take the mail: {type(error).__name__}") from None
        if refused:
            LOG.warning("The mail server refused %d addresses of [alerts] mail_to", len(refused))
