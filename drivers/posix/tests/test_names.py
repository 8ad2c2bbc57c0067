"""How keys become paths: the form is for ever, so these are fixed examples and the rules behind them."""

from __future__ import annotations

import os

import pytest
from backupfw_posix.names import PART_BYTES, location, understand
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("key", "path"),
    [
        ("a", "a.o"),
        ("a/b", "a.d/b.o"),
        ("a.o/b.d", "a.o.d/b.d.o"),
        ("0.1-3f/0000002a/p0000", "0.1-3f.d/0000002a.d/p0000.o"),
        ("x" * 239, "x" * 239 + ".o"),
        ("x" * 240, "x" * 240 + ".c/.o"),
        ("x" * 240 + "/y", "x" * 240 + ".c/.d/y.o"),
        ("x" * 500, "x" * 240 + ".c/" + "x" * 240 + ".c/" + "x" * 20 + ".o"),
        ("x" * 239 + "\u00e9", "x" * 239 + ".c/\u00e9.o"),
    ],
)
def test_fixed_examples(key: str, path: str) -> None:
    folders, name = location(key)
    assert b"/".join([*folders, name]).decode() == path


PARTS = st.one_of(
    st.text(
        st.characters(blacklist_characters="/", blacklist_categories=("Cs", "Cc")), min_size=1, max_size=6
    ),
    st.builds(
        lambda size, tail: "x" * size + tail,
        st.integers(234, 243),
        st.text(st.sampled_from("a!/\u00e9\u20ac\U0001f642".replace("/", "")), max_size=3),
    ),
).filter(lambda part: part not in (".", ".."))
KEYS = st.lists(PARTS, min_size=1, max_size=3).map("/".join)


@given(KEYS, KEYS)
def test_different_keys_never_share_a_path(one: str, other: str) -> None:
    assert (location(one) == location(other)) == (one == other)


@given(KEYS)
def test_every_name_fits_a_file_system_and_stays_in_its_directory(key: str) -> None:
    folders, name = location(key)
    for each in (*folders, name):
        assert len(each) <= 255
        assert each.decode()
        assert b"/" not in each
        assert each not in (b".", b"..", b".tmp")


@given(KEYS)
def test_paths_lead_back_to_the_key(key: str) -> None:
    folders, name = location(key)
    found = ""
    in_longer = False
    for each in (*folders, name):
        known = understand(os.fsdecode(each), in_longer)
        assert known is not None
        found += known.text + ("/" if known.kind.value == ".d" else "")
        in_longer = known.kind.value == ".c"
    assert found == key


@given(st.lists(KEYS, unique=True, max_size=12))
def test_names_in_a_directory_sort_as_the_keys_do(keys: list[str]) -> None:
    def ordered(paths: list[tuple[tuple[str, ...], str]], in_longer: bool) -> list[str]:
        groups: dict[str, list[tuple[tuple[str, ...], str]]] = {}
        for path, key in paths:
            groups.setdefault(path[0], []).append((path[1:], key))
        found = []
        for name in sorted(groups, key=lambda name: understand(name, in_longer).order):
            below = groups[name]
            found += [key for path, key in below if not path]
            found += ordered([each for each in below if each[0]], name.endswith(".c"))
        return found

    paths = []
    for key in keys:
        folders, name = location(key)
        paths.append((tuple(os.fsdecode(each) for each in (*folders, name)), key))
    assert ordered(paths, in_longer=False) == sorted(keys, key=str.encode)


@pytest.mark.parametrize(
    "name",
    [
        ".tmp",
        "a",
        "a.txt",
        "lost+found",
        ".o",
        "..o",
        "...o",
        ".d",
        "short.c",
        "x" * 240 + ".o",
        "\udcff.o",
        "o",
        "",
    ],
)
def test_foreign_names_are_not_objects(name: str) -> None:
    assert understand(name, in_longer=False) is None


def test_the_cut_stays_where_it_is() -> None:
    # Stores in use depend on it.
    assert PART_BYTES == 240
