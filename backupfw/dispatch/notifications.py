"""Sends notifications through oslo.messaging, in a thread of its own.

A caller never waits for the bus.  Starts and ends of operations wait in the database (the event outbox) until
they are sent.  Progress events wait in a bounded queue in memory while the bus is away; when it is full, the
oldest is dropped.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from oslo_log import log

from backupfw.conf.messaging import GROUP
from backupfw.dispatch.transport import library_conf
from backupfw.errors import ConfigError
from backupfw.outages import Outages

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)

#: Events that wait in the queue at most; each is about a kilobyte.
MOST_WAITING = 1000
#: Seconds between two looks for events that another process stored and did not send.
LOOK_SECONDS = 30.0
#: How long the end of a process waits for events that are still to be sent, seconds.
LAST_SECONDS = 5.0


class _Context(dict[str, Any]):
    """The caller of an event; the library sends a context only if it has this method."""

    def redacted_copy(self) -> dict[str, Any]:
        """Return a copy with everything: it holds no secret."""
        return dict(self)


#: Takes an event's name, its payload and its caller.
Send = Callable[[str, Mapping[str, Any], Mapping[str, Any]], None]


class Notifications:
    """Sends events; thread-safe; :meth:`start` and :meth:`close` it.

    :param conf: ``[oslo_messaging_notifications]``, ``host``.
    :raises ConfigError: the URL cannot be used, or the library is not installed.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        own = library_conf(conf)
        import oslo_messaging

        for name in ("driver", "topics", "retry"):
            own.set_override(name, conf[GROUP][name], GROUP)
        try:
            self._transport = oslo_messaging.get_notification_transport(
                own, url=conf[GROUP].transport_url or conf.transport_url
            )
        except (oslo_messaging.InvalidTransportURL, oslo_messaging.DriverLoadFailure, ValueError) as error:
            # The error's text holds the URL with the password.
            raise ConfigError(
                f"section [{GROUP}], option transport_url: this is not the URL of a message bus"
            ) from error
        self._notifier = oslo_messaging.Notifier(self._transport, publisher_id=f"backup.{conf.host}")
        self._events: queue.Queue[tuple[str, Mapping[str, Any], Mapping[str, Any]]]
        self._events = queue.Queue(MOST_WAITING)
        self._nudged = threading.Event()
        self._closing = False
        self._outages = Outages()
        self._deliver: Callable[[Send], object] = bool
        self._thread = threading.Thread(target=self._run, name="notifications", daemon=True)

    def start(self, deliver: Callable[[Send], object]) -> None:
        """Start to send.

        :param deliver: sends the events of the outbox with the function it is given; called every
            :data:`LOOK_SECONDS`, and when nudged.
        """
        self._deliver = deliver
        self._thread.start()

    def nudge(self) -> None:
        """Look into the outbox soon; never blocks and never fails."""
        self._nudged.set()

    def send(self, event: str, payload: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        """Send an event, after those of the outbox, when the bus is there; never blocks and never fails."""
        self._put((event, payload, context))
        self._nudged.set()

    def close(self) -> None:
        """Send the events that wait, for a few seconds at most, and end."""
        self._closing = True
        self._nudged.set()
        if self._thread.is_alive():
            self._thread.join(LAST_SECONDS)

    def _put(self, item: tuple[str, Mapping[str, Any], Mapping[str, Any]]) -> None:
        while True:
            try:
                self._events.put_nowait(item)
            except queue.Full:
                try:
                    dropped = self._events.get_nowait()
                except queue.Empty:
                    continue
                LOG.warning("Too many notifications wait; dropped %s", dropped[0])
            else:
                return

    def _run(self) -> None:
        closing = False
        while not closing:
            self._nudged.wait(LOOK_SECONDS)
            self._nudged.clear()
            closing = self._closing
            with self._outages.guard("Notifications could not be sent"):
                self._deliver(self._send_now)
                with suppress(queue.Empty):
                    while True:
                        self._send_now(*self._events.get_nowait())

    def _send_now(self, event: str, payload: Mapping[str, Any], context: Mapping[str, Any]) -> None:
        self._notifier.info(_Context(context), event, dict(payload))
