"""What is said of an image and its changes, whatever happened to it; against the bytes that it has."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from backupfw_rbd.changes import Known
from backupfw_rbd.cluster import bindings
from backupfw_rbd.places import Place
from backupfw_rbd.provider import RbdProvider
from hypothesis import given, settings
from hypothesis import strategies as st

from backupfw.errors import SourceMoved
from backupfw.testing.volume import adopted
from backupfw.testing.volume.checking import check_compared, check_point, to_look_at
from backupfw.testing.volume.disk import Disk
from backupfw.volume.base import Kind, Needed, VolumeRef
from tests.servers import rbd_images
from tests.servers.ceph import Ceph

OBJECT = 1 << rbd_images.ORDER
LENGTH = 24 * OBJECT + 1000

FEATURES = "layering,exclusive-lock,object-map,fast-diff,deep-flatten"


class Image:
    """An image that other programs change, and its bytes; points of it are opened by the provider."""

    def __init__(self, server: Ceph, provider: RbdProvider, place: Place, disk: Disk) -> None:
        self.server = server
        self.provider = provider
        self.place = place
        self.disk = disk
        self.ref = adopted(provider, str(place))
        #: By token.
        self.points: dict[str, Disk] = {}
        #: Snapshots of other programs.
        self.snapshots: dict[str, Disk] = {}
        self.last = ""

    def play(self, step: tuple[Any, ...]) -> None:
        """Do what a step says."""
        what, *words = step
        if what == "point":
            self.point()
            return
        with rbd_images.image(self.server, self.place) as image:
            getattr(self, what)(image, *words)

    def write(self, image: Any, offset: int, length: int, byte: int) -> None:
        offset, length = self._fitting(offset, length)
        if length:
            image.write(bytes([byte]) * length, offset)
            self.disk.write(offset, bytes([byte]) * length)

    def discard(self, image: Any, offset: int, length: int) -> None:
        offset, length = self._fitting(offset, length)
        if length:
            image.write_zeroes(offset, length)
            self.disk.zero(offset, length)

    def resize(self, image: Any, length: int) -> None:
        image.resize(length)
        self.disk.resize(length)
        self.ref = VolumeRef(self.ref.id, length, self.ref.location, True, self.ref.storage_id)

    def snapshot(self, image: Any) -> None:
        name = f"other-{uuid.uuid4()}"
        image.create_snap(name)
        self.snapshots[name] = self.disk.copy()

    def rollback(self, image: Any, number: int) -> None:
        if self.snapshots:
            name = list(self.snapshots)[number % len(self.snapshots)]
            image.rollback_to_snap(name)
            self.disk = self.snapshots[name].copy()
            length = self.disk.length
            self.ref = VolumeRef(self.ref.id, length, self.ref.location, True, self.ref.storage_id)

    def forget(self, image: Any, number: int) -> None:
        if self.snapshots:
            name = list(self.snapshots)[number % len(self.snapshots)]
            image.remove_snap(name)
            del self.snapshots[name]

    def flatten(self, image: Any) -> None:
        if image.overlap():
            image.flatten()

    def point(self) -> None:
        """Take a point, and compare it with all that were taken before."""
        point = self.provider.open_point(self.ref, str(uuid.uuid4()))
        try:
            check_point(point, self.disk)
            assert point.token is not None
            for since, was in self.points.items():
                check_compared(point, self.disk, since, was, must=True)
            point.check_still()
            self.points[point.token] = self.disk.copy()
            self.last = point.token
        finally:
            point.close(keep=True)

    def remove(self) -> None:
        self.provider.keep_points(self.ref, Needed)
        rbd_images.remove_image(self.server, self.place)

    def _fitting(self, offset: int, length: int) -> tuple[int, int]:
        offset = min(offset, self.disk.length)
        return offset, min(length, self.disk.length - offset)


def plain(server: Ceph, provider: RbdProvider, features: str = FEATURES, **how: Any) -> Image:
    place = rbd_images.make_image(server, LENGTH, features=features, **how)
    return Image(server, provider, place, Disk(LENGTH))


def clone(server: Ceph, provider: RbdProvider, **how: Any) -> Image:
    """An image that inherits from a snapshot of another one, which has bytes here and there."""
    parent = plain(server, provider)
    with rbd_images.image(server, parent.place) as image:
        for offset in range(100, LENGTH - 5 * OBJECT, 3 * OBJECT):
            parent.write(image, offset, OBJECT + 17, 1 + offset % 255)
        image.create_snap("origin")
        image.protect_snap("origin")
    _, rbd = bindings()
    name = f"clone-{uuid.uuid4()}"
    with rbd_images.pool(server) as io:
        rbd.RBD().clone(
            io, parent.place.image, "origin", io, name,
            features=rbd.RBD().features_from_string(FEATURES), order=rbd_images.ORDER, **how,
        )  # fmt: skip
    return Image(server, provider, Place(rbd_images.POOL, name), parent.disk.copy())


#: Offsets near the bounds of objects, and anywhere.
OFFSETS = st.one_of(
    st.integers(0, LENGTH),
    st.builds(
        lambda number, by: max(0, number * OBJECT + by), st.integers(0, 24), st.sampled_from([-1, 0, 1, 512])
    ),
)
LENGTHS = st.sampled_from([1, 512, 4096, OBJECT - 1, OBJECT, OBJECT + 1, 3 * OBJECT, 9 * OBJECT + 5])
STEPS = st.one_of(
    st.tuples(st.just("write"), OFFSETS, LENGTHS, st.integers(0, 255)),
    st.tuples(st.just("write"), OFFSETS, LENGTHS, st.integers(0, 255)),
    st.tuples(st.just("discard"), OFFSETS, LENGTHS),
    st.tuples(st.just("resize"), st.sampled_from([1, 5 * OBJECT, 9 * OBJECT + 77, LENGTH, LENGTH + OBJECT])),
    st.just(("snapshot",)),
    st.tuples(st.just("rollback"), st.integers(0, 7)),
    st.tuples(st.just("forget"), st.integers(0, 7)),
    st.just(("flatten",)),
    st.just(("point",)),
    st.just(("point",)),
)

KINDS = {
    "plain": plain,
    "clone": clone,
    "stripes": lambda server, provider: plain(
        server, provider, stripe_unit=OBJECT // 4, stripe_count=3, features=f"{FEATURES},striping"
    ),
    "no object map": lambda server, provider: plain(server, provider, features="layering,exclusive-lock"),
}


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("examples", [2, pytest.param(60, marks=pytest.mark.soak)])
def test_any_history(cluster: Ceph, provider: RbdProvider, kind: str, examples: int) -> None:
    @settings(max_examples=examples)
    @given(st.lists(STEPS, min_size=5, max_size=25))
    def run(steps: list[tuple[Any, ...]]) -> None:
        image = KINDS[kind](cluster, provider)
        try:
            for step in [*steps[:3], ("point",), *steps[3:], ("point",)]:
                image.play(step)
        finally:
            image.remove()

    run()


@pytest.mark.server
def test_what_a_rollback_changed(cluster: Ceph, provider: RbdProvider) -> None:
    """The object map alone does not tell it."""
    image = plain(cluster, provider)
    image.play(("write", 0, 4096, 1))
    image.play(("snapshot",))
    image.play(("snapshot",))
    image.play(("write", 0, 4096, 2))
    image.play(("point",))
    image.play(("rollback", 1))
    image.play(("point",))
    image.remove()


@pytest.mark.server
def test_what_a_clone_no_longer_inherits(cluster: Ceph, provider: RbdProvider) -> None:
    """No object changes when a clone is made smaller and larger again, but its bytes do."""
    image = clone(cluster, provider)
    image.play(("point",))
    image.play(("resize", 5 * OBJECT))
    image.play(("resize", LENGTH))
    image.play(("point",))
    image.play(("flatten",))
    image.play(("point",))
    image.remove()


@pytest.mark.server
def test_little_is_looked_at(cluster: Ceph, provider: RbdProvider) -> None:
    image = plain(cluster, provider)
    for number in range(20):
        image.play(("write", number * OBJECT, OBJECT, 1))
    image.play(("point",))
    image.play(("write", 3 * OBJECT + 100, 512, 2))
    point = provider.open_point(image.ref, str(uuid.uuid4()))
    assert point.compare(image.last) is None
    extents = list(point.extents(0, point.length, image.last))
    point.close()
    # Ceph keeps the bytes of an object that changed by ranges.
    assert 512 <= to_look_at(extents) <= 4096
    image.remove()


@pytest.mark.server
def test_a_snapshot_that_is_removed_while_it_is_read(cluster: Ceph, provider: RbdProvider) -> None:
    """A point whose snapshot is removed while it is open can neither be compared nor trusted."""
    image = plain(cluster, provider)
    image.play(("write", 0, 4096, 1))
    image.play(("point",))
    point = provider.open_point(image.ref, "open")
    point.read_into(0, memoryview(bytearray(10)))
    point.check_still()
    provider.keep_points(image.ref, Needed)
    assert point.compare(image.last) == "its snapshot was removed"
    point.read_into(0, memoryview(bytearray(10)))
    with pytest.raises(SourceMoved) as caught:
        point.check_still()
    assert caught.value.may_pass
    point.close()
    image.remove()


RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted).map(tuple), max_size=8)


@given(RANGES, RANGES, st.integers(0, 70), st.integers(1, 70), st.sampled_from([Kind.ZERO, Kind.SAME]))
def test_extents_of_ranges(
    data: list[tuple[int, int]], zeros: list[tuple[int, int]], start: int, length: int, rest: Kind
) -> None:
    """In any order, overlapping, empty: every byte has the kind that it must have."""
    found = list(Known(data, zeros, rest).extents(start, start + length))
    at = start
    for extent in found:
        assert extent.offset == at
        assert extent.length > 0
        for byte in range(at, extent.end):
            wanted = rest
            if any(first <= byte < last for first, last in data):
                wanted = Kind.DATA
            elif any(first <= byte < last for first, last in zeros):
                wanted = Kind.ZERO
            assert extent.kind is wanted, byte
        at = extent.end
    assert at == start + length
