"""The conformance suite for volume providers: every guarantee as a named test.

The author of a provider subclasses :class:`VolumeProviderTests` in a test module, and supplies functions that
reach the storage without the provider; pytest runs the rest::

    class TestMyProvider(VolumeProviderTests):
        provider_class = MyProvider
        secrets = ("the password",)

        @pytest.fixture(scope="class")
        @classmethod
        def server(cls):
            with my_storage() as storage:
                yield storage

        def options(self, server): ...
        def raw_write(self, server, volume, offset, data): ...
        def raw_read(self, server, volume, offset, length): ...
        def raw_names(self, server): ...
        # Each of these, or the reason why not, in ``declared``:
        def adoptable(self, server, length): ...
        def discard(self, server, volume, offset, length): ...
        def grow(self, server, volume, length): ...
        def shrink(self, server, volume, length): ...
        def lose(self, server, volume): ...
        def swap(self, server, volume): ...
        def foreign(self, server, volume): ...
        def restart_server(self, server): ...

:class:`~backupfw.testing.volume.adoption.Adoption` lists everything.  If a function is missing, its tests
fail; tests are skipped only for what the provider's capabilities, or the subclass, declare that it lacks.
The name of a test has the guarantee of :mod:`backupfw.volume.base` that it proves:
``test_v5_a_single_byte_anywhere``.
"""

from __future__ import annotations

from backupfw.testing.volume.adoption import Adoption, Subject, adopted, created
from backupfw.testing.volume.changes import ChangeTests
from backupfw.testing.volume.conduct import ConductTests
from backupfw.testing.volume.interrupted import InterruptedTests
from backupfw.testing.volume.keeping import KeepingTests
from backupfw.testing.volume.making import MakingTests
from backupfw.testing.volume.model import ModelTests
from backupfw.testing.volume.points import PointTests
from backupfw.testing.volume.targets import TargetTests

__all__ = ["Adoption", "Subject", "VolumeProviderTests", "adopted", "created"]


class VolumeProviderTests(
    PointTests,
    ChangeTests,
    KeepingTests,
    MakingTests,
    TargetTests,
    InterruptedTests,
    ConductTests,
    ModelTests,
):
    """Everything a volume provider promises.  Subclass it once per way of setting up the storage."""
