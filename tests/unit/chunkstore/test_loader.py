"""Finding, judging and opening drivers."""

from __future__ import annotations

import sys
import textwrap
from importlib import metadata
from pathlib import Path

import pytest
from stevedore import _cache as stevedore_cache
from stevedore.extension import ExtensionManager

from backupfw import plugins
from backupfw.chunkstore.base import API_VERSION, Body
from backupfw.chunkstore.layers.base import driver_of
from backupfw.chunkstore.layers.stack import layers_of
from backupfw.chunkstore.loader import installed_drivers, load_driver, open_store
from backupfw.chunkstore.memory import MemoryStore
from backupfw.chunkstore.options import option_values
from backupfw.errors import ConfigError
from backupfw.plugins import PluginInfo


class Site:
    """A folder of installed distributions, as pip leaves them."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def install(self, distribution: str, driver: str, module: str, source: str) -> None:
        (self.path / f"{module}.py").write_text(textwrap.dedent(source))
        info = self.path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[backupfw.chunkstore]\n{driver} = {module}:Store\n")


GOOD = """
    from backupfw.chunkstore.memory import MemoryStore
    class Store(MemoryStore):
        wire_name = "example.Store"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    # What was found is kept in the process, and by stevedore in the user's cache; neither must be touched
    # here.
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stevedore_cache, "_c", stevedore_cache.Cache())
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})
    monkeypatch.setattr(plugins, "entry_points", lambda group: metadata.entry_points(group=group))
    before = set(sys.modules)
    yield Site(folder)
    for name in set(sys.modules) - before:
        if name.startswith("example_"):
            del sys.modules[name]


def info_of(name: str) -> list[PluginInfo]:
    return [info for info in installed_drivers() if info.name == name]


def test_drivers_of_this_checkout() -> None:
    assert load_driver("memory") is MemoryStore
    (info,) = info_of("memory")
    assert info == PluginInfo(
        "memory",
        "backupfw.chunkstore.memory:MemoryStore",
        "backupfw",
        metadata.version("backupfw"),
        API_VERSION,
        None,
    )
    assert [info.name for info in installed_drivers()] == sorted(info.name for info in installed_drivers())


def test_a_third_partys_driver(site: Site) -> None:
    site.install("example-store", "example", "example_good", GOOD)
    assert info_of("example") == [
        PluginInfo("example", "example_good:Store", "example-store", "1.2", API_VERSION, None)
    ]
    assert load_driver("example").wire_name == "example.Store"


def test_an_unknown_driver_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="memory"):
        load_driver("nobody")


def test_two_distributions_with_one_name(site: Site) -> None:
    site.install("example-one", "example", "example_one", GOOD)
    site.install("example-two", "example", "example_two", GOOD)
    with pytest.raises(ConfigError) as caught:
        load_driver("example")
    assert "example-one" in str(caught.value)
    assert "example-two" in str(caught.value)
    infos = info_of("example")
    assert [info.distribution for info in infos] == ["example-one", "example-two"]
    assert all("example-two" in info.problem for info in infos)
    # Others are not concerned.
    assert load_driver("memory") is MemoryStore


def test_nobody_takes_the_name_of_an_in_tree_driver(site: Site) -> None:
    site.install("example-thief", "memory", "example_thief", GOOD)
    with pytest.raises(ConfigError, match="example-thief"):
        load_driver("memory")


def test_another_version_of_the_contract(site: Site) -> None:
    site.install("example-old", "example", "example_old", GOOD + "        API_VERSION = 99\n")
    with pytest.raises(ConfigError, match="99"):
        load_driver("example")
    (info,) = info_of("example")
    assert "99" in info.problem


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("import no_such_module_at_all", "no_such_module_at_all"),
        ("raise RuntimeError('bad luck')", "bad luck"),
        ("Other = 1", "Store"),
        ("Store = dict", "not a ChunkStore"),
        ("from backupfw.chunkstore.base import ChunkStore\nclass Store(ChunkStore): pass", "wire_name"),
    ],
)
def test_drivers_that_cannot_be_used(site: Site, source: str, says: str) -> None:
    site.install("example-bad", "example", "example_bad", source)
    with pytest.raises(ConfigError, match=says):
        load_driver("example")
    (info,) = info_of("example")
    assert says in info.problem
    assert load_driver("memory") is MemoryStore


def test_an_opened_store_has_all_layers_and_its_options() -> None:
    store = open_store("main", "memory", None, option_values([]), stop=lambda: False)
    assert len(layers_of(store)) == 6
    driver = driver_of(store)
    assert isinstance(driver, MemoryStore)
    assert driver.name == "main"
    store.ensure_container("c")
    store.put("c", "key", Body.from_bytes(b"x"))
    assert store.get("c", "key") == b"x"
    store.close()
