"""The conformance suite on the provider."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest
from backupfw_template_volume.provider import TemplateProvider
from rack import GRAIN, Rack

from backupfw.testing.readme import require_options_table
from backupfw.testing.volume import VolumeProviderTests
from backupfw.volume.base import VolumeProvider, VolumeRef


class TestTemplateProvider(VolumeProviderTests):
    provider_class = TemplateProvider
    secrets = ("a-very-secret-key",)
    grain = GRAIN

    # Made once for all tests of the class.  Here is where you start your storage, or find it.
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls) -> Iterator[Rack]:
        rack = Rack("a-very-secret-key")
        yield rack
        rack.stop()

    # The provider's options, as in a configuration file: other processes open it, too.
    def options(self, server: Rack) -> Mapping[str, object]:
        return {"endpoint": server.endpoint, "key": server.key}

    # ---- the storage, without the provider -------------------------------------------------------

    def disk(self, volume: VolumeRef) -> str:
        return volume.location or ""

    def raw_write(self, server: Rack, volume: VolumeRef, offset: int, data: bytes) -> None:
        server.write(self.disk(volume), offset, data)

    def raw_read(self, server: Rack, volume: VolumeRef, offset: int, length: int) -> bytes:
        return server.read(self.disk(volume), offset, length)

    def raw_names(self, server: Rack) -> Collection[str]:
        return server.names()

    def adoptable(self, server: Rack, length: int) -> str:
        name = f"of-somebody-{uuid.uuid4()}"
        server.make(name, length)
        return name

    def remove_volume(self, server: Rack, provider: VolumeProvider, volume: VolumeRef) -> None:
        provider.delete(volume)
        if volume.adopted:
            server.disks.pop(self.disk(volume), None)

    # ---- what can happen to it -------------------------------------------------------------------

    def discard(self, server: Rack, volume: VolumeRef, offset: int, length: int) -> None:
        server.discard(self.disk(volume), offset, length)

    def grow(self, server: Rack, volume: VolumeRef, length: int) -> None:
        server.resize(self.disk(volume), length)

    def shrink(self, server: Rack, volume: VolumeRef, length: int) -> None:
        server.resize(self.disk(volume), length)

    def lose(self, server: Rack, volume: VolumeRef) -> None:
        del server.disks[self.disk(volume)]

    def swap(self, server: Rack, volume: VolumeRef) -> None:
        del server.disks[self.disk(volume)]
        server.make(self.disk(volume), volume.length)

    def foreign(self, server: Rack, volume: VolumeRef) -> str:
        server.snapshot(self.disk(volume), "every-night")
        return f"{self.disk(volume)}@every-night"

    def remove_foreign(self, server: Rack, volume: VolumeRef, name: str) -> None:
        server.disks[self.disk(volume)].snapshots.clear()

    def restart_server(self, server: Rack) -> None:
        server.restart()


def test_the_readme_has_every_option() -> None:
    readme = Path(__file__).resolve().parent.parent / "README.md"
    require_options_table(readme, TemplateProvider.options())
