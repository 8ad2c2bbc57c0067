"""The published tempest tests of backups, unmodified: each passes, or is known to be skipped, and why."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients.tempest import Tempest, security_groups, tempest_missing
from tests.integration.clients.world import served
from tests.servers.keystone import Keystone
from tests.servers.programs import ROOT

KNOWN: dict[str, Any] = tomllib.loads(Path(__file__).with_name("tempest_tests.toml").read_text())
PASSED = {f"{group}.{name}" for group, names in KNOWN["passed"].items() for name in names}


@pytest.fixture(scope="module")
def tempest(identity: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tempest]:
    reason = tempest_missing()
    if reason:
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("tempest")
    (directory / "run").mkdir()
    # An instance of its own: these tests change default quotas.
    with served(directory, identity, "RegionOfTempest") as world, security_groups(world):
        yield Tempest(directory / "run", world)


@pytest.mark.server
def test_every_published_backup_test(tempest: Tempest) -> None:
    expected = dict.fromkeys(PASSED, "success") | dict.fromkeys(KNOWN["skipped"], "skip")
    found = tempest.names(KNOWN["run"]["find"], KNOWN["run"]["but_not"])
    # Tests that are new in a newer release are looked at, not missed.
    assert found == expected.keys() | KNOWN["left_out"].keys()
    results = tempest.run(sorted(expected))
    strange = {name: got for name, got in results.items() if got.status != expected.get(name)}
    assert not strange, "\n\n".join(f"{name}: {got.status}\n{got.why}" for name, got in strange.items())
    assert results.keys() == expected.keys()
    for name, reason in KNOWN["skipped"].items():
        assert results[name].why.startswith(reason), (name, results[name].why)


def tables() -> dict[str, str]:
    """What docs/clients.md has between its markers."""
    passed = [
        f"* `{group}`: {', '.join(f'`{name}`' for name in names)}" for group, names in KNOWN["passed"].items()
    ]
    others = {
        title: [f"* `{name}`: {why}" for name, why in KNOWN[key].items()]
        for title, key in (("skipped", "skipped"), ("left out", "left_out"))
    }
    return {title: "\n".join(lines) + "\n" for title, lines in {"passed": passed, **others}.items()}


@pytest.mark.parametrize("title", ["passed", "skipped", "left out"])
def test_the_page_about_clients_says_the_same(title: str) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    _, begun, rest = page.partition(f"<!-- {title}: begin -->\n")
    written, ended, _ = rest.partition(f"<!-- {title}: end -->")
    assert begun
    assert ended
    assert written == tables()[title]
