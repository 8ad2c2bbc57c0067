"""The options, what the README tells of them, and what happens without librbd."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from backupfw_rbd import cluster
from backupfw_rbd.cluster import Connection, key_in, version_problem
from backupfw_rbd.places import Place, point_name, point_of, same_point
from backupfw_rbd.provider import RbdProvider

from backupfw.chunkstore.options import ConfigError, option_values
from backupfw.errors import InvalidInput
from backupfw.testing.readme import require_options_table
from backupfw.volume import system

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pools", []),
        ("pools", ["a/b/c"]),
        ("pools", ["a/"]),
        ("pools", ["a@b"]),
        ("pools", ["x" * 256]),
        ("ceph_conf", "not/absolute"),
        ("keyring", "not/absolute"),
        ("user", ""),
        ("user", "a\nb"),
        ("timeout", "0"),
        ("fence_wait", "-1"),
    ],
)
def test_values_that_cannot_be(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        RbdProvider(option_values(RbdProvider.options(), **{"pools": ["volumes"], name: value}))


def test_without_a_configuration_the_monitors_are_needed() -> None:
    with pytest.raises(ConfigError, match="mon_host"):
        RbdProvider(option_values(RbdProvider.options(), pools=["volumes"], ceph_conf=""))


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, RbdProvider.options())


def test_without_librbd_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster.bindings.cache_clear()
    monkeypatch.setattr(system, "PLACES", (str(tmp_path),))
    monkeypatch.delitem(sys.modules, "rados", raising=False)
    with pytest.raises(ConfigError, match="python3-rbd"):
        RbdProvider(option_values(RbdProvider.options(), pools=["volumes"]))


@pytest.mark.parametrize(
    "text",
    ["rbd:pool/image", "rbd:pool/space/image", "rbd:pool/image@snapshot", "rbd:pool/space/im age:1@s.n-a p"],
)
def test_paths_that_are_places(text: str) -> None:
    assert str(Place.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "", "rbd:", "rbd:pool", "rbd:/image", "rbd:pool/", "rbd:a/b/c/d", "pool/image", "/rbd:pool/image",
        "rbd:pool/image@", "rbd:pool/image@a@b", "rbd:pool/ima\nge", "rbd:pool/\0", "rbd:pool/" + "x" * 300,
        "rbd:pool/image@a/b",
    ],
)  # fmt: skip
def test_paths_that_are_no_places(text: str) -> None:
    with pytest.raises(InvalidInput):
        Place.parse(text)


def test_names_of_points_are_ours_alone() -> None:
    name = point_name("p-1", "v-1")
    assert point_of(name, "v-1") == "p-1"
    assert point_of(name, "v-2") is None
    assert point_of("backup.p-1.snap.1764381566.12", "v-1") is None
    assert same_point(name, "backup.p-1.snap.1764381566.12.backupfw.v-1")
    assert not same_point(name, point_name("p-2", "v-1"))
    assert not same_point(name, point_name("p-1", "v-2"))
    assert not same_point("other", "other")
    assert not same_point(name, None)
    with pytest.raises(InvalidInput):
        point_name("a/b", "v-1")


@pytest.mark.parametrize("version", ["15.2.17", "16.2.13", "17.2.6", "18.1.3", "9.0.0", "later"])
def test_releases_that_may_miss_changes(version: str) -> None:
    assert version_problem(version) is not None


@pytest.mark.parametrize("version", ["16.2.14", "16.2.15", "17.2.7-1", "18.2.0", "19.0.0", "20.1.0"])
def test_releases_that_do_not(version: str) -> None:
    assert version_problem(version) is None


def test_the_key_of_a_keyring_is_shown_nowhere() -> None:
    key = key_in("[client.other]\n\tkey = no\n[client.backup]\n\tkey = c2VjcmV0==\n", "backup")
    assert key == "c2VjcmV0=="
    assert key not in repr(Connection(None, "backup", key=key))
    for text in ("", "key = c2VjcmV0==", "[client.other]\nkey = c2VjcmV0=="):
        with pytest.raises(InvalidInput) as caught:
            key_in(text, "backup")
        assert key not in repr(caught.value)
