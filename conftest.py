"""Which tests are quick, and what every run tells: what was skipped and why, how long each suite took.

``make test`` runs what is quick and needs nothing; what else there is has the marker ``check``, after the
command that runs it.

``BACKUPFW_REQUIRE=root,server`` names markers whose tests must run here: a skip of one of them, or of a
whole module, counts as a failure.  CI sets it, so that a missing tool never passes for success.
"""

from __future__ import annotations

import gc
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

REQUIRED = frozenset(
    word.strip() for word in os.environ.get("BACKUPFW_REQUIRE", "").split(",") if word.strip()
)

#: Of the tests that run whole services, those of ``make test``: the main job on the embedded default.
EMBEDDED = "tests/integration/test_main_job.py"

CLIENTS = "tests/integration/clients/"
#: The last one looks at what the others have shown: they run in one process, but for those that show nothing
#: and have an instance of their own.
APART = tuple(f"{CLIENTS}test_{name}.py" for name in ("suites", "tempest"))
#: Suites of which a class or module takes long, the longest first.
LONG = (CLIENTS, "tests/integration/cinder/", "tests/integration/", "drivers/", "tests/unit/worker/")
#: Most processes that tests run in: each has servers of its own.
MOST_PROCESSES = 4

# An example that takes long to draw or to run on a busy machine is no failure: it would count as one of
# a mutant, too.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

_seconds: dict[str, float] = defaultdict(float)
_counts: dict[str, int] = defaultdict(int)
#: In order, each once: under xdist every process reports the modules.
_skips: dict[tuple[str, str], None] = {}


@pytest.fixture(scope="session", autouse=True)
def _statements_are_compiled_once() -> Iterator[None]:
    """Let all SQLite databases of a process share what they compile.

    Each test has a database of its own; without this, SQLAlchemy compiles the same statements for each again,
    which took a third of the time.
    """
    from sqlalchemy import Engine

    from backupfw.db import session

    make, compiled, dialects = session.create_engine, dict[Any, Any](), dict[type, Any]()

    def make_alike(*args: Any, **options: Any) -> Engine:
        engine = make(*args, **options)
        if engine.name == "sqlite":
            # What was compiled is found by its dialect, too.
            engine.dialect = dialects.setdefault(type(engine.dialect), engine.dialect)
            engine.update_execution_options(compiled_cache=compiled)
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "create_engine", make_alike)
        yield


@pytest.fixture(scope="session", autouse=True)
def _statements_are_looked_at() -> None:
    from tests import statements

    statements.watch()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Let the collector of garbage pass over all that the collection of tests makes.

    It took a sixth of the time of the collection, and a tenth of that of quick tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


def suite_of(nodeid: str) -> str:
    """Return the suite a test belongs to, e.g. ``tests/unit`` or ``drivers/posix``."""
    return "/".join(Path(nodeid.partition("::")[0]).parts[:2])


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    if isinstance(report.longrepr, tuple):
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr)


def _refuse(report: pytest.TestReport | pytest.CollectReport, why: str) -> None:
    report.longrepr = f"skipped, but {why} is required here (BACKUPFW_REQUIRE): {_reason(report)}"
    report.outcome = "failed"


def _quick(config: pytest.Config) -> bool:
    """Return whether no test with the marker ``check`` is to run."""
    words = config.option.markexpr.split()
    return words[:2] == ["not", "check"] and "or" not in words


def _runs_services(path: str) -> bool:
    """Return whether all tests at a path run whole services."""
    return path.startswith("tests/integration/") and path != EMBEDDED


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Read no module of which all tests would be deselected: every process would import what it needs."""
    path = os.path.relpath(collection_path, config.rootpath)
    return True if _quick(config) and _runs_services(path) else None


def _turn(item: pytest.Item) -> tuple[int, str]:
    """Return how many kinds of tests begin before this one, and its place among its kind.

    Of those that take long, modules of one directory, which mostly wait, are mixed with those of others.
    """
    for turn, suite in enumerate(LONG):
        if item.nodeid.startswith(suite):
            return turn, Path(item.nodeid.partition("::")[0]).name
    return len(LONG), ""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server or root and what runs whole services, before ``-m`` is looked at.

    What takes long in one process comes first; the rest fills the other processes at the end.
    """
    items.sort(key=_turn)
    for item in items:
        whole = _runs_services(item.nodeid.partition("::")[0])
        if whole or any(mark.name in ("server", "root") for mark in item.iter_markers()):
            item.add_marker("check")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return what ``-n auto`` means: some more than there are processors.

    Tests wait for a third of their time, and those of ``make check`` also for their servers.
    """
    waiting = 1 if _quick(config) else 2
    return min((os.cpu_count() or 1) + waiting, MOST_PROCESSES)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return who gives ``--dist loadscope`` its scopes: a class, a module, or most tests of clients."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if nodeid.startswith(CLIENTS) and not nodeid.startswith(APART):
                return CLIENTS
            return nodeid.rsplit("::", 1)[0]

    return Scheduling(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn a skip of a required test into a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        missing = REQUIRED & {mark.name for mark in item.iter_markers()}
        # A capability that the store or server declares not to have is a reason; a missing server is none.
        if missing and not _reason(report).startswith("declared: "):
            _refuse(report, ", ".join(sorted(missing)))
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Iterator[None]:
    """Turn the skip of a whole module into a failure: it may have held required tests."""
    report = yield
    if report.skipped and REQUIRED:
        _refuse(report, "every module")
    return report


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remember modules that were skipped."""
    if report.skipped:
        _skips[report.nodeid, _reason(report)] = None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up times and remember skips."""
    suite = suite_of(report.nodeid)
    _seconds[suite] += report.duration
    if report.when == "call" or report.outcome != "passed":
        _counts[suite] += 1
    if report.skipped and not hasattr(report, "wasxfail"):
        _skips[report.nodeid, _reason(report)] = None


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of suites and every skip, those of one file with one reason in one line."""
    write = terminalreporter.write_line
    terminalreporter.section("suites")
    for suite in sorted(_seconds):
        write(f"{suite:<28} {_counts[suite]:>6} tests {_seconds[suite]:>8.1f} s")
    terminalreporter.section(f"skipped: {len(_skips)}")
    alike: dict[tuple[str, str], list[str]] = defaultdict(list)
    for nodeid, reason in _skips:
        alike[nodeid.partition("::")[0], reason].append(nodeid)
    for (file, reason), nodeids in alike.items():
        write(f"{nodeids[0] if len(nodeids) == 1 else f'{file} ({len(nodeids)} tests)'}: {reason}")
