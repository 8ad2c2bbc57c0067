"""``backupfw worker`` as a master and its worker processes (cotyledon).

The master starts the processes again that end by themselves, hands SIGHUP and SIGTERM on to them, and ends
with status 0 when all have stopped, or with 1 when one did not within ``[backup] stop_seconds``: what that
one was doing is taken over when its leases run out.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import cotyledon

from backupfw.cmd import signals

if TYPE_CHECKING:
    from cotyledon.types import ServiceId, WorkerId
    from oslo_config import cfg

#: How much longer than its time a process may take to end itself, seconds.
LATE_SECONDS = 2.0
#: How long the end of a process waits for its start, which may wait for a server that is away, seconds.
START_SECONDS = 5.0


class WorkerService(cotyledon.Service):
    """One worker process."""

    name = "worker"

    def __init__(self, worker_id: WorkerId, conf: cfg.ConfigOpts, reload: Callable[[], None]) -> None:
        super().__init__(worker_id)
        # Ctrl-C reaches the master too, which stops us in an orderly way.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # The library has just installed its handlers.
        signals.let_through()
        if conf.metrics.port and worker_id:
            # Each process has figures of its own.
            conf.set_override("port", conf.metrics.port + worker_id, "metrics")
        self._conf = conf
        self._reload = reload
        self._stack = ExitStack()
        # Held while the worker starts, and from the moment it ends.
        self._changing = threading.Lock()

    def run(self) -> None:
        """Start the worker and say so."""
        from backupfw.cmd import service

        if not self._changing.acquire(blocking=False):
            return
        try:
            self._stack.enter_context(service.running_worker(self._conf))
        finally:
            self._changing.release()
        print(f"backupfw worker ready on {self._conf.host}", flush=True)

    def reload(self) -> None:
        """Read the configuration again; running tasks go on."""
        self._reload()

    def terminate(self) -> None:
        """End running attempts and give their tasks back; a worker that is just starting, too."""
        self._changing.acquire(timeout=START_SECONDS)
        self._stack.close()


class Master(cotyledon.ServiceManager):
    """The master: an interrupt stops in order, as SIGTERM does; by itself it would end at once.

    :param stop_seconds: how long its processes have to stop.
    """

    def __init__(self, stop_seconds: int) -> None:
        super().__init__(graceful_shutdown_timeout=stop_seconds)
        self._stop_seconds = stop_seconds
        self.register_hooks(on_terminate=self._stop_all)

    def _stop_all(self) -> None:
        """Stop all processes, kill those that are late, and end.

        The library would wait for them without limit, and report success however they ended.

        :raises SystemExit: with the status of :mod:`backupfw.cmd.processes`.
        """
        processes = self._child_processes
        for process in processes:
            process.terminate()
        # Each process ends itself when its time is over, unless it is frozen.
        end = time.monotonic() + self._stop_seconds + LATE_SECONDS
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        sys.exit(1 if any(process.exitcode for process in processes) else 0)

    def _start_worker(self, service_id: ServiceId, worker_id: WorkerId) -> None:
        # The library forks at any time, also while this process receives the signal to stop.
        with signals.held_back():
            super()._start_worker(service_id, worker_id)

    def _on_signal_received(self, sig: int) -> None:
        super()._on_signal_received(signal.SIGTERM if sig == signal.SIGINT else sig)


def run(conf: cfg.ConfigOpts, reload: Callable[[], None]) -> None:
    """Run worker processes until a signal comes; ends the process.

    :param reload: what SIGHUP does in each of them.
    """
    master = Master(int(conf.backup.stop_seconds))
    master.add(WorkerService, conf.backup.processes, args=(conf, reload))
    master.run()
