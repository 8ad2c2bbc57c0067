"""The conformance suite on a real cluster."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from typing import ClassVar

import pytest
from backupfw_rbd.places import Place
from backupfw_rbd.provider import RbdProvider

from backupfw.testing.volume import VolumeProviderTests, adopted, created
from backupfw.volume.base import VolumeProvider, VolumeRef
from tests.servers import rbd_images as other
from tests.servers.ceph import Ceph

pytestmark = pytest.mark.server


class TestRbdProvider(VolumeProviderTests):
    """Adopted images with small objects, in a namespace; and those that the provider makes."""

    provider_class = RbdProvider
    # Some dozens of objects.
    length: ClassVar[int] = 3_000_017
    grain: ClassVar[int] = 1 << other.ORDER
    model_examples: ClassVar[int] = 3
    kills: ClassVar[int] = 3

    def make_volume(self, server: Ceph, provider: VolumeProvider, length: int) -> VolumeRef:
        return adopted(provider, self.adoptable(server, length))

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Ceph]:
        with other.running_cluster() as cluster:
            keyring = (cluster.base / "keyring.backupfw").read_text()
            cls.secrets = (keyring.split()[-1],)
            yield cluster

    def options(self, server: Ceph) -> Mapping[str, object]:
        return other.options(server, fence_wait=5)

    def place(self, volume: VolumeRef) -> Place:
        return Place.parse(volume.location or "")

    def raw_write(self, server: Ceph, volume: VolumeRef, offset: int, data: bytes) -> None:
        with other.image(server, self.place(volume)) as image:
            image.write(data, offset)

    def raw_read(self, server: Ceph, volume: VolumeRef, offset: int, length: int) -> bytes:
        with other.image(server, self.place(volume), write=False) as image:
            return bytes(image.read(offset, length))

    def raw_names(self, server: Ceph) -> Collection[str]:
        return other.names(server, locks=False)

    def adoptable(self, server: Ceph, length: int) -> str:
        return str(other.make_image(server, length, namespace=other.SPACE))

    def remove_volume(self, server: Ceph, provider: VolumeProvider, volume: VolumeRef) -> None:
        if volume.adopted:
            other.remove_image(server, self.place(volume))
        provider.delete(volume)

    def discard(self, server: Ceph, volume: VolumeRef, offset: int, length: int) -> None:
        with other.image(server, self.place(volume)) as image:
            image.write_zeroes(offset, length)

    def grow(self, server: Ceph, volume: VolumeRef, length: int) -> None:
        with other.image(server, self.place(volume)) as image:
            image.resize(length)

    shrink = grow

    def lose(self, server: Ceph, volume: VolumeRef) -> None:
        other.remove_image(server, self.place(volume))

    def swap(self, server: Ceph, volume: VolumeRef) -> None:
        self.lose(server, volume)
        other.make_image(
            server, volume.length, self.place(volume).image, namespace=self.place(volume).namespace
        )

    def foreign(self, server: Ceph, volume: VolumeRef) -> str:
        # As the driver of cinder-backup for Ceph makes it.
        name = f"backup.{uuid.uuid4()}.snap.1764381566.12"
        with other.image(server, self.place(volume)) as image:
            image.create_snap(name)
        return f"{self.place(volume)}@{name}"

    def remove_foreign(self, server: Ceph, volume: VolumeRef, name: str) -> None:
        with other.image(server, self.place(volume)) as image:
            image.remove_snap(name.partition("@")[2])

    def restart_server(self, server: Ceph) -> None:
        server.restart_monitor()


@pytest.mark.soak
class TestImagesOfItsOwn(TestRbdProvider):
    """Images that the provider makes, with objects of 4 MiB."""

    length: ClassVar[int] = 100_000_017
    grain: ClassVar[int] = 4 << 20
    model_examples: ClassVar[int] = 6

    def make_volume(self, server: Ceph, provider: VolumeProvider, length: int) -> VolumeRef:
        return created(provider, length)
