"""The pages in ``gabbits/``: the API's documentation as requests and answers, run one after the other.

Pages in ``both`` run once for each version of the API, in an installation of their own.  A page names the
operations that it is about, and the name of each of its tests begins with what kind of test it is; so it can
be told that no operation is without a page, and no page without what it must have.
"""

from __future__ import annotations

import copy
import unittest
import uuid
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from gabbi import suitemaker
from gabbi.handlers import RESPONSE_HANDLERS
from sqlalchemy import select

from backupfw.api.pipeline import WsgiApp
from backupfw.api.versions import V2, V3_HIGHEST
from backupfw.context import RequestContext
from backupfw.db import models
from backupfw.manager import messages
from tests.functional.cloud import NOBODY, SERVICE, Cloud, record
from tests.functional.described import ROUTES, Described, operations

GABBITS = Path(__file__).with_name("gabbits")
#: Everything an operation is asked; ``gabbits/README.md`` says what each means.
KINDS = frozenset(
    ("valid", "invalid", "wrong state", "other tenant", "missing", "too long", "wrong type", "malformed")
)
#: What is the same for everybody who asks, and takes nothing that could be wrong.
_FIXED = (
    "GET /os-availability-zone",
    "GET /extensions",
    "GET /qos-specs",
    *(f"GET /{name}{tail}" for name in ("groups", "group_snapshots") for tail in ("", "/detail")),
)
#: What an operation cannot be asked, and why: (kind, reason, operations).
NOT_ASKED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("wrong state", "it is always the same", (*_FIXED, "GET /extensions/{alias}")),
    ("wrong state", "it is the operator's, not a thing with a status", ("GET /resource_filters",)),
    ("missing", "it names nothing that could be missing", (*_FIXED, "GET /limits")),
    ("too long", "it takes no text", (*_FIXED, "GET /limits")),
    ("wrong type", "it takes no value that could be of another type", (*_FIXED, "GET /limits")),
)
EXCUSED = {(operation, kind) for kind, _, operations_ in NOT_ASKED for operation in operations_}
#: By version: the folders of its pages, and what it serves.
VERSIONS = {"v2": V2, "v3": V3_HIGHEST}


def pages(version: str) -> list[Path]:
    """Return the pages that are about a version, in order."""
    return [path for folder in ("both", version) for path in sorted((GABBITS / folder).rglob("*.yaml"))]


def name_of(path: Path) -> str:
    """Return a page's name, e.g. ``volumes/create``."""
    return "/".join(path.relative_to(GABBITS).with_suffix("").parts[1:])


PAGES = [
    pytest.param(path, version, id=f"{version}-{name_of(path)}")
    for version in VERSIONS
    for path in pages(version)
]


@cache
def _read(page: Path) -> dict[str, Any]:
    # Not by gabbi, whose parser is in Python: it took a quarter of the time of these tests.
    found: dict[str, Any] = yaml.load(page.read_text("utf-8"), yaml.CSafeLoader)
    return found


def things(cloud: Cloud) -> dict[str, str]:
    """Make what the pages speak of; returns the names they have there, with ids."""
    member = cloud.client()
    made = {"NOBODY": NOBODY, "LONG": "x" * 256}
    for name in (
        "VOLUME",
        "FRESH",
        "BACKED_UP",
        "SNAPPED",
        "VOLUME_IN_USE",
        "OTHER_IN_USE",
        "VOLUME_CREATING",
    ):
        made[name] = cloud.volume()
    made["BIG"] = cloud.volume(size=2)
    made["FOREIGN_VOLUME"] = cloud.volume("other")
    for name in ("VOLUME_IN_USE", "OTHER_IN_USE"):
        body = {"os-attach": {"mountpoint": "/dev/vdb", "host_name": "host2"}}
        member.post(f"/volumes/{made[name]}/action", body)
    for name in ("SNAPSHOT", "SNAPSHOT_CREATING"):
        made[name] = cloud.snapshot(made["SNAPPED"])
    for name in ("OLDEST", "BACKUP", "BACKUP_CREATING", "BACKUP_RESTORING", "BACKUP_ERROR"):
        made[name] = cloud.backup(made["BACKED_UP"], name=name.lower())
    made["CHILD"] = cloud.backup(made["BACKED_UP"], name="child", incremental=True)
    made["BIG_BACKUP"] = cloud.backup(made["BIG"], name="big")
    made["FOREIGN_BACKUP"] = cloud.backup(made["FOREIGN_VOLUME"], "other")
    for model, name in (
        (models.Volume, "VOLUME_CREATING"),
        (models.Snapshot, "SNAPSHOT_CREATING"),
        (models.Backup, "BACKUP_CREATING"),
        (models.Backup, "BACKUP_RESTORING"),
        (models.Backup, "BACKUP_ERROR"),
    ):
        cloud.set_status(model, made[name], name.rpartition("_")[2].lower())
    cloud.client(roles="admin").put("/os-quota-sets/demo", {"quota_set": {"backups": 11}})
    made["FOREIGN_SNAPSHOT"] = cloud.snapshot(cloud.volume("other"), "other")
    shown = member.get(f"/volumes/{made['VOLUME_IN_USE']}").json["volume"]
    made["ATTACHMENT"] = shown["attachments"][0]["attachment_id"]
    for name, project, volume in (
        ("POLICY", "demo", "BACKED_UP"),
        ("OTHER_POLICY", "demo", "BIG"),
        ("FOREIGN_POLICY", "other", "FOREIGN_VOLUME"),
    ):
        settings = {"schedule": {"cron": "@daily"}, "selection": {"volume_ids": [made[volume]]}}
        caller = RequestContext(project, "alice")
        made[name] = cloud.managers.policies.create(caller, name=name.lower(), settings=settings).id
    made["TYPE"] = member.get("/types/default").json["volume_type"]["id"]
    root = cloud.client(roles="admin")
    for name, public, specs in (
        ("gold", True, {"tier": "first", "multiattach": "<is> False"}),
        ("secret", False, {}),
    ):
        body = {"name": name, "os-volume-type-access:is_public": public, "extra_specs": specs}
        made[name.upper()] = root.post("/types", {"volume_type": body}, 200).json["volume_type"]["id"]
    for name, project in (("OLDER_MESSAGE", "demo"), ("MESSAGE", "demo"), ("FOREIGN_MESSAGE", "other")):
        made[name] = told(cloud, project, made["BACKUP_ERROR"])
    return {**made, **records()}


def told(cloud: Cloud, project: str, backup_id: str) -> str:
    """Tell a project that a backup failed; return the message's id."""
    with cloud.db.write() as session:
        messages.post(
            session,
            messages.Action.CREATE_BACKUP,
            messages.Detail.CREATE_BACKUP,
            project_id=project,
            request_id="req-1",
            resource_type=messages.BACKUP,
            resource_id=backup_id,
        )
        newest = (
            select(models.Message.id).order_by(models.Message.created_at.desc(), models.Message.id).limit(1)
        )
        return session.scalars(newest).one()


def records() -> dict[str, str]:
    """Records to import, right and wrong, by name; of some the id, too."""
    made = {"SERVICE": SERVICE}
    for name in ("RECORD", "SECOND", "THIRD"):
        made[f"{name}_ID"] = str(uuid.uuid4())
        made[name] = record(id=made[f"{name}_ID"])["backup-record"]["backup_url"]
    for name, values in (("NO_ID", {"id": ...}), ("NO_SIZE", {"size": ...}), ("WORDY", {"size": "large"})):
        made[name] = record(**values)["backup-record"]["backup_url"]
    return made


def at_the_root(app: WsgiApp) -> WsgiApp:
    """Undo that gabbi gives its prefix to an application twice: in the path, and as where it is mounted."""

    def called(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        return app({**environ, "SCRIPT_NAME": ""}, start_response)

    return called


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, templates: Path) -> tuple[Path, dict[str, str]]:
    """A database with what the pages speak of, which each page gets a copy of; and the names."""
    cloud = Cloud(tmp_path_factory.mktemp("prepared"), templates)
    names = things(cloud)
    cloud.close()
    return cloud.path, names


@pytest.mark.parametrize(("page", "version"), PAGES)
def test_a_page_of_examples_is_answered_as_it_says(
    page: Path,
    version: str,
    prepared: tuple[Path, dict[str, str]],
    tmp_path: Path,
    templates: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A page's answers are as it says, and as the description of the API says."""
    database, names = prepared
    cloud = Cloud(tmp_path, templates, copy_of=database)
    # Now: one that was heard of when the database was made may count as down by the last page.
    cloud.start_worker()
    for name, value in {**names, "BASE": f"/{version}/demo", "VERSION": version}.items():
        monkeypatch.setenv(name, value)
    app = Described(cloud.app.app)
    # A copy: gabbi writes into it.
    read = copy.deepcopy(_read(page))
    suite = suitemaker.test_suite_from_dict(
        unittest.TestLoader(), page.stem, read, str(page.parent),
        host="localhost", port=80, fixture_module=None, intercept=lambda: at_the_root(app),
        prefix=f"/{version}/demo", handlers=[handler() for handler in RESPONSE_HANDLERS],
    )  # fmt: skip
    result = unittest.TestResult()
    suite.run(result)
    cloud.close()
    wrong = [f"{test.test_data['name']}\n{why}" for test, why in (*result.failures, *result.errors)]
    assert not wrong, "\n\n".join(wrong)
    assert result.testsRun == suite.countTestCases() > 0
    assert not result.skipped
    assert set(read.get("operations", ())) <= app.reached


def kinds_of(page: Path) -> set[str]:
    """Return the kinds of a page's tests; no two of them have one name."""
    names = [test["name"] for test in _read(page)["tests"]]
    assert len(names) == len(set(names))
    return {name.partition(": ")[0] for name in names}


@pytest.mark.parametrize("version", VERSIONS)
def test_every_operation_is_asked_everything(version: str) -> None:
    served = {
        operation for route in ROUTES if route.serves(VERSIONS[version]) for operation in operations(route)
    }
    asked: dict[str, set[str]] = {operation: set() for operation in served}
    for page in pages(version):
        about = _read(page).get("operations", [])
        assert set(about) <= served, f"{page}: {set(about) - served} are not served"
        kinds = kinds_of(page)
        for operation in about:
            asked[operation] |= kinds
    wrong = {
        operation: sorted(kinds ^ KINDS ^ {kind for kind in KINDS if (operation, kind) in EXCUSED})
        for operation, kinds in asked.items()
    }
    # What is named is not asked, or is asked although it is said that it cannot be.
    assert {operation: kinds for operation, kinds in wrong.items() if kinds} == {}


def test_what_is_not_asked_is_served() -> None:
    served = {operation for route in ROUTES for operation in operations(route)}
    assert {operation for operation, _ in EXCUSED} <= served
    assert {kind for _, kind in EXCUSED} <= KINDS


@pytest.mark.parametrize("page", sorted(GABBITS.rglob("*.yaml")), ids=name_of)
def test_a_page_says_what_it_is_about(page: Path) -> None:
    """A page that names no operation has no kinds of tests; it is about something else."""
    assert page.read_text().startswith("# ")
    about = _read(page).get("operations", [])
    assert bool(about) is bool(kinds_of(page) & KINDS)
    assert not about or kinds_of(page) <= KINDS
