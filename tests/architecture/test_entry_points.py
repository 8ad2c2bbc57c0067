"""Every declared entry point is installed as declared and loads."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest

from backupfw.chunkstore import loader as chunkstore_loader
from backupfw.volume import loader as volume_loader
from tests.architecture.checkout import lines, parts, setup_cfg


def declared() -> list[tuple[str, str, str]]:
    points = []
    for group, text in setup_cfg()["options.entry_points"].items():
        for line in lines(text):
            name, _equals, value = line.partition("=")
            points.append((group, name.strip(), value.strip()))
    for project in parts().values():
        for group, entries in project["project"]["entry-points"].items():
            points += [(group, name, value) for name, value in entries.items()]
    return points


@pytest.mark.parametrize(("group", "name", "value"), declared(), ids=lambda text: str(text))
def test_entry_point_loads(group: str, name: str, value: str) -> None:
    values = {point.value for point in entry_points(group=group, name=name)}
    assert values == {value}, "reinstall the checkout: what is installed is not what is declared"
    (point, *_same) = entry_points(group=group, name=name)
    assert point.load() is not None


def test_there_are_entry_points() -> None:
    groups = {group for group, _name, _value in declared()}
    assert groups >= {
        "console_scripts",
        "backupfw.chunkstore",
        "backupfw.volume",
        "openstack.volume.v3",
        "oslo.config.opts",
        "pytest11",
    }


def test_the_loaders_take_every_driver_and_provider() -> None:
    for group, name, _value in declared():
        if group == chunkstore_loader.DRIVERS.group:
            assert chunkstore_loader.load_driver(name).wire_name
        elif group == volume_loader.PROVIDERS.group:
            assert volume_loader.load_provider(name).options() is not None
