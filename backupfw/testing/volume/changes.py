"""Tests of extents and tokens: V4 to V7."""

from __future__ import annotations

import random
from typing import Any

import pytest

from backupfw.testing.suite.adoption import forgotten
from backupfw.testing.volume.adoption import Adoption, Subject, new_id
from backupfw.testing.volume.checking import (
    check_compared,
    check_extents,
    check_point,
    check_reason,
    to_look_at,
)
from backupfw.testing.volume.disk import Disk
from backupfw.volume.base import MAX_TOKEN, Kind, VolumeProvider


class ChangeTests(Adoption):
    """Tests of what points say about their bytes."""

    def test_v4_extents_of_any_range(self, volume: Subject) -> None:
        dice = random.Random(4)
        with volume.provider.open_point(volume.ref, new_id()) as point:
            end = point.length
            for start in (0, 1, self.length // 3, self.length // 3 + 1, end - 1):
                check_extents(point, volume.disk, start, end)
                check_extents(point, volume.disk, start, start + 1)
            for _ in range(40):
                start, last = sorted(dice.sample(range(end + 1), 2))
                check_extents(point, volume.disk, start, last)

    def test_v4_extents_that_nobody_reads_to_the_end(self, volume: Subject) -> None:
        with volume.provider.open_point(volume.ref, new_id()) as point:
            several = [point.extents(0, point.length) for _ in range(20)]
            for each in several:
                assert next(each).offset == 0
            check_point(point, volume.disk)

    def test_v4_zeros_that_were_written(self, volume: Subject) -> None:
        volume.write(self.length // 2, b"\xff" * 200_000)
        volume.write(self.length // 2 + 1, bytes(150_001))
        with volume.provider.open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)

    def test_v4_what_was_discarded(self, volume: Subject) -> None:
        self.require("discard")
        volume.write(self.length // 4, b"\xff" * (self.length // 2))
        volume.discard(self.length // 4 + 1, self.length // 4)
        with volume.provider.open_point(volume.ref, new_id()) as point:
            check_point(point, volume.disk)

    def test_v6_an_empty_volume_is_zeros(self, server: Any, provider: VolumeProvider) -> None:
        if not provider.capabilities.allocation:
            pytest.skip("declared: it does not know allocation")
        volume = Subject(self, server, provider, self.length)
        volume.write(0, b"x")
        with provider.open_point(volume.ref, new_id()) as point:
            extents = check_extents(point, volume.disk, 0, point.length)
        volume.remove()
        data = sum(extent.length for extent in extents if extent.kind is Kind.DATA)
        assert data <= 2 * self.grain, f"{data} bytes for one that was written: is grain right?"

    # ---- comparisons -----------------------------------------------------------------------------

    def test_v7_tokens_are_where_changes_are_known(self, volume: Subject) -> None:
        with volume.provider.open_point(volume.ref, new_id()) as point:
            assert (point.token is not None) is volume.provider.capabilities.changes
            reason = point.compare("a token of somebody else's")
            assert reason is not None
            check_reason(reason)

    def test_v7_tokens(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        if self.secrets is None:
            forgotten("secrets (a sequence of texts, () if there are none)")
        tokens = []
        for turn in range(3):
            volume.write(turn, bytes([turn + 1]))
            with volume.provider.open_point(volume.ref, new_id()) as point:
                assert isinstance(point.token, str)
                assert 0 < len(point.token) <= MAX_TOKEN
                point.token.encode()
                assert not [secret for secret in self.secrets if secret in point.token]
                tokens.append(point.token)
        assert len(set(tokens)) == 3, "two states have the same token"

    def test_v5_written_bytes_are_not_the_same(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        token, was = _kept(volume)
        middle = self.length // 2
        volume.write(0, b"new")
        volume.write(middle, b"new")
        # The same bytes as before, zeros, and a change that is taken back.
        volume.write(self.length // 3 + 1, was.read(self.length // 3 + 1, 100))
        volume.write(self.length - 1000, bytes(10))
        volume.write(middle + 9000, b"changed")
        volume.write(middle + 9000, was.read(middle + 9000, 7))
        _compare(volume, token, was, must=True)

    def test_v5_a_single_byte_anywhere(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        places = {0, 1, 511, 512, self.grain - 1, self.grain, self.grain + 1, self.length - 1}
        for at in sorted(place for place in places if place < self.length):
            token, was = _kept(volume)
            volume.write(at, bytes([was.read(at, 1)[0] ^ 1]))
            _compare(volume, token, was, must=True)

    def test_v5_discarded_bytes_are_not_the_same(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        self.require("discard")
        volume.write(self.length // 4, b"\xff" * (self.length // 2))
        token, was = _kept(volume)
        volume.discard(self.length // 4 + 1, self.length // 4)
        volume.discard(self.length // 4 * 3 - 5000, 4999)
        _compare(volume, token, was, must=True)

    def test_v5_restored_bytes_are_not_the_same(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        if not volume.provider.capabilities.writes:
            pytest.skip("declared: it does not write")
        volume.write(self.length // 4, b"\xff" * (self.length // 2))
        token, was = _kept(volume)
        with volume.provider.open_target(volume.ref, 1) as target:
            target.write(self.length // 2 + 1, [b"restored"])
            volume.disk.write(self.length // 2 + 1, b"restored")
            target.zero(self.length // 4, 80_001)
            volume.disk.zero(self.length // 4, 80_001)
            target.flush()
        _compare(volume, token, was)

    def test_v5_nothing_behind_the_old_end_is_the_same(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        self.require("grow")
        token, was = _kept(volume)
        volume.grow(self.whole(self.length + 2 * self.grain + 1))
        _compare(volume, token, was)
        volume.write(volume.disk.length - 1, b"x")
        _compare(volume, token, was)

    def test_v5_what_was_cut_and_came_back(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        self.require("shrink")
        self.require("grow")
        volume.write(self.length // 2, b"\xff" * (self.length // 2))
        token, was = _kept(volume)
        volume.shrink(self.whole(self.length // 2 + self.grain + 1))
        _compare(volume, token, was)
        volume.grow(self.length)
        _compare(volume, token, was)

    def test_v5_with_every_kept_point(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        kept = []
        for turn in range(4):
            kept.append(_kept(volume))
            volume.write(turn * (self.length // 5), bytes([turn + 1]) * 5000)
        for token, was in reversed(kept):
            _compare(volume, token, was)

    def test_v6_what_is_far_from_changes_is_the_same(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        token, was = _kept(volume)
        assert to_look_at(_compare(volume, token, was, must=True)) == 0, "nothing was written"
        volume.write(self.length // 2, b"new")
        looked = to_look_at(_compare(volume, token, was, must=True))
        assert looked <= 2 * self.grain, f"{looked} bytes for three that changed: is grain right?"

    def test_v7_a_token_survives_restarts(self, server: Any, volume: Subject) -> None:
        _require_changes(volume.provider)
        token, was = _kept(volume)
        volume.write(self.length // 2, b"new")
        volume.provider = self.open_provider(server)
        _compare(volume, token, was, must=True)
        self.require("restart_server")
        self.restart_server(server)
        _compare(volume, token, was, must=True)
        volume.provider = self.open_provider(server)
        _compare(volume, token, was, must=True)

    def test_v7_damaged_and_made_up_tokens_are_refused(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        token, was = _kept(volume)
        volume.write(0, b"new")
        changed = [token[:at] + chr(ord(token[at]) ^ 1) + token[at + 1 :] for at in range(len(token))]
        made_up = ["", " ", "0", "{}", "[]", "null", "\0", "\u00e9", "../..", new_id(), "x" * MAX_TOKEN]
        made_up += [token[:-1], token[1:], token + "0", token + " ", " " + token, token * 2, token + "\n"]
        made_up += [token[: len(token) // 2], "x" * (1 << 20)]
        # Where points are counted, the next number is that of a point that is gone, and not of this one.
        volume.provider.open_point(volume.ref, new_id()).close()
        with volume.provider.open_point(volume.ref, new_id()) as point:
            for each in changed + made_up:
                reason = point.compare(each)
                assert reason is not None, f"{each[:100]!r} is accepted, but the token is {token!r}"
                check_reason(reason)
            # Refused tokens do not change what the right one gives.
            check_compared(point, volume.disk, token, was, must=True)

    def test_v7_a_token_of_other_storage_is_refused(
        self, server: Any, provider: VolumeProvider, volume: Subject
    ) -> None:
        _require_changes(provider)
        other = Subject(self, server, provider, self.length)
        other.fill()
        _kept(other)
        token, _ = _kept(volume)
        with provider.open_point(other.ref, new_id()) as point:
            reason = point.compare(token)
            assert reason is not None, "a token of another volume is accepted"
            check_reason(reason)
        other.remove()

    def test_v7_a_token_of_a_later_point_is_no_lie(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        if not volume.provider.capabilities.live:
            pytest.skip("declared: its points are not live: nothing is kept of them")
        point_id, disk = new_id(), volume.disk.copy()
        volume.provider.open_point(volume.ref, point_id).close(keep=True)
        volume.write(self.length // 2, b"new")
        token, later = _kept(volume)
        with volume.provider.open_point(volume.ref, point_id) as point:
            check_compared(point, disk, token, later)

    def test_v7_the_token_of_a_removed_point_is_refused(self, volume: Subject) -> None:
        _require_changes(volume.provider)
        stays, tokens = new_id(), []
        volume.provider.open_point(volume.ref, stays).close(keep=True)
        for keep in (True, False):
            volume.write(0, b"new")
            point = volume.provider.open_point(volume.ref, new_id())
            tokens.append(point.token)
            point.close(keep)
            volume.keep(compared=[stays])
        for token in tokens:
            assert token is not None
            with volume.provider.open_point(volume.ref, new_id()) as point:
                reason = point.compare(token)
                assert reason is not None, "the token of a point that is gone is accepted"
                check_reason(reason)


def _require_changes(provider: VolumeProvider) -> None:
    if not provider.capabilities.changes:
        pytest.skip("declared: it does not know changes")


def _kept(volume: Subject) -> tuple[str, Disk]:
    """Make a point, as a backup that was committed; return its token and its bytes."""
    point = volume.provider.open_point(volume.ref, new_id())
    token = point.token
    point.close(keep=True)
    assert token is not None, "a provider that knows changes gives every point of a volume a token"
    return token, volume.disk.copy()


def _compare(volume: Subject, token: str, was: Disk, *, must: bool = False) -> Any:
    """Compare the volume as it is now with a point; fail if the provider says anything wrong of it."""
    with volume.provider.open_point(volume.ref, new_id()) as point:
        check_point(point, volume.disk)
        return check_compared(point, volume.disk, token, was, must=must)
