"""One served instance and its people for all clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.clients.commands import Commands, clients_missing
from tests.integration.clients.gophercloud import build, gophercloud_missing
from tests.integration.clients.table import Shown
from tests.integration.clients.world import World, served
from tests.servers.keystone import Keystone, User
from tests.servers.programs import find_program

Typing = Callable[..., Commands]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Compare with the page when everything was shown that is shown."""
    items.sort(key=lambda item: item.path.name == "test_table.py")


@pytest.fixture(scope="session")
def shows() -> Shown:
    """Takes down what the tests have shown."""
    return Shown()


@pytest.fixture(scope="session")
def gopher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program that calls gophercloud."""
    reason = gophercloud_missing()
    if reason:
        pytest.skip(reason)
    return build(tmp_path_factory.mktemp("gophercloud"))


@pytest.fixture(scope="session")
def horizon() -> Path:
    """The interpreter that has Horizon."""
    program = find_program("django-admin", "horizon")
    if program is None:
        pytest.skip("not installed: django-admin (tests/servers/install.sh horizon)")
    return Path(program).with_name("python")


@pytest.fixture(scope="session")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home for the clients, which must be installed."""
    reason = clients_missing()
    if reason:
        pytest.skip(reason)
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def world(identity: Keystone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The instance, behind Keystone."""
    with served(tmp_path_factory.mktemp("clients"), identity, "RegionOfClients") as world:
        yield world


@pytest.fixture(scope="session")
def admin(world: World) -> User:
    """An administrator, in a project of their own."""
    return world.keystone.add_user("admin-with-clients", "clients", "admin")


@pytest.fixture(scope="session")
def member(world: World, admin: User) -> User:
    """A member of the administrator's project."""
    return world.keystone.add_user("member-with-clients", admin.project, "member", admin.project_id)


@pytest.fixture(scope="session")
def typing(world: World, clients: Path) -> Typing:
    """Gives a user's commands: ``typing(user, OS_VOLUME_API_VERSION="2")``."""

    def of(user: User, **variables: str) -> Commands:
        return Commands({**world.variables(user), **variables}, clients)

    return of
