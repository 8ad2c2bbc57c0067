"""The pages in ``gabbits/``: the API's documentation as requests and answers, run one after the other.

Pages in ``both`` run once for each version of the API, in an installation of their own.
"""

from __future__ import annotations

import unittest
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml
from gabbi import suitemaker, utils
from gabbi.handlers import RESPONSE_HANDLERS

from backupfw.api.middleware import WsgiApp
from backupfw.db import models
from tests.functional.cloud import NOBODY, SERVICE, Cloud, record

GABBITS = Path(__file__).with_name("gabbits")
#: Everything an operation is asked; each page has them all.
KINDS = {
    "valid",
    "invalid",
    "wrong state",
    "other tenant",
    "missing",
    "too long",
    "wrong type",
    "malformed",
}
PAGES = [
    pytest.param(path, version, id=f"{version}-{path.stem}")
    for version in ("v2", "v3")
    for folder in ("both", version)
    for path in sorted((GABBITS / folder).glob("*.yaml"))
]


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
    cloud.start_worker()
    return {**made, **records()}


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


@pytest.mark.parametrize(("page", "version"), PAGES)
def test_page(page: Path, version: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**things(cloud), "BASE": f"/{version}/demo", "VERSION": version}.items():
        monkeypatch.setenv(name, value)
    suite = suitemaker.test_suite_from_dict(
        unittest.TestLoader(), page.stem, utils.load_yaml(yaml_file=str(page)), str(page.parent),
        host="localhost", port=80, fixture_module=None, intercept=lambda: at_the_root(cloud.app.app),
        prefix=f"/{version}/demo", handlers=[handler() for handler in RESPONSE_HANDLERS],
    )  # fmt: skip
    result = unittest.TestResult()
    suite.run(result)
    wrong = [f"{test.test_data['name']}\n{why}" for test, why in (*result.failures, *result.errors)]
    assert not wrong, "\n\n".join(wrong)
    assert result.testsRun == suite.countTestCases() > 0
    assert not result.skipped


#: Pages that are not about one operation.
OVERVIEWS = {"microversions", "version-two"}


@pytest.mark.parametrize("page", sorted(GABBITS.glob("*/*.yaml")), ids=lambda page: page.stem)
def test_every_operation_is_asked_everything(page: Path) -> None:
    names = [test["name"] for test in yaml.safe_load(page.read_text())["tests"]]
    assert len(names) == len(set(names))
    assert page.stem in OVERVIEWS or {name.partition(": ")[0] for name in names} == KINDS
