"""The operator's check of a volume back end finds what is wrong, and leaves nothing, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from backupfw_template_volume.provider import TemplateProvider
from rack import Rack

from backupfw.chunkstore.options import option_values
from backupfw.errors import OperationNotSupported
from backupfw.volume.base import Storage
from backupfw.volume.check import check

PROVEN = [
    ("makes a volume", True),
    ("writes and reads it", True),
    ("knows what changed, and removes the points that are not needed", True),
    ("keeps an earlier writer out", True),
    ("takes a snapshot, which does not change when the volume is written", True),
    ("extends the volume, with zeros", True),
    ("deletes both", True),
]


@pytest.fixture
def rack() -> Iterator[Rack]:
    rack = Rack("key")
    yield rack
    rack.stop()


def provider(rack: Rack, kind: type[TemplateProvider] = TemplateProvider) -> TemplateProvider:
    return kind(option_values(TemplateProvider.options(), endpoint=rack.endpoint, key="key"))


def test_a_good_back_end_is_proven(rack: Rack) -> None:
    assert list(check(provider(rack))) == PROVEN
    assert rack.names() == set()


@pytest.mark.parametrize("steps", range(1, 7))
def test_a_check_that_is_interrupted_leaves_nothing(rack: Rack, steps: int) -> None:
    with closing(check(provider(rack))) as proven:
        assert [next(proven) for _ in range(steps)] == PROVEN[:steps]
    assert rack.names() == set()


class Forgetful(TemplateProvider):
    """Takes everything for unchanged."""

    def open_point(self, *arguments: Any) -> Any:
        from backupfw.volume.base import Extent, Kind

        point = super().open_point(*arguments)
        point.extents = lambda start, end, since=None: iter([Extent(start, end - start, Kind.SAME)])  # type: ignore[method-assign]
        return point


class Tidy(TemplateProvider):
    """Keeps no point."""

    def open_point(self, *arguments: Any) -> Any:
        point = super().open_point(*arguments)
        close = point.close
        point.close = lambda keep=False: close()  # type: ignore[method-assign]
        return point


class Untidy(TemplateProvider):
    """Removes no point, but with its volume."""

    def keep_points(self, volume: Any, needed: Any) -> None:
        if not needed().compared and not self._deleting:
            return
        super().keep_points(volume, needed)

    _deleting = False

    def delete(self, volume: Any) -> None:
        self._deleting = True
        super().delete(volume)


class Open(TemplateProvider):
    """Lets every writer write."""

    def open_target(self, volume: Any, attempt: int) -> Any:
        opened = super().open_target(volume, attempt)
        opened.thing._writer = self._writers.setdefault(volume.id, opened.thing._writer)  # type: ignore[attr-defined]
        self._rack.disks[f"backupfw-volume-{volume.id}"].writer = self._writers[volume.id]
        return opened

    _writers: dict[str, str]
    _rack: Rack


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        (Forgetful, "what was written is said to be same"),
        (Tidy, "a point that is kept cannot be compared with: its snapshot is gone"),
        (Untidy, "a point that was removed is compared with"),
        (Open, "other bytes were read than were written"),
    ],
)
def test_what_is_wrong_is_found(rack: Rack, kind: type[TemplateProvider], problem: str) -> None:
    broken: Any = provider(rack, kind)
    broken._writers, broken._rack = {}, rack
    with pytest.raises(OSError, match=problem):
        list(check(broken))
    assert rack.names() == set()


class Adopting(TemplateProvider):
    """Makes no volumes."""

    def create(self, *arguments: Any) -> str:
        raise OperationNotSupported("volumes are adopted")


class Unlisted(Adopting):
    """Lists none, either."""

    def adoptable(self) -> Iterator[Storage]:
        raise OperationNotSupported("nothing is listed")


def test_a_back_end_that_makes_no_volumes(rack: Rack) -> None:
    nothing_made = ("it makes no volumes: they are adopted", False)
    assert list(check(provider(rack, Unlisted))) == [
        nothing_made,
        ("it does not list what can be adopted", False),
    ]
    assert list(check(provider(rack, Adopting))) == [nothing_made, ("lists what can be adopted", True)]
