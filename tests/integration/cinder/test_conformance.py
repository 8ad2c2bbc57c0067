"""The conformance suite of volume providers, on volumes of a real Cinder."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
from backupfw_cinder.provider import CinderProvider
from backupfw_rbd.cluster import bindings
from backupfw_rbd.places import Place

from backupfw.testing.volume import VolumeProviderTests
from backupfw.volume.base import VolumeProvider, VolumeRef
from tests.integration.cinder.world import World
from tests.servers import rbd_images as other
from tests.servers.ceph import Ceph
from tests.servers.cinder import POOL

# It takes minutes; the suite of the provider rbd, which reads and writes the images, runs always.
pytestmark = [pytest.mark.server, pytest.mark.soak]

_MADE_THERE = "volumes are made in the Block Storage service"
_LONG_AS_IT_SAYS = "a volume is as long as the Block Storage service says"


@dataclass
class Volumes:
    """The Cinder; its volumes are used again, because it takes long to make one."""

    there: World
    free: list[str] = field(default_factory=list)

    @property
    def cluster(self) -> Ceph:
        return self.there.server.cluster

    def take(self) -> str:
        return self.free.pop() if self.free else self.there.volumes.create_volume(name="conformance")


def place(volume: VolumeRef) -> Place:
    return Place(POOL, f"volume-{volume.id}")


class TestCinderProvider(VolumeProviderTests):
    """Volumes whose images were made anew, with small objects and lengths that no Cinder makes."""

    provider_class = CinderProvider
    length: ClassVar[int] = 3_000_017
    grain: ClassVar[int] = 1 << other.ORDER
    model_examples: ClassVar[int] = 3
    kills: ClassVar[int] = 1
    declared: ClassVar[Mapping[str, str]] = {
        "create": _MADE_THERE,
        "extend": _MADE_THERE,
        "adoptable": _MADE_THERE,
        "swap": "the Block Storage service may move a volume, so its image may be another one",
        "restart_server": "the suite of the provider rbd restarts the cluster",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, there: World) -> Iterator[Volumes]:
        cls.secrets = (there.section["password"],)
        made = Volumes(there)
        # The helpers look into it, too.
        with other.pool(made.cluster) as io:
            bindings()[1].RBD().namespace_create(io, other.SPACE)
        yield made
        for volume_id in made.free:
            there.volumes.call("DELETE", f"/volumes/{volume_id}")

    def options(self, server: Volumes) -> Mapping[str, object]:
        return {
            **{name: str(value) for name, value in server.there.section.items() if name != "driver"},
            "rbd_pools": [POOL],
            "rbd_fence_wait": 5,
        }

    def make_volume(self, server: Volumes, provider: VolumeProvider, length: int) -> VolumeRef:
        volume = VolumeRef(server.take(), length, adopted=True)
        other.remove_image(server.cluster, place(volume))
        other.make_image(server.cluster, length, place(volume).image)
        return VolumeRef(volume.id, length, volume.id, adopted=True)

    def remove_volume(self, server: Volumes, provider: VolumeProvider, volume: VolumeRef) -> None:
        other.remove_image(server.cluster, place(volume))
        server.free.append(volume.id)

    def raw_write(self, server: Volumes, volume: VolumeRef, offset: int, data: bytes) -> None:
        with other.image(server.cluster, place(volume)) as image:
            image.write(data, offset)

    def raw_read(self, server: Volumes, volume: VolumeRef, offset: int, length: int) -> bytes:
        with other.image(server.cluster, place(volume), write=False) as image:
            return bytes(image.read(offset, length))

    def raw_names(self, server: Volumes) -> Collection[str]:
        found = set(other.names(server.cluster))
        for kind in ("attachments", "snapshots"):
            listed = server.there.keeper.call("GET", f"/{kind}/detail?all_tenants=1")[kind]
            found |= {f"{kind} {one['id']}" for one in listed}
        return found

    def discard(self, server: Volumes, volume: VolumeRef, offset: int, length: int) -> None:
        with other.image(server.cluster, place(volume)) as image:
            image.write_zeroes(offset, length)

    def grow(self, server: Volumes, volume: VolumeRef, length: int) -> None:
        with other.image(server.cluster, place(volume)) as image:
            image.resize(length)

    shrink = grow

    def lose(self, server: Volumes, volume: VolumeRef) -> None:
        other.remove_image(server.cluster, place(volume))

    def foreign(self, server: Volumes, volume: VolumeRef) -> str:
        name = "snapshot-6ba7b810-9dad-11d1-80b4-00c04fd430c8"
        with other.image(server.cluster, place(volume)) as image:
            image.create_snap(name)
        return f"{place(volume)}@{name}"

    def remove_foreign(self, server: Any, volume: VolumeRef, name: str) -> None:
        with other.image(server.cluster, place(volume)) as image:
            image.remove_snap(name.partition("@")[2])


class TestAttachedVolumes(VolumeProviderTests):
    """Volumes that are attached, of the driver that stands for all that cannot run here.

    Their files are made anew, with lengths that no Cinder makes; it thinks that each has 1 GiB.
    """

    provider_class = CinderProvider
    length: ClassVar[int] = 3_000_017
    grain: ClassVar[int] = 64 << 10
    model_examples: ClassVar[int] = 2
    kills: ClassVar[int] = 2
    declared: ClassVar[Mapping[str, str]] = {
        "create": _MADE_THERE,
        "extend": _MADE_THERE,
        "adoptable": _MADE_THERE,
        "grow": _LONG_AS_IT_SAYS,
        "shrink": _LONG_AS_IT_SAYS,
        "swap": "the Block Storage service may move a volume",
        "restart_server": "it is the same as that of the other suite",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, there: World) -> World:
        cls.secrets = (there.section["password"],)
        return there

    def options(self, server: World) -> Mapping[str, object]:
        return {
            name: str(value)
            for name, value in server.section.items()
            if name != "driver" and not name.startswith("rbd_")
        }

    def make_volume(self, server: World, provider: VolumeProvider, length: int) -> VolumeRef:
        made = server.volumes.create_volume(name="conformance", volume_type="files")
        os.truncate(server.server.file(made), length)
        return VolumeRef(made, length, made, adopted=True)

    def remove_volume(self, server: World, provider: VolumeProvider, volume: VolumeRef) -> None:
        if server.volumes.status("volume", volume.id) is not None:
            server.volumes.call("DELETE", f"/volumes/{volume.id}?cascade=true")
            server.volumes.wait("volume", volume.id, None)

    def raw_write(self, server: World, volume: VolumeRef, offset: int, data: bytes) -> None:
        server.server.write(volume.id, offset, data)

    def raw_read(self, server: World, volume: VolumeRef, offset: int, length: int) -> bytes:
        return server.server.read(volume.id, offset, length)

    def raw_names(self, server: World) -> Collection[str]:
        names, found = {}, set()
        for kind in ("volumes", "snapshots", "attachments"):
            for one in server.keeper.call("GET", f"/{kind}/detail?all_tenants=1")[kind]:
                names[one["id"]] = f"{kind} {one['id']} {one.get('name')}"
                # An attachment has the name of its volume.
                found.add(names[one["id"]] + names.get(one.get("volume_id"), ""))
        return found

    def discard(self, server: World, volume: VolumeRef, offset: int, length: int) -> None:
        server.server.write(volume.id, offset, bytes(length))

    def lose(self, server: World, volume: VolumeRef) -> None:
        server.volumes.call("DELETE", f"/volumes/{volume.id}?cascade=true")
        server.volumes.wait("volume", volume.id, None)

    def foreign(self, server: World, volume: VolumeRef) -> str:
        made = server.volumes.create_snapshot(volume.id, name="every-night")
        (name,) = (name for name in self.raw_names(server) if made in name)
        return name

    def remove_foreign(self, server: Any, volume: VolumeRef, name: str) -> None:
        made = name.split()[1]
        server.volumes.call("DELETE", f"/snapshots/{made}")
        server.volumes.wait("snapshot", made, None)
