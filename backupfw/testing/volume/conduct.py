"""Tests of secrets, output, and what is left open: V20."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import os
import threading
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from backupfw.errors import BackupfwError
from backupfw.testing.suite.adoption import forgotten
from backupfw.testing.volume.adoption import OPTIONAL, REFUSALS, Adoption, Subject, new_id
from backupfw.volume.base import API_VERSION, Capabilities, VolumeProvider, VolumeRef

#: How often everything is used, to see what is left open.
_TURNS = 12


class ConductTests(Adoption):
    """Tests that are not about bytes."""

    _attempts = itertools.count(1)

    def test_v20_secrets_stay_secret(
        self, server: Any, volume: Subject, caplog: pytest.LogCaptureFixture
    ) -> None:
        if self.secrets is None:
            forgotten("secrets (a sequence of texts, () if there are none)")
        caplog.set_level(logging.DEBUG)
        provider, said = self.open_provider(server), []
        gone = VolumeRef(new_id(), self.length, adopted=True, location="backupfw-no-such-volume")
        uses: list[Callable[[], Any]] = [
            lambda: provider.open_point(gone, new_id()),
            lambda: provider.open_target(gone, 1).__enter__(),
            lambda: provider.look(gone),
            lambda: provider.extend(gone, self.whole(2 * self.length)),
            lambda: provider.adopt("nothing/is/here"),
        ]
        for use in uses:
            with pytest.raises((*REFUSALS, NotImplementedError)) as caught:
                use()
            said += [repr(caught.value), *traceback.format_exception(caught.value)]
        for each in self._used(provider, volume):
            said += [repr(each), str(each)]
        said += [repr(provider), str(provider), repr(provider.capabilities), provider.where(volume.ref)]
        said += [record.getMessage() for record in caplog.records]
        for secret in self.secrets:
            assert not [text for text in said if secret in text]

    def test_v20_success_is_silent(
        self,
        server: Any,
        volume: Subject,
        caplog: pytest.LogCaptureFixture,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        # As the service sets it for the loggers of other libraries.
        caplog.set_level(logging.WARNING)
        caplog.handler.setLevel(logging.NOTSET)
        capfd.readouterr()
        self._used(self.open_provider(server), volume)
        assert [f"{record.name}: {record.getMessage()}" for record in caplog.records] == []
        assert capfd.readouterr() == ("", "")

    def test_v20_nothing_open_is_left_behind(self, server: Any, volume: Subject) -> None:
        # Pools fill, and libraries are loaded.
        for _ in range(2):
            self._used(self.open_provider(server), volume)
        before = _open_now()
        for _ in range(_TURNS):
            self._used(self.open_provider(server), volume)
        after = _open_now()
        # Fewer than one for each turn: something may still be about to end.
        assert after[0] - before[0] < _TURNS // 2, f"{after[0] - before[0]} descriptors more"
        assert after[1] - before[1] < _TURNS // 2, f"{after[1] - before[1]} threads more"

    def test_v20_the_provider_declares_what_it_must(self, server: Any, provider: VolumeProvider) -> None:
        # An unknown declaration, or one without a reason, would hide a test.
        assert set(self.declared) <= set(OPTIONAL)
        assert all(self.declared.values())
        assert "API_VERSION" in vars(type(provider))
        assert provider.API_VERSION == API_VERSION
        assert isinstance(provider.capabilities, Capabilities)
        assert provider.capabilities == self.open_provider(server).capabilities
        for option in type(provider).options():
            assert option.help, f"option {option.name} has no help"

    def _used(self, provider: VolumeProvider, volume: Subject) -> list[object]:
        """Use everything once, as the service does; return what there is to print."""
        seen: list[object] = [volume.ref, provider.look(volume.ref)]
        token = None
        for _ in range(2):
            point = provider.open_point(volume.ref, new_id())
            seen += [point, point.identity, point.token, point.storage_id]
            if token is not None:
                seen.append(point.compare(token))
                list(point.extents(0, point.length, token))
            seen.append(point.compare("made up"))
            list(point.extents(0, point.length))
            point.read_into(0, memoryview(bytearray(1000)))
            token = point.token
            point.close(keep=True)
        if provider.capabilities.writes:
            with provider.open_target(volume.ref, next(self._attempts)) as target:
                target.write(0, [volume.disk.read(0, 1000)])
                target.flush()
                seen.append(target)
        with contextlib.suppress(BackupfwError):
            seen.append(provider.adopt("nothing/is/here"))
        before, volume.provider = volume.provider, provider
        volume.keep()
        volume.provider = before
        return seen


def _open_now() -> tuple[int, int]:
    gc.collect()
    return len(os.listdir("/proc/self/fd")), threading.active_count()
