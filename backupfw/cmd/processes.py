"""``backupfw worker`` as a master and its worker processes (cotyledon).

The master starts the processes again that end by themselves, hands SIGHUP and SIGTERM on to them, and ends
with status 0 when all have stopped, or with 1 when one did not within ``[backup] stop_seconds``: what that
one was doing is taken over when its leases run out.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import cotyledon

if TYPE_CHECKING:
    from cotyledon.types import WorkerId
    from oslo_config import cfg

#: How much longer than its time a process may take to end itself, seconds.
LATE_SECONDS = 2.0


class WorkerService(cotyledon.Service):
    """One worker process."""

    name = "worker"

    def __init__(self, worker_id: WorkerId, conf: cfg.ConfigOpts, reload: Callable[[], None]) -> None:
        super().__init__(worker_id)
        # Ctrl-C reaches the master too, which stops us in an orderly way.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if conf.metrics.port and worker_id:
            # Each process has figures of its own.
            conf.set_override("port", conf.metrics.port + worker_id, "metrics")
        self._conf = conf
        self._reload = reload
        self._stack = ExitStack()

    def run(self) -> None:
        """Start the worker and say so."""
        from backupfw.cmd import service

        self._stack.enter_context(service.running_worker(self._conf))
        print(f"backupfw worker ready on {self._conf.host}", flush=True)

    def reload(self) -> None:
        """Read the configuration again; running tasks go on."""
        self._reload()

    def terminate(self) -> None:
        """End running attempts and give their tasks back."""
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

        The library would wait for them for ever, and report success however they ended.

        :raises SystemExit: with the status of :mod:`backupfw.cmd.processes`.
        """
        processes = self._child_processes
        for process in processes:
            process.terminate()
        # Each of them ends itself when its time is over, unless it is frozen.
        end = time.monotonic() + self._stop_seconds + LATE_SECONDS
        for process in processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        sys.exit(1 if any(process.exitcode for process in processes) else 0)

    def _on_signal_received(self, sig: int) -> None:
        super()._on_signal_received(signal.SIGTERM if sig == signal.SIGINT else sig)


def run(conf: cfg.ConfigOpts, reload: Callable[[], None]) -> None:
    """Run worker processes until a signal comes; ends the process.

    :param reload: what SIGHUP does in each of them.
    """
    master = Master(int(conf.backup.stop_seconds))
    master.add(WorkerService, conf.backup.processes, args=(conf, reload))
    master.run()
