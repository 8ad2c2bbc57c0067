"""Dispatch between processes: wake-ups as RPC casts of oslo.messaging.

A wake-up is a fanout cast without arguments to all workers; each then looks into the database for its tasks.
No caller waits for the broker: one thread sends a message when callers have set an event (one message for
several calls, if it lags), and another thread subscribes as soon as the broker answers.  If the broker is
down, tasks start later: workers also look into the database from time to time.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from oslo_log import log

from backupfw import crash_points
from backupfw.dispatch.base import InProcessDispatch
from backupfw.dispatch.transport import open_transport

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)

#: The topic of wake-ups, and their version.  A worker accepts its major version, up to its minor version.
TOPIC = "backupfw-worker"
VERSION = "1.0"

#: Seconds before the broker is tried again; doubled after each failure.
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
#: Most seconds that the end of a process waits for the receiving thread.
STOP_SECONDS = 5.0
#: Most seconds that it waits until the last wake-up is sent.
SEND_SECONDS = 1.0


class MessageDispatch(InProcessDispatch):
    """Wake-ups to and from all processes.  Thread-safe; one waiter.  :meth:`close` it.

    :param conf: ``transport_url`` and ``control_exchange``.
    :param listens: whether this process receives wake-ups; the API only sends.
    :raises ConfigError: the URL cannot be used, or the library is not installed.
    """

    def __init__(self, conf: cfg.ConfigOpts, *, listens: bool) -> None:
        super().__init__()
        self._transport = open_transport(conf)
        self._closing = threading.Event()
        # Whether there is a wake-up to send, and whether the sending thread shall look.
        self._unsent = threading.Event()
        self._to_send = threading.Event()
        self._server: Any = None
        self._sender = threading.Thread(target=self._send_all, name="wake-ups", daemon=True)
        self._sender.start()
        self._listener: threading.Thread | None = None
        if listens:
            self._listener = threading.Thread(target=self._listen, name="subscribe", daemon=True)
            self._listener.start()

    def wake(self) -> None:
        """See :meth:`backupfw.dispatch.base.Dispatch.wake`."""
        crash_points.reach("api.committed")
        self.nudge()
        self._unsent.set()
        self._to_send.set()

    def close(self) -> None:
        """See :meth:`backupfw.dispatch.base.Dispatch.close`.

        The last wake-up is sent first, if the broker answers.  Threads that wait for the broker are daemons;
        they are left.
        """
        self._closing.set()
        # The sending thread sends what is left, then sees that it must end.
        self._to_send.set()
        self._sender.join(SEND_SECONDS)
        if self._server is None:
            return
        stopper = threading.Thread(target=self._stop_server, name="unsubscribe", daemon=True)
        stopper.start()
        stopper.join(STOP_SECONDS)

    def _stop_server(self) -> None:
        try:
            self._server.stop()
            self._server.wait()
            self._transport.cleanup()
        except Exception:
            LOG.debug("The subscription ended with an error", exc_info=True)

    def _send_all(self) -> None:
        import oslo_messaging

        target = oslo_messaging.Target(topic=TOPIC, version=VERSION)
        client = oslo_messaging.get_rpc_client(self._transport, target)

        def send() -> None:
            self._to_send.wait()
            self._to_send.clear()
            if not self._unsent.is_set():
                return
            self._unsent.clear()
            try:
                client.prepare(fanout=True, retry=0).cast({}, "wake")
            except BaseException:
                # It is sent when the broker is back.
                self._unsent.set()
                self._to_send.set()
                raise

        self._repeat("Workers could not be woken up by a message", send)

    def _listen(self) -> None:
        import oslo_messaging

        target = oslo_messaging.Target(topic=TOPIC, server=str(uuid.uuid4()), version=VERSION)

        def subscribe() -> None:
            server = oslo_messaging.get_rpc_server(self._transport, target, [_Endpoint(self.nudge)])
            # Waits for the broker.  Later the library reconnects by itself.
            server.start()
            self._server = server
            # A wake-up may have been sent before this subscription.
            self.nudge()

        self._repeat("Wake-ups could not be subscribed to", subscribe, once=True)

    def _repeat(self, failure: str, action: Callable[[], None], once: bool = False) -> None:
        """Repeat an action until the end, or until it succeeds once; pause after failures."""
        pause = FIRST_PAUSE
        while not self._closing.is_set():
            try:
                action()
            except Exception as error:  # noqa: BLE001  (a broker fails in many ways)
                if pause == FIRST_PAUSE:
                    LOG.warning("%s; trying again: %s", failure, error)
                self._closing.wait(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
            else:
                pause = FIRST_PAUSE
                if once:
                    return


class _Endpoint:
    """The messages that a worker receives."""

    def __init__(self, woken: Callable[[], None]) -> None:
        import oslo_messaging

        self.target = oslo_messaging.Target(version=VERSION)
        self._woken = woken

    def wake(self, _context: dict[str, Any]) -> None:
        """Tasks were queued or cancelled."""
        self._woken()
