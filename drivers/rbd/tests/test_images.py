"""Adoption, other programs that have an image open, and a cluster that does not answer."""

from __future__ import annotations

import errno
import gc
import re
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime, timedelta
from typing import NoReturn

import pytest
from backupfw_rbd import images
from backupfw_rbd.cluster import Opened, bindings, metadata_of
from backupfw_rbd.places import Place
from backupfw_rbd.provider import RbdProvider

from backupfw.chunkstore.options import option_values
from backupfw.errors import InvalidInput, InvalidVolume, StorageChanged, TargetError
from backupfw.testing.volume import adopted
from backupfw.volume.base import Needed, SnapshotRef, VolumeRef
from tests.servers import rbd_images
from tests.servers.ceph import Ceph

pytestmark = pytest.mark.server

LENGTH = 10 << rbd_images.ORDER


@pytest.fixture
def path(cluster: Ceph) -> Iterator[str]:
    place = rbd_images.make_image(cluster, LENGTH)
    yield str(place)
    rbd_images.remove_image(cluster, place)


def test_what_cannot_be_adopted(cluster: Ceph, provider: RbdProvider, path: str) -> None:
    for wrong in (f"{path}x", f"{path}@nothing", "rbd:elsewhere/image", "rbd:volumes/other/image"):
        with pytest.raises(InvalidInput):
            provider.adopt(wrong)


def test_an_image_that_somebody_has_open(cluster: Ceph, provider: RbdProvider, path: str) -> None:
    with rbd_images.image(cluster, path) as image:
        with pytest.raises(InvalidInput, match="--in-use"):
            provider.adopt(path)
        ref = VolumeRef(str(uuid.uuid4()), LENGTH, path, True, provider.adopt(path, in_use=True).storage_id)
        # Nobody is pushed out, and what is written is not lost.
        with pytest.raises(TargetError), provider.open_target(ref, 1):
            pass
        image.write(b"mine", 0)
        provider.open_point(ref, "p").close()
    with provider.open_target(ref, 1) as target:
        target.write(0, [b"ours"])


def test_a_point_that_nobody_closes_does_no_harm(provider: RbdProvider, path: str) -> None:
    """Without its connection, librbd would wait for ever to close the image."""
    point = provider.open_point(adopted(provider, path), "p")
    # As tracebacks do.
    point.itself = point  # type: ignore[attr-defined]
    del point
    assert gc.collect()


def test_nobody_writes_beside_a_restore(cluster: Ceph, provider: RbdProvider, path: str) -> None:
    ref = adopted(provider, path)
    _, rbd = bindings()
    with provider.open_target(ref, 1) as target:
        with rbd_images.image(cluster, path) as image, pytest.raises(rbd.ReadOnlyImage):
            image.lock_acquire(rbd.RBD_LOCK_MODE_EXCLUSIVE)
        target.write(0, [b"ours"])
    assert [name for name in rbd_images.names(cluster) if name.startswith(path)] == [path]


def test_an_earlier_writer_stays_out_however_long_it_sleeps(
    cluster: Ceph, provider: RbdProvider, path: str
) -> None:
    ref = adopted(provider, path)
    with provider.open_target(ref, 1) as earlier, provider.open_target(ref, 2) as later:
        with pytest.raises(OSError):
            earlier.write(0, [b"old"])
        later.write(0, [b"new"])
    with rbd_images.administrator(cluster).connected() as connected:
        _, told, _ = connected.mon_command('{"prefix": "osd blocklist ls"}', b"")
    (until,) = re.findall(r"\d{4}-\d\d-\d\dT[\d:]+", told.decode())
    assert datetime.fromisoformat(until) > datetime.now() + timedelta(days=300)


def test_a_writer_that_is_pushed_out_while_it_begins(cluster: Ceph, path: str) -> None:
    """A later attempt may block it between its look at the image and its listing of what is noted there."""
    connection = rbd_images.administrator(cluster)
    with closing(Opened(connection, Place.parse(path), write=True)) as opened, opened as image:
        with rbd_images.administrator(cluster).connected() as other:
            other.blocklist_add(opened.address, 60)
            other.wait_for_latest_osdmap()
        opened.cluster.wait_for_latest_osdmap()
        with pytest.raises(OSError, match="cannot be listed"):
            metadata_of(image)


def test_a_point_that_cannot_be_removed_is_told(cluster: Ceph, provider: RbdProvider, path: str) -> None:
    """So the service tries it again; the others go all the same."""
    ref = adopted(provider, path)
    for name in ("one", "two", "three"):
        provider.open_point(ref, name).close(keep=True)
    with rbd_images.image(cluster, path) as image:
        (name,) = [each["name"] for each in image.list_snaps() if ".two." in each["name"]]
        image.protect_snap(name)
        with pytest.raises(OSError, match="removing the snapshot"):
            provider.keep_points(ref, Needed)
        assert [each["name"] for each in image.list_snaps()] == [name]
        image.unprotect_snap(name)
    provider.keep_points(ref, Needed)
    assert [one for one in rbd_images.names(cluster) if one.startswith(path)] == [path]


def test_an_adopted_snapshot_is_only_read(cluster: Ceph, provider: RbdProvider, path: str) -> None:
    with rbd_images.image(cluster, path) as image:
        image.write(b"then", 0)
        image.create_snap("then")
        image.write(b"now!", 0)
    ref = adopted(provider, f"{path}@then")
    tokens = []
    for name in ("one", "two"):
        with provider.open_point(ref, name) as point:
            found = bytearray(4)
            point.read_into(0, memoryview(found))
            assert found == b"then"
            assert point.storage_id == ref.storage_id
            tokens.append(point.token)
            assert point.compare(tokens[0] or "") is None
    assert len(set(tokens)) == 1
    for use in (
        lambda: provider.open_target(ref, 1),
        lambda: provider.extend(ref, 2 * LENGTH),
        lambda: provider.create_snapshot(SnapshotRef("s", ref, LENGTH), False),
    ):
        with pytest.raises(InvalidVolume):
            use()
    with rbd_images.image(cluster, path) as image:
        image.remove_snap("then")
    with pytest.raises(StorageChanged):
        provider.look(ref)


def test_a_renamed_image_is_gone_until_it_is_adopted_again(
    cluster: Ceph, provider: RbdProvider, path: str
) -> None:
    ref = adopted(provider, path)
    _, rbd = bindings()
    name = path.rpartition("/")[2]
    with rbd_images.pool(cluster) as io:
        rbd.RBD().rename(io, name, f"{name}-new")
    with pytest.raises(StorageChanged, match="is gone"):
        provider.look(ref)
    assert provider.adopt(f"{path}-new").storage_id == ref.storage_id
    with rbd_images.pool(cluster) as io:
        rbd.RBD().rename(io, f"{name}-new", name)


def test_a_volume_without_the_exclusive_lock_is_read_but_not_written(
    cluster: Ceph, provider: RbdProvider
) -> None:
    place = rbd_images.make_image(cluster, LENGTH, features="layering")
    ref = adopted(provider, str(place))
    provider.open_point(ref, "p").close()
    with pytest.raises(InvalidVolume, match="exclusive-lock"):
        provider.open_target(ref, 1)
    rbd_images.remove_image(cluster, place)


def test_the_pools_are_listed(cluster: Ceph, provider: RbdProvider, path: str) -> None:
    other = rbd_images.make_image(cluster, 77, namespace=rbd_images.SPACE)
    found = {storage.location: storage.length for storage in provider.adoptable()}
    assert (found[path], found[str(other)]) == (LENGTH, 77)
    rbd_images.remove_image(cluster, other)


def test_a_cluster_that_does_not_answer_is_an_error(cluster: Ceph, path: str) -> None:
    options = rbd_images.options(cluster, timeout=2)
    provider = RbdProvider(option_values(RbdProvider.options(), **options))
    ref = adopted(provider, path)
    with rbd_images.image(cluster, path) as image:
        image.write(b"some", 0)
    with provider.open_point(ref, "p") as point:
        for server in (cluster.osd, cluster.monitor):
            server.send_signal(signal.SIGSTOP)
            try:
                with pytest.raises(OSError):
                    provider.look(ref)
            finally:
                server.send_signal(signal.SIGCONT)
        cluster.osd.send_signal(signal.SIGSTOP)
        try:
            with pytest.raises(TimeoutError):
                point.read_into(0, memoryview(bytearray(10)))
        finally:
            cluster.osd.send_signal(signal.SIGCONT)
        point.read_into(0, memoryview(bytearray(10)))


def test_a_cluster_that_goes_away_in_between_is_an_error_that_may_pass(
    provider: RbdProvider, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one of the bindings' own, which nobody tries again."""
    ref = adopted(provider, path)
    own = VolumeRef("mine", LENGTH, path)

    def time_out(*_: object) -> NoReturn:
        raise bindings()[1].Timeout("no answer", errno=errno.ETIMEDOUT)

    monkeypatch.setattr(images, "snapshots", time_out)
    for use in (
        lambda: provider.open_point(ref, "p"),
        lambda: provider.keep_points(ref, Needed),
        lambda: provider.create_snapshot(SnapshotRef("s", ref, LENGTH), False),
        lambda: provider.delete(own),
    ):
        with pytest.raises(TimeoutError):
            use()


def test_a_wrong_key_is_not_shown(cluster: Ceph, path: str) -> None:
    keyring = cluster.base / "keyring.wrong"
    secret = "AQBUYxxlAAAAABAAq8u0cKBzX3rR5s7sW6n1aQ=="
    keyring.write_text(f"[client.backupfw]\n\tkey = {secret}\n")
    options = rbd_images.options(cluster, keyring=str(keyring), timeout=3)
    provider = RbdProvider(option_values(RbdProvider.options(), **options))
    with pytest.raises(OSError) as caught:
        list(provider.adoptable())
    assert secret not in str(caught.value)
    with pytest.raises(InvalidInput) as refused:
        provider.adopt(path)
    assert secret not in str(refused.value)
