"""Listing directories: order, and memory when one has very many entries."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from backupfw_posix import listing
from backupfw_posix.names import Kind, Name, location, understand
from hypothesis import given, settings
from hypothesis import strategies as st

ENTRIES = 20_000

#: Characters of every length in UTF-8, and those that sort around ``/``.
_CHARACTERS = "\x01-.0a\x7f\x80\u00e9\u07ff\u0800\uffff\U00010000\U0010ffff"
_parts = st.builds(
    lambda start, length, rest: start + "x" * length + rest,
    st.text(_CHARACTERS, min_size=1, max_size=3),
    st.sampled_from((0, 0, 0, 230, 232, 234, 236, 237, 238, 239, 240)),
    st.text(_CHARACTERS, max_size=3),
).filter(lambda part: part not in (".", ".."))
_keys = st.lists(_parts, min_size=1, max_size=3).map("/".join)


def walk(directory: Path, prefix: str = "", start_after: str = "") -> Iterator[str]:
    @contextmanager
    def opened() -> Iterator[int]:
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    return (info.key for info in listing.walk(opened, prefix, start_after))


@settings(max_examples=60, deadline=None)
@given(keys=st.sets(_keys, min_size=1, max_size=12), data=st.data())
def test_order_prefix_and_start(
    tmp_path_factory: pytest.TempPathFactory, keys: set[str], data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("root")
    for key in keys:
        folders, name = location(key)
        folder = root.joinpath(*map(os.fsdecode, folders))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / os.fsdecode(name)).touch()
    prefix = data.draw(st.sampled_from(sorted(keys)))
    prefix = prefix[: data.draw(st.integers(0, len(prefix)))]
    start_after = data.draw(st.sampled_from(["", *sorted(keys)]))
    expected = [
        key
        for key in sorted(keys, key=str.encode)
        if key.startswith(prefix) and key.encode() > start_after.encode()
    ]
    assert list(walk(root, prefix, start_after)) == expected


@settings(max_examples=60, deadline=None)
@given(keys=st.sets(_keys, min_size=2))
def test_packed_names_sort_and_come_back(keys: set[str]) -> None:
    names = set()
    for key in keys:
        folders, name = location(key)
        for raw in (*folders, name):
            known = understand(os.fsdecode(raw), in_longer=True)
            assert known is not None
            assert known.raw(plain=False) == raw
            assert Name.unpack(known.pack()) == known
            names.add(known)
    assert sorted(names, key=Name.pack) == sorted(names, key=lambda known: known.order.encode())


@pytest.mark.parametrize("missing", [0, 1, 2, 3])
def test_a_packed_piece_of_a_long_part_comes_back(missing: int) -> None:
    known = understand("x" * (240 - missing) + ".c", in_longer=False)
    assert known is not None
    assert known.kind is Kind.LONGER
    assert Name.unpack(known.pack()) == known


def test_memory_is_about_the_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "listdir", lambda _: [f"{number * 7919 % ENTRIES:032x}.o" for number in range(ENTRIES)]
    )
    # What is looked up has to be there, which is the first run only.
    for number in range(1000):
        (tmp_path / f"{number:032x}.o").touch()
    tracemalloc.start()
    try:
        found = walk(tmp_path)
        assert next(found) == f"{0:032x}"
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # A name has 34 bytes, an object in memory some 40 more, and a run of a thousand is understood.
    assert peak < 200 * ENTRIES
    assert kept < 150 * ENTRIES
