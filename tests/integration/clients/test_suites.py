"""The tests that the clients come with, unmodified: each passes, or it is known why it is not run."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.integration.clients.suites import Suites, suites_missing
from tests.integration.clients.table import PAGE
from tests.integration.clients.world import served
from tests.servers.keystone import Keystone

KNOWN: dict[str, Any] = tomllib.loads(Path(__file__).with_name("suite_tests.toml").read_text())


@pytest.fixture(scope="module")
def suites(identity: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suites]:
    reason = suites_missing()
    if reason:
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("suites")
    with served(directory, identity, "RegionOfSuites") as world:
        # The SDK skips its tests of backups where there is no object store, and never asks for it.
        identity.add_endpoints("object-store", {"public": "http://127.0.0.1:9/"}, world.region)
        admin = identity.add_user("admin-of-suites", "suites", "admin")
        member = identity.add_user("member-of-suites", admin.project, "member", admin.project_id)
        suites = Suites(directory, world, admin, member)
        with suites.quick_commands():
            yield suites


def expected(package: str) -> dict[str, str]:
    """What must become of each test of a package that is run."""
    passed = KNOWN["passed"][package]
    return {f"{package}.{group}.{name}": "success" for group, names in passed.items() for name in names}


def table() -> str:
    """What docs/clients.md has between its markers."""
    lines = []
    for package, groups in KNOWN["passed"].items():
        count = sum(map(len, groups.values()))
        named = ", ".join(f"`{group}`" for group in groups)
        lines.append(f"* `{package}`: {count} tests pass, of {named}")
        lines += [f"  * not run: `{part}`: {why}" for part, why in KNOWN["left_out"][package].items()]
    return "\n".join(lines) + "\n"


def test_the_page_about_clients_says_the_same() -> None:
    _, begun, rest = PAGE.read_text().partition("<!-- suites: begin -->\n")
    said, ended, _ = rest.partition("<!-- suites: end -->")
    assert begun
    assert ended
    assert said == table()


@pytest.mark.server
def test_every_suite(suites: Suites) -> None:
    """All at once: most of their time they sleep."""
    with ThreadPoolExecutor() as pool:
        runs = {
            package: pool.submit(suites.run, package, sorted(expected(package)))
            for package in KNOWN["passed"]
        }
    strange = {}
    for package, run in runs.items():
        results = run.result()
        assert results.keys() == expected(package).keys()
        strange |= {name: got for name, got in results.items() if got.status != expected(package)[name]}
    assert not strange, "\n\n".join(f"{name}: {got.status}\n{got.why}" for name, got in strange.items())


@pytest.mark.server
@pytest.mark.parametrize("package", KNOWN["passed"])
def test_what_is_not_run(suites: Suites, package: str) -> None:
    """Tests that are new in a newer release are looked at, not missed."""
    left_out = KNOWN["left_out"][package]
    names = suites.names(package) - expected(package).keys()
    parts = {name: [part for part in left_out if name.startswith(f"{package}.{part}")] for name in names}
    assert not [name for name, found in parts.items() if not found]
    assert {part for found in parts.values() for part in found} == left_out.keys()
