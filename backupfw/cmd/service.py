"""Wires database, managers, worker and API into one process, or a part of them."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self

from oslo_log import log

from backupfw.api.app import Maker, Managers, make_app
from backupfw.api.enforcer import FilePolicy
from backupfw.api.pipeline import WsgiApp
from backupfw.cmd import database, store
from backupfw.cmd.meters import Meters
from backupfw.cmd.monitoring import Health, Listener
from backupfw.cmd.server import ApiServer
from backupfw.conf import quiesce
from backupfw.db.session import Database
from backupfw.dispatch.alerts import Alerts
from backupfw.dispatch.base import Dispatch, InProcessDispatch
from backupfw.manager.actions import ActionManager
from backupfw.manager.messages import MessageManager
from backupfw.manager.outcomes.backups import BackupTasks
from backupfw.manager.outcomes.expiry import Expiry
from backupfw.manager.outcomes.volumes import VolumeTasks
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.policies.runs import Pauses, PolicyRuns
from backupfw.manager.queue.claims import Limits, Reach
from backupfw.manager.queue.outbox import Outbox
from backupfw.manager.queue.services import BACKUP_BINARY, ServiceManager
from backupfw.manager.queue.tasks import Tasks
from backupfw.manager.rules.quota import QuotaManager
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.backups import BackupManager
from backupfw.manager.usecases.keys import KeyManager
from backupfw.manager.usecases.mirrors import Mirrors
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.stores import StoreManager
from backupfw.manager.usecases.transfers import TransferManager
from backupfw.manager.usecases.volumes import VolumeManager
from backupfw.outages import Outages, Turns
from backupfw.worker.backends import Backends, foreign_catalogues
from backupfw.worker.data_keys import DataKeys
from backupfw.worker.handlers import EngineSettings, Tools
from backupfw.worker.holding import Holding
from backupfw.worker.policies import PolicyLoop
from backupfw.worker.stores import Alarm, Stores
from backupfw.worker.worker import Worker, WorkerSettings

if TYPE_CHECKING:
    from oslo_config import cfg

LOG = log.getLogger(__name__)

#: How long the end of a process waits for its threads, seconds.
STOP_SECONDS = 5.0
_PURGE = "Messages and records that are too old could not be deleted"
#: Seconds between two deletions of them.
_PURGE_SECONDS = 3600.0


def make_dispatch(conf: cfg.ConfigOpts, *, listens: bool) -> Dispatch:
    """Return the dispatch that ``[DEFAULT] transport_url`` asks for: messages, or this process only.

    :param listens: whether a worker runs in this process.
    """
    if not conf.transport_url:
        return InProcessDispatch()
    from backupfw.dispatch.messages import MessageDispatch

    return MessageDispatch(conf, listens=listens)


def expire_seconds(conf: cfg.ConfigOpts) -> float:
    """Return the seconds between two looks for tasks that no worker can take."""
    return float(min(max(conf.backup.service_wait / 10, 1), 30))


def make_expiry(conf: cfg.ConfigOpts, db: Database) -> Expiry:
    """Return what ends tasks that no worker can take."""
    foreign = foreign_catalogues(conf)
    return Expiry(db, conf, lambda volume: foreign[volume.backend].spoil_volume(volume.id, volume.project_id))


def make_look(conf: cfg.ConfigOpts, db: Database) -> Callable[[], None]:
    """Return what ends tasks that waited too long for a worker.

    Once an hour it also deletes the messages and the records of actions that are too old to be shown.
    """
    expiry, messages, actions = make_expiry(conf, db), MessageManager(db, conf), ActionManager(db, conf)
    outages = Outages()
    turns = Turns(outages)

    def look() -> None:
        expiry.expire()
        if turns.is_due(_PURGE, _PURGE_SECONDS):
            with outages.guard(_PURGE):
                messages.purge()
                actions.purge()

    return look


def look_after_until(stop: threading.Event, conf: cfg.ConfigOpts, db: Database) -> None:
    """Look regularly, as :func:`make_look` says, in a process without a worker: none may be left to do it."""
    look, outages = make_look(conf, db), Outages()
    while not stop.wait(expire_seconds(conf)):
        with outages.guard("Operations that wait for a worker could not be looked at"):
            look()


@contextmanager
def sending_events(conf: cfg.ConfigOpts, db: Database) -> Iterator[Outbox]:
    """Yield the event outbox; its events and alerts are sent if the configuration says how.

    :raises ConfigError: it cannot be done as the configuration says.
    """
    with ExitStack() as stack:
        alerts = stack.enter_context(closing(Alerts(conf)))
        if not conf.oslo_messaging_notifications.driver:
            outbox = Outbox(db, ways=alerts.ways)
        else:
            from backupfw.dispatch.notifications import Notifications

            notifications = stack.enter_context(closing(Notifications(conf)))
            outbox = Outbox(db, notifications.send, notifications.nudge, alerts.ways)
            notifications.start(outbox.deliver)
        alerts.start(outbox.deliver_alerts)
        yield outbox


def tell_of_store(outbox: Outbox, host: str, store: str, seconds: float, answers: bool) -> None:
    """Add the alert that a store has not answered for long, or answers again.

    :param host: of the worker that asks it: others may still reach it.
    """
    minutes = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
    did = f"answers again, after {minutes}" if answers else f"has not answered for {minutes}"
    event = "store.up" if answers else "store.down"
    outbox.alert(event, f"The store {store} {did}, says the worker on {host}.", store=store, host=host)


def make_managers(
    conf: cfg.ConfigOpts, db: Database, wake: Callable[[], None], outbox: Outbox | None = None
) -> Managers:
    """Return the use cases that the API calls.

    :param wake: called after a transaction that queued or cancelled a task, or changed a backup policy.
    :param outbox: the event outbox; None: no events are sent.
    """
    foreign = foreign_catalogues(conf)
    backups = BackupManager(
        db, conf, wake, store.container_patterns(conf), outbox, Mirrors(db, conf, foreign)
    )
    return Managers(
        backups=backups,
        policies=PolicyManager(db, conf, backups, wake),
        volumes=VolumeManager(db, conf, wake, foreign.keys()),
        snapshots=SnapshotManager(db, conf, wake),
        quota=QuotaManager(db, conf),
        services=ServiceManager(db, conf),
        messages=MessageManager(db, conf),
        types=VolumeTypeManager(db, conf),
        transfers=TransferManager(db, conf),
    )


def console_token(conf: cfg.ConfigOpts) -> str | None:
    """Return a new token for users of the console of a process; None: it has none, or asks Keystone."""
    if not conf.console.enabled or conf.api.auth_strategy != "noauth":
        return None
    from backupfw.console.login import new_token

    return new_token()


def _console(conf: cfg.ConfigOpts, db: Database, meters: Meters, token: str | None) -> Mapping[str, Maker]:
    """Return what is served beside the API: the console, or nothing.

    :param meters: what this process knows of its calls to stores.
    :param token: with which users log in where nobody is authenticated; None: nobody was told one.
    """
    if not conf.console.enabled or (token is None and conf.api.auth_strategy == "noauth"):
        return {}
    from backupfw.console import app, login, sessions
    from backupfw.manager.usecases.overview import Overview
    from backupfw.manager.usecases.sessions import SessionManager

    way: login.Login
    if token is None:
        way = login.KeystoneLogin(conf)
    else:
        way = login.TokenLogin(token, everywhere="admin" in conf.api.noauth_roles)
    kept = sessions.Sessions(SessionManager(db))
    reads = (Overview(db, conf), StoreManager(db, conf), ActionManager(db, conf))
    return {app.MOUNT: app.maker(*reads, meters.store_calls, kept, way)}


def pauses(conf: cfg.ConfigOpts) -> Pauses:
    """Return what says why the policies of a project do not run: the identity service disabled it."""
    if conf.api.auth_strategy != "keystone":
        return lambda _project: None
    # Its libraries are in the extra "keystone".
    from backupfw.api.identity.keystone import Projects

    return Projects(conf).pauses


class WorkerProcess:
    """A worker with everything it needs; owns its stores."""

    def __init__(
        self,
        conf: cfg.ConfigOpts,
        db: Database,
        dispatch: Dispatch,
        alone: bool,
        meters: Meters,
        outbox: Outbox,
    ) -> None:
        """Make the worker; :meth:`start` starts it.

        :param alone: no other process of this host works on the database: what it left running is dead.
        """
        self._ending = threading.Event()
        self._tasks = Tasks(db, conf.backup.max_attempts, lambda: Limits.of(conf))
        self._conf = conf
        self._alone = alone
        self._look_after = make_look(conf, db)
        alarm = Alarm(partial(tell_of_store, outbox, conf.host), conf.alerts.store_down_after)
        self._stores = Stores(conf, stop=self._ending.is_set, recorder=meters, alarm=alarm)
        self._data_keys = DataKeys.of(conf, KeyManager(db))
        conf.register_mutate_hook(lambda *_: self._stores.set_limits())
        services = ServiceManager(db, conf)
        wire_names = self._stores.wire_names
        backends = Backends(conf)
        # A process that is alone can open what is here, whatever name the host had then.
        reached = {name: alone or shared for name, shared in backends.reach().items()}
        process = uuid.uuid4().hex
        self._leave = partial(services.leave, conf.host, BACKUP_BINARY, process)
        self._dispatch = dispatch
        backup_tasks = BackupTasks(db, conf)
        tools = Tools(
            host=conf.host,
            engine=EngineSettings(
                conf.backup.pack_size,
                conf.backup.compression_level,
                conf.backup.streams,
                conf.backup.create_containers,
                conf.backup.verify_unchanged / 100,
                conf.backup.full_compare_every,
            ),
            tasks=self._tasks,
            backups=backup_tasks,
            volumes=VolumeTasks(db),
            stores=self._stores,
            data_keys=self._data_keys,
            backends=backends,
            heartbeat=lambda: services.heartbeat(
                conf.host, BACKUP_BINARY, conf.availability_zone, wire_names, reached, process
            ),
            expire_waiting=self._look_after,
            queue_scrubs=partial(backup_tasks.scrubbing.queue_due, frozenset(wire_names)),
            record_usage=StoreManager(db, conf).record,
            meter=meters,
            outbox=outbox,
            quiesce=quiesce.commands(conf),
            reach=Reach(
                conf.host,
                BACKUP_BINARY,
                conf.availability_zone,
                frozenset(wire_names),
                frozenset(reached),
                frozenset(name for name, shared in reached.items() if shared),
            ),
        )
        settings = WorkerSettings(
            conf.host,
            conf.backup.workers,
            conf.backup.lease_seconds,
            poll_seconds=conf.backup.poll_seconds,
            # Two in a row may be late or lost before the worker counts as down.
            beat_seconds=conf.service_down_time / 3,
            expire_seconds=expire_seconds(conf),
            store_wait=conf.backup.service_wait,
        )
        managers = make_managers(conf, db, dispatch.wake, outbox)
        self._policies = PolicyLoop(
            PolicyRuns(db, managers.backups, pauses(conf), FilePolicy(conf).allows, self._stores.answering),
            conf.backup.poll_seconds,
            Outages(),
        )
        self._worker = Worker(tools, dispatch, settings, self._policies.nudge)
        self._holding = Holding(backup_tasks, self._stores, wire_names, Outages())

    def start(self) -> None:
        """Start claiming tasks."""
        if self._alone:
            taken = self._tasks.take_over(self._conf.host)
            if taken:
                LOG.warning("Going on with %s task(s) that an earlier process left", taken)
        self._worker.start()
        self._holding.start()
        self._policies.start()

    def runs(self) -> bool:
        """Whether tasks are taken, and backup policies run."""
        return self._worker.runs() and self._policies.runs()

    def close(self) -> None:
        """End running attempts within seconds, giving their tasks back, and close the stores."""
        self._ending.set()
        self._policies.stop()
        self._worker.stop()
        self._policies.join()
        self._holding.close()
        try:
            self._leave()
            self._look_after()
            # Other workers may take the tasks that were given back.
            self._dispatch.wake()
        except Exception:
            LOG.exception("Others learn late that this worker has stopped")
        self._stores.close()
        self._data_keys.close()


def monitor(
    stack: ExitStack,
    conf: cfg.ConfigOpts,
    db: Database,
    meters: Meters,
    parts: Mapping[str, Callable[[], bool]],
    port: int | None,
    shared: bool = False,
) -> None:
    """Listen for ``/metrics``, ``/live`` and ``/ready``, if the configuration says where.

    :param stack: closes the listener at its end.
    :param parts: see :class:`backupfw.cmd.monitoring.Health`.
    :param port: where; None: nowhere.
    :param shared: whether other processes listen there, too, each with the figures of all of them.
    """
    if port is None:
        return
    dispatch = "messages" if conf.transport_url else "this process and looks into the database"
    listener = Listener(conf.metrics.listen, port, meters, Health(db, parts, dispatch), shared=shared)
    stack.callback(listener.close)


@contextmanager
def _serving(conf: cfg.ConfigOpts) -> Iterator[Database]:
    """Connect to the database for a ``with`` block, as a process that serves does."""
    with closing(database.connect(conf)) as db:
        db.renew_statistics()
        yield db


class EmbeddedService:
    """API and worker in one process, for a ``with`` block.

    :param token: of :func:`console_token`.
    :ivar url: where the API answers.
    """

    def __init__(self, conf: cfg.ConfigOpts, token: str | None = None) -> None:
        self._conf = conf
        self._token = token
        self._stack = ExitStack()
        self.url = ""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            db = stack.enter_context(_serving(self._conf))
            dispatch = make_dispatch(self._conf, listens=True)
            stack.callback(dispatch.close)
            meters = Meters(db)
            outbox = stack.enter_context(sending_events(self._conf, db))
            # The lock of the state directory proves that no other process uses a SQLite file.  On a database
            # server another worker can have this host's name, e.g. in a container.
            alone = db.backend == "sqlite"
            worker = WorkerProcess(self._conf, db, dispatch, alone=alone, meters=meters, outbox=outbox)
            worker.start()
            stack.callback(worker.close)
            managers = make_managers(self._conf, db, dispatch.wake, outbox)
            beside = _console(self._conf, db, meters, self._token)
            app = make_app(managers, self._conf, healthy=db.writable, beside=beside)
            server = ApiServer(self._conf, meters.measured(app))
            stack.callback(server.close)
            parts = {"worker": worker.runs, "api": server.runs}
            monitor(stack, self._conf, db, meters, parts, self._conf.metrics.port)
            self.url = server.url
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()


def api_port(conf: cfg.ConfigOpts) -> int | None:
    """The port for the figures of a process that serves the API only."""
    ports = conf.metrics
    return int(ports.api_port) if ports.api_port is not None else ports.port


@dataclass(frozen=True)
class Api:
    """The API as a WSGI application, and what it is made of."""

    app: WsgiApp
    db: Database
    meters: Meters


@contextmanager
def api_application(conf: cfg.ConfigOpts, token: str | None = None) -> Iterator[Api]:
    """Make the API for a ``with`` block, in a process that runs no worker.

    It belongs to the process that made it: connections and threads outlive no fork.

    :param token: of :func:`console_token`; a server that tells nobody a token has none.
    """
    with ExitStack() as stack:
        db = stack.enter_context(_serving(conf))
        dispatch = make_dispatch(conf, listens=False)
        stack.callback(dispatch.close)
        meters = Meters(db)
        outbox = stack.enter_context(sending_events(conf, db))
        managers = make_managers(conf, db, dispatch.wake, outbox)
        app = make_app(managers, conf, healthy=db.writable, beside=_console(conf, db, meters, token))
        stack.enter_context(_looking_after(conf, db))
        yield Api(meters.measured(app), db, meters)


@contextmanager
def _looking_after(conf: cfg.ConfigOpts, db: Database) -> Iterator[None]:
    """End operations that no worker takes, in a process without a worker: there may be no worker at all."""
    ending = threading.Event()

    thread = threading.Thread(
        target=look_after_until, args=(ending, conf, db), name="look-after", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(STOP_SECONDS)


def run_api(
    conf: cfg.ConfigOpts, stop: threading.Event, ready: Callable[[str], None], token: str | None = None
) -> None:
    """Serve the API until ``stop`` is set; workers find its tasks in the database.

    :param ready: called with the URL once the API answers.
    :param token: of :func:`console_token`.
    """
    with ExitStack() as stack:
        api = stack.enter_context(api_application(conf, token))
        server = ApiServer(conf, api.app)
        stack.callback(server.close)
        monitor(stack, conf, api.db, api.meters, {"api": server.runs}, api_port(conf))
        ready(server.url)
        stop.wait()


@contextmanager
def running_worker(conf: cfg.ConfigOpts) -> Iterator[None]:
    """Run a worker for a ``with`` block; others may run on this host and elsewhere."""
    with ExitStack() as stack:
        db = stack.enter_context(_serving(conf))
        dispatch = make_dispatch(conf, listens=True)
        stack.callback(dispatch.close)
        meters = Meters(db)
        outbox = stack.enter_context(sending_events(conf, db))
        worker = WorkerProcess(conf, db, dispatch, alone=False, meters=meters, outbox=outbox)
        worker.start()
        stack.callback(worker.close)
        monitor(stack, conf, db, meters, {"worker": worker.runs}, conf.metrics.port)
        yield
