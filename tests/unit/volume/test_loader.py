"""Finding providers by entry point."""

from __future__ import annotations

import importlib
import sys
from importlib import metadata
from pathlib import Path

import pytest
from stevedore import ExtensionManager, _cache

from backupfw import plugins
from backupfw.errors import ConfigError
from backupfw.volume.base import VolumeProvider
from backupfw.volume.loader import PROVIDERS, load_provider
from backupfw.volume.local.provider import LocalProvider

_MODULE = """
from backupfw.volume.base import VolumeProvider
class Good(VolumeProvider):
    API_VERSION = 2
class Old(VolumeProvider):
    API_VERSION = 1
class Silent(VolumeProvider):
    pass
class Heir(Good):
    pass
thing = 5
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of installed distributions."""
    (tmp_path / "fake_providers.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    # What was found is kept for a process; a test's distributions come and go.
    monkeypatch.setattr(ExtensionManager, "ENTRY_POINT_CACHE", {})
    monkeypatch.setattr(plugins, "entry_points", lambda group: metadata.entry_points(group=group))
    monkeypatch.setattr(_cache, "_c", _cache.Cache())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delitem(sys.modules, "fake_providers", raising=False)
    return tmp_path


def install(site: Path, distribution: str, **points: str) -> None:
    """Install a distribution with entry points ``name=attribute``."""
    info = site / f"{distribution}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = fake_providers:{attribute}" for name, attribute in points.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{PROVIDERS.group}]", *lines]))
    importlib.invalidate_caches()


def test_the_local_provider_is_installed() -> None:
    assert "local" in PROVIDERS.names()
    assert load_provider("local") is LocalProvider


@pytest.mark.parametrize("attribute", ["Good", "Heir"])
def test_a_third_party_provider_is_found(site: Path, attribute: str) -> None:
    install(site, "third", theirs=attribute)
    assert "theirs" in PROVIDERS.names()
    found = load_provider("theirs")
    assert issubclass(found, VolumeProvider)
    assert found.__name__ == attribute


def test_an_unknown_name_lists_what_is_there(site: Path) -> None:
    install(site, "third", theirs="Good")
    with pytest.raises(ConfigError, match=r"'nothing'.*local.*theirs"):
        load_provider("nothing")


@pytest.mark.parametrize(
    ("attribute", "text"),
    [
        ("Old", "written for version 1 of .* has version 2"),
        ("Silent", "no declared version"),
        ("thing", "is not a VolumeProvider"),
        ("missing", "of distribution third cannot be loaded: AttributeError"),
    ],
)
def test_what_is_no_provider_of_this_contract_is_refused(site: Path, attribute: str, text: str) -> None:
    install(site, "third", theirs=attribute)
    with pytest.raises(ConfigError, match=text):
        load_provider("theirs")


def test_two_distributions_with_one_name_are_refused(site: Path) -> None:
    install(site, "third", theirs="Good")
    install(site, "fourth", theirs="Heir")
    with pytest.raises(ConfigError, match=r"fourth \(.*\) and third \(.*\)"):
        load_provider("theirs")
