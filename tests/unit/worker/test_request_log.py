"""One request's id in the log lines of API, worker and store layers."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from oslo_config import cfg
from oslo_context import context
from oslo_log import formatters
from webtest import TestApp

from backupfw.api.app import Managers, make_app
from backupfw.chunkstore.errors import Unavailable
from backupfw.chunkstore.layers.stack import stack
from backupfw.conf import logging as log_conf
from backupfw.context import RequestContext, working_for
from backupfw.manager.messages import MessageManager
from backupfw.manager.policies.manager import PolicyManager
from backupfw.manager.rules.quota import QuotaManager
from backupfw.manager.rules.volume_types import VolumeTypeManager
from backupfw.manager.usecases.snapshots import SnapshotManager
from backupfw.manager.usecases.transfers import TransferManager
from backupfw.manager.usecases.volumes import VolumeManager
from tests.functional.cloud import configuration
from tests.unit.worker.world import WorkerWorld


@pytest.fixture
def log_options() -> cfg.ConfigOpts:
    """The logging options with their defaults."""
    conf = cfg.ConfigOpts()
    log_conf.register_opts(conf)
    conf([], default_config_files=[], default_config_dirs=[])
    return conf


@pytest.fixture
def lines(log_options: cfg.ConfigOpts) -> Iterator[io.StringIO]:
    """The log as a process that was set up by ``conf.logging`` writes it."""
    conf = log_options
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(formatters.ContextFormatter(project="backupfw", version="1", config=conf))
    handler.addFilter(log_conf.RequestFilter())
    root = logging.getLogger("backupfw")
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield written
    root.removeHandler(handler)
    root.setLevel(level)


class Options:
    """One quick retry."""

    retry_tries = 3
    retry_base_pause = 0.001


def test_a_request_is_followed_from_the_api_to_the_store(tmp_path: Path, lines: io.StringIO) -> None:
    world = WorkerWorld(tmp_path)
    world.store = stack(world.faulty, Options())
    world.tools.stores._store = world.store  # type: ignore[attr-defined]
    conf = configuration()
    managers = Managers(
        backups=world.backups,
        volumes=VolumeManager(world.db, conf, world.dispatch.wake),
        snapshots=SnapshotManager(world.db, conf, world.dispatch.wake),
        quota=QuotaManager(world.db, conf),
        services=world.services,
        messages=MessageManager(world.db, conf),
        types=VolumeTypeManager(world.db, conf),
        transfers=TransferManager(world.db, conf),
        policies=PolicyManager(world.db, conf, world.backups),
    )
    app = TestApp(make_app(managers, conf))
    volume = world.filled_volume(b"secret content" * 9000)
    world.faulty.fail("put", lambda: Unavailable("not now", store="main"))
    answer = app.post_json(
        "/v2/p1/backups?password=hunter2",
        {"backup": {"volume_id": volume}},
        headers={"X-Auth-Token": "u:p1:member"},
    )
    request_id = answer.headers["X-OpenStack-Request-ID"]
    with world.worker():
        world.wait_backup(answer.json["backup"]["id"], "available")
        world.wait_idle()
    log = lines.getvalue()
    mine = [line for line in log.splitlines() if f"[{request_id}]" in line]
    for part in ("backupfw.api.pipeline", "backupfw.worker.worker", "backupfw.chunkstore.layers.retry"):
        assert any(f" {part} [" in line for line in mine), (part, log)
    # A line that no request caused says so, in the same format.
    logging.getLogger("backupfw.somewhere").warning("by itself")
    assert lines.getvalue().endswith(" WARNING backupfw.somewhere [-] by itself\n")
    for secret in ("hunter2", "u:p1:member", "secret content"):
        assert secret not in log


def test_an_operators_format_has_the_caller_and_only_while_somebody_asks(
    log_options: cfg.ConfigOpts, lines: io.StringIO
) -> None:
    own = "%(global_request_id)s %(request_id)s %(user)s of %(project_id)s: %(message)s"
    log_options.set_override("logging_context_format_string", own)
    log = logging.getLogger("backupfw.somewhere")
    with working_for(RequestContext("p1", "alice", request_id="req-1", global_request_id="req-0")):
        log.warning("asked")
        with working_for(RequestContext.of_task("p2", "req-2")):
            log.warning("for a task")
        with working_for(RequestContext.of_task("p2", None)):
            log.warning("for nobody")
        log.warning("asked again")
    log.warning("done")
    said = lines.getvalue().splitlines()
    assert said[:2] == ["req-0 req-1 alice of p1: asked", "None req-2  of p2: for a task"]
    assert said[2].endswith("[-] for nobody")
    assert said[3] == "req-0 req-1 alice of p1: asked again"
    assert said[4].endswith("[-] done")
    # Nothing that a library reads is left for this thread's next line.
    assert context.get_current() is None
