"""The conformance suite finds broken providers and forgotten pieces: run by pytest in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

import pytest

from tests.architecture.checkout import ROOT

pytest_plugins = ["pytester"]
#: Whole suites run in each of these tests.
pytestmark = pytest.mark.check

TESTS = ROOT / "drivers" / "template-volume" / "tests"

HEAD = """
import contextlib, itertools, logging, os, threading, time
from dataclasses import replace
import pytest
import conformance_of_template as template
from backupfw.errors import *
from backupfw.volume.base import *
from backupfw.volume.taking import taking_point
from backupfw_template_volume import provider as its
from backupfw_template_volume.array import Missing, Refused
from backupfw_template_volume.point import TemplatePoint
from backupfw_template_volume.target import TemplateTarget

class Provider(its.TemplateProvider):
    API_VERSION = 2
    point_class, target_class = TemplatePoint, TemplateTarget

    def open_point(self, ref, point_id, tick=no_tick):
        point = super().open_point(ref, point_id, tick)
        if isinstance(ref, VolumeRef):
            point.__class__ = self.point_class
            getattr(point, "made", int)()
        return point

    def open_target(self, volume, attempt):
        closing = super().open_target(volume, attempt)
        closing.thing.__class__ = self.target_class
        getattr(closing.thing, "made", int)()
        return closing
"""

CASE = """
class {name}:
    class Broken(Provider):
        API_VERSION = 2

    class Point(TemplatePoint):
        pass

    class Target(TemplateTarget):
        pass
{code}
    Broken.API_VERSION, Broken.point_class, Broken.target_class = 2, Point, Target

class Test{name}(template.TestTemplateProvider):
    provider_class = {name}.Broken

    @pytest.fixture(autouse=True)
    def _rack(self, server):
        {name}.Broken.rack = server

    kills = 3
    length = 700_001
    model_examples = 3
"""

#: What is broken -> the code, and the tests of these guarantees that fail for it.
BROKEN: dict[str, tuple[str, set[str]]] = {
    "short reads": (
        """
    class Point(TemplatePoint):
        def read_into(self, offset, buffer):
            fits = max(0, min(len(buffer), self.length - offset))
            if fits:
                super().read_into(offset, buffer[:fits])
""",
        {"test_v1_never_less_than_asked"},
    ),
    "lengths of the catalogue": (
        """
    class Broken(Provider):
        def open_point(self, ref, point_id, tick=no_tick):
            point = super().open_point(ref, point_id, tick)
            point.length = ref.length
            return point
""",
        {"test_v2_longer_storage_is_used_as_it_is"},
    ),
    "points that move": (
        """
    class Point(TemplatePoint):
        def read_into(self, offset, buffer):
            query = {"offset": offset, "length": len(buffer)}
            buffer[:] = self._array.call("GET", self._name, "bytes", query)
""",
        {
            "test_v3_programs_wait_while_a_live_point_is_taken",
            "test_v3_a_live_point_does_not_move",
            "test_v3_a_live_point_is_one_moment",
        },
    ),
    "programs that wait for a point that was taken before": (
        """
    class Broken(Provider):
        def _take(self, disk, name, snapshot):
            self._array.call("PUT", f"{name}@{snapshot}")
            with taking_point():
                pass
""",
        {
            "test_v3_programs_wait_while_a_live_point_is_taken",
            "test_v13_programs_wait_while_an_atomic_snapshot_is_taken",
        },
    ),
    "programs that wait for no point": (
        """
    class Broken(Provider):
        def _take(self, disk, name, snapshot):
            self._array.call("PUT", f"{name}@{snapshot}")
""",
        {"test_v3_programs_wait_while_a_live_point_is_taken"},
    ),
    "one identity for all states": (
        """
    class Point(TemplatePoint):
        def made(self):
            self.identity = self._serial
""",
        {"test_v3_another_state_has_another_identity", "test_v3_a_point_that_moves_is_noticed"},
    ),
    "zeros where it is not sure": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            for extent in super().extents(start, end, since):
                if extent.kind is Kind.DATA and extent.end == self.length:
                    extent = extent._replace(kind=Kind.ZERO)
                yield extent
""",
        {
            "test_v4_extents_of_any_range",
            "test_v4_zeros_that_were_written",
            "test_v4_what_was_discarded",
            "test_v4_extents_that_nobody_reads_to_the_end",
        },
    ),
    "extents that are rounded": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            yield from super().extents(start // 512 * 512, end, since)
""",
        {"test_v4_extents_of_any_range"},
    ),
    "extents that come to an end too early": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            yield from itertools.islice(super().extents(start, end, since), 3)
""",
        {
            "test_v4_extents_of_any_range",
            "test_v4_extents_that_nobody_reads_to_the_end",
            "test_v4_what_was_discarded",
            "test_v4_zeros_that_were_written",
        },
    ),
    "everything is the same": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            for extent in super().extents(start, end, since):
                yield extent if since is None else extent._replace(kind=Kind.SAME)
""",
        {
            "test_v5_a_single_byte_anywhere",
            "test_v5_discarded_bytes_are_not_the_same",
            "test_v5_nothing_behind_the_old_end_is_the_same",
            "test_v5_restored_bytes_are_not_the_same",
            "test_v5_what_was_cut_and_came_back",
            "test_v5_with_every_kept_point",
            "test_v5_written_bytes_are_not_the_same",
        },
    ),
    "discards are forgotten": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            for extent in super().extents(start, end, since):
                if since is not None and extent.kind is Kind.ZERO:
                    extent = extent._replace(kind=Kind.SAME)
                yield extent
""",
        {
            "test_v5_discarded_bytes_are_not_the_same",
            "test_v5_nothing_behind_the_old_end_is_the_same",
            "test_v5_restored_bytes_are_not_the_same",
            "test_v5_what_was_cut_and_came_back",
        },
    ),
    "the last grain is forgotten": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            edge = self.length // (16 << 10) * (16 << 10)
            for extent in super().extents(start, end, since):
                if since is not None and extent.end > edge:
                    if extent.offset < edge:
                        yield extent._replace(length=edge - extent.offset)
                    first = max(extent.offset, edge)
                    extent = Extent(first, extent.end - first, Kind.SAME)
                yield extent
""",
        {
            "test_v5_a_single_byte_anywhere",
            "test_v5_nothing_behind_the_old_end_is_the_same",
            "test_v5_what_was_cut_and_came_back",
            "test_v5_written_bytes_are_not_the_same",
        },
    ),
    "whatever was added is the same": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            if since is None:
                yield from super().extents(start, end)
                return
            old = self._array.ask("GET", self._name)["snapshots"][self._compared[since]]["length"]
            if start < min(end, old):
                yield from super().extents(start, min(end, old), since)
            if end > old:
                yield Extent(max(start, old), end - max(start, old), Kind.SAME)
""",
        {"test_v5_nothing_behind_the_old_end_is_the_same"},
    ),
    "only the oldest point is compared with": (
        """
    class Point(TemplatePoint):
        def compare(self, since):
            reason = super().compare(since)
            if reason is None:
                snapshots = self._array.ask("GET", self._name)["snapshots"]
                points = [name for name in snapshots if name.startswith(self._prefix)]
                self._compared[since] = max((name for name in points if name != self._snapshot),
                                            key=lambda name: snapshots[name]["number"], default=None)
            return reason
""",
        {"test_v5_with_every_kept_point"},
    ),
    "nothing is ever the same": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            yield from super().extents(start, end)
""",
        {"test_v6_what_is_far_from_changes_is_the_same"},
    ),
    "nothing is ever empty": (
        """
    class Point(TemplatePoint):
        def extents(self, start, end, since=None):
            for extent in super().extents(start, end, since):
                yield extent._replace(kind=Kind.DATA) if extent.kind is Kind.ZERO else extent
""",
        {"test_v6_an_empty_volume_is_zeros"},
    ),
    "tokens of one process": (
        """
    class Point(TemplatePoint):
        known = set()
        def made(self):
            if id(self._array) not in self.known:
                self.known.clear()
                self.known.add(id(self._array))
            self.known.add(self.token)
        def compare(self, since):
            return super().compare(since) if since in self.known else "the service was restarted"
""",
        {"test_v7_a_token_survives_restarts"},
    ),
    "tokens are not looked at": (
        """
    class Point(TemplatePoint):
        def compare(self, since):
            for part in since.split("/"):
                if self._prefix + part in self._array.ask("GET", self._name)["snapshots"]:
                    self._compared[since] = self._prefix + part
                    return None
            return "its snapshot is gone"
""",
        {"test_v7_a_token_of_a_later_point_is_no_lie", "test_v7_damaged_and_made_up_tokens_are_refused"},
    ),
    "a token is only a number": (
        """
    class Point(TemplatePoint):
        def made(self):
            self.token = str(self._number)
        def compare(self, since):
            snapshots = self._array.ask("GET", self._name)["snapshots"]
            numbers = {str(one["number"]): name for name, one in snapshots.items()}
            earlier = [number for number in numbers if since.isdecimal() and int(number) <= int(since)]
            if not earlier:
                return "its snapshot is gone"
            self._compared[since] = numbers[max(earlier, key=int)]
            return None
""",
        {
            "test_v7_damaged_and_made_up_tokens_are_refused",
            "test_v7_a_token_of_other_storage_is_refused",
            "test_v7_the_token_of_a_removed_point_is_refused",
            "test_v7_a_token_of_a_later_point_is_no_lie",
        },
    ),
    "odd tokens raise": (
        """
    class Point(TemplatePoint):
        def compare(self, since):
            serial, point, snapshot = since.split("/")
            return super().compare(since)
""",
        {"test_v7_damaged_and_made_up_tokens_are_refused", "test_v7_tokens_are_where_changes_are_known"},
    ),
    "reasons name the server": (
        """
    class Point(TemplatePoint):
        def compare(self, since):
            reason = super().compare(since)
            return reason and f"http://{self._array._host}: {reason}"
""",
        {
            "test_v7_a_token_of_a_later_point_is_no_lie",
            "test_v7_a_token_of_other_storage_is_refused",
            "test_v7_damaged_and_made_up_tokens_are_refused",
            "test_v7_the_token_of_a_removed_point_is_refused",
            "test_v7_tokens_are_where_changes_are_known",
        },
    ),
    "tokens with the key": (
        """
    class Point(TemplatePoint):
        def made(self):
            self.token = f"{self._array._headers['Authorization']}@{self.token}"
        def compare(self, since):
            return super().compare(since.partition("@")[2])
""",
        {
            "test_v7_a_token_survives_restarts",
            "test_v7_damaged_and_made_up_tokens_are_refused",
            "test_v7_tokens",
        },
    ),
    "a new snapshot for each attempt": (
        """
    class Broken(Provider):
        def open_point(self, ref, point_id, tick=no_tick):
            if isinstance(ref, VolumeRef):
                self._remove(ref.location, its.POINT + point_id)
            return super().open_point(ref, point_id, tick)
""",
        {
            "test_v3_programs_wait_while_a_live_point_is_taken",
            "test_v8_the_same_id_is_the_same_point",
            "test_v3_the_same_state_has_the_same_identity",
        },
    ),
    "names without ids": (
        """
    class Broken(Provider):
        def open_point(self, ref, point_id, tick=no_tick):
            return super().open_point(ref, point_id[:8], tick)
""",
        {"test_v8_what_is_kept_has_the_id_in_its_name"},
    ),
    "close keeps everything": (
        """
    class Point(TemplatePoint):
        def close(self, keep=False):
            super().close(True)
""",
        {"test_v9_close_keeps_nothing", "test_v9_leaving_a_with_block_keeps_nothing"},
    ),
    "every close counts": (
        """
    class Point(TemplatePoint):
        def close(self, keep=False):
            self._closed = False
            super().close(keep)
""",
        {"test_v9_the_first_close_decides"},
    ),
    "keep_points does nothing": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            needed()
        def delete(self, volume):
            super().keep_points(volume, Needed)
            super().delete(volume)
""",
        {
            "test_v10_nothing_that_is_not_needed_stays",
            "test_v10_what_is_compared_with_stays[0]",
            "test_v10_what_is_compared_with_stays[1]",
            "test_v10_what_is_compared_with_stays[2]",
            "test_v10_points_that_the_service_does_not_know_stay",
        },
    ),
    "only the newest point stays": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            now = needed()
            super().keep_points(volume, lambda: now)
            with contextlib.suppress(Missing):
                snapshots = self._array.ask("GET", its._disk(volume))["snapshots"]
                points = [name for name in snapshots if name.startswith(its.POINT)]
                for name in sorted(points, key=lambda name: snapshots[name]["number"])[:-1]:
                    self._remove(its._disk(volume), name)
""",
        {"test_v10_a_point_that_begins_meanwhile_stays", "test_v10_both_kinds_and_both_at_once"},
    ),
    "what is read goes": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            super().keep_points(volume, lambda: replace(needed(), read=frozenset()))
""",
        {
            "test_v10_what_is_read_stays",
            "test_v10_a_point_that_is_read_is_not_disturbed",
            "test_v10_both_kinds_and_both_at_once",
        },
    ),
    "it asks before it looks": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            now = needed()
            super().keep_points(volume, lambda: now)
""",
        {"test_v10_a_point_that_begins_meanwhile_stays"},
    ),
    "points of other services go": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            super().keep_points(volume, lambda: replace(needed(), known=None))
""",
        {"test_v10_points_that_the_service_does_not_know_stay"},
    ),
    "foreign snapshots go": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            super().keep_points(volume, needed)
            with contextlib.suppress(Missing):
                for name in self._array.ask("GET", its._disk(volume))["snapshots"]:
                    if not name.startswith("backupfw-"):
                        self._remove(its._disk(volume), name)
""",
        {"test_v10_foreign_things_are_left_alone"},
    ),
    "the points of other services go": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            super().keep_points(volume, lambda: replace(needed(), known=None))
""",
        {"test_v10_points_that_the_service_does_not_know_stay"},
    ),
    "points of all volumes go": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            super().keep_points(volume, needed)
            for name in self._array.ask("GET", ""):
                if its.POINT in name and not name.startswith(its._disk(volume)):
                    self._array.call("DELETE", name)
""",
        {"test_v10_other_volumes_are_left_alone"},
    ),
    "a volume that is gone is an error": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            self._array.ask("GET", its._disk(volume))
            super().keep_points(volume, needed)
        def delete(self, volume):
            with contextlib.suppress(Missing):
                super().delete(volume)
""",
        {"test_v10_a_volume_that_is_gone", "test_v10_a_volume_that_never_was"},
    ),
    "making again makes anew": (
        """
    class Broken(Provider):
        def create(self, volume, source, tick=no_tick):
            self.delete(volume)
            return super().create(volume, source, tick)
""",
        {"test_v11_made_twice_is_made_once"},
    ),
    "copies of nothing": (
        """
    class Broken(Provider):
        def create(self, volume, source, tick=no_tick):
            return super().create(volume, None, tick)
""",
        {"test_v11_a_copy_of_a_volume"},
    ),
    "a missing volume cannot be deleted": (
        """
    class Broken(Provider):
        def delete(self, volume):
            self.look(volume)
            super().delete(volume)
""",
        {"test_v11_deleted_twice_is_deleted_once"},
    ),
    "points keep their volume": (
        """
    class Broken(Provider):
        def delete(self, volume):
            with contextlib.suppress(Refused):
                self._array.call("DELETE", its._disk(volume))
""",
        {"test_v11_deleted_with_its_points", "test_v11_deleted_twice_is_deleted_once"},
    ),
    "extending adds": (
        """
    class Broken(Provider):
        def extend(self, volume, length):
            super().extend(volume, self.look(volume).length + length - volume.length)
""",
        {"test_v12_extended_with_zeros"},
    ),
    "extending cuts": (
        """
    class Broken(Provider):
        def extend(self, volume, length):
            if length < self.look(volume).length:
                self._array.call("DELETE", its._disk(volume))
                self.create(replace(volume, length=length), None)
            super().extend(volume, length)
""",
        {"test_v12_never_shrunk"},
    ),
    "a snapshot is taken again": (
        """
    class Broken(Provider):
        def create_snapshot(self, snapshot, in_use, tick=no_tick):
            self.delete_snapshot(snapshot)
            return super().create_snapshot(snapshot, in_use, tick)
""",
        {"test_v13_programs_wait_while_an_atomic_snapshot_is_taken", "test_v13_made_twice_is_made_once"},
    ),
    "snapshots are views": (
        """
    class Broken(Provider):
        def open_point(self, ref, point_id, tick=no_tick):
            point = super().open_point(ref, point_id, tick)
            if isinstance(ref, SnapshotRef):
                point = super().open_point(ref.volume, point_id, tick)
            return point
""",
        {
            "test_v13_programs_wait_while_an_atomic_snapshot_is_taken",
            "test_v13_a_snapshot_never_changes[False]",
            "test_v13_a_snapshot_never_changes[True]",
            "test_v13_a_snapshot_of_a_volume_in_use_is_one_moment",
            "test_v13_made_twice_is_made_once",
        },
    ),
    "the storage of others is deleted": (
        """
    class Broken(Provider):
        def delete(self, volume):
            if volume.adopted:
                self._array.call("DELETE", volume.location)
            super().delete(volume)
""",
        {"test_v14_adopted_storage_is_used_and_never_deleted"},
    ),
    "everything can be adopted": (
        """
    class Broken(Provider):
        def adopt(self, path, **how):
            with contextlib.suppress(InvalidInput):
                return super().adopt(path, **how)
            return Storage(path, 1)
""",
        {
            "test_v14_what_cannot_be_adopted[empty]",
            "test_v14_what_cannot_be_adopted[name]",
            "test_v14_what_cannot_be_adopted[path]",
            "test_v14_what_cannot_be_adopted[long]",
            "test_v14_what_cannot_be_adopted[nul]",
            "test_v14_what_cannot_be_adopted[accent]",
        },
    ),
    "copies in pieces are taken for snapshots": (
        """
    class Broken(Provider):
        def create_snapshot(self, snapshot, in_use, tick=no_tick):
            name = super().create_snapshot(snapshot, in_use, tick)
            if in_use:
                # As a copy that ends while the volume is written.
                disk, taken = self.rack.disks[its._disk(snapshot.volume)], its.SNAPSHOT + snapshot.id
                time.sleep(0.05)
                with self.rack.lock:
                    half = len(disk.data) // 2
                    disk.snapshots[taken].data[half:] = disk.data[half:]
            return name
""",
        {"test_v13_a_snapshot_of_a_volume_in_use_is_one_moment"},
    ),
    "only the first buffer is written": (
        """
    class Target(TemplateTarget):
        def write(self, offset, buffers):
            super().write(offset, buffers[:1])
""",
        {"test_v15_many_threads", "test_v15_what_is_written_is_there"},
    ),
    "zeros end early": (
        """
    class Target(TemplateTarget):
        def zero(self, offset, length):
            if length >= 512:
                super().zero(offset, length // 512 * 512)
""",
        {"test_v15_many_threads", "test_v15_zeros"},
    ),
    "old bytes are taken for zeros": (
        """
    class Target(TemplateTarget):
        def made(self):
            self.reads_zero = True
""",
        {"test_v15_reads_zero_is_no_lie"},
    ),
    "closed targets write": (
        """
    class Target(TemplateTarget):
        def close(self):
            pass
""",
        {"test_v15_closed_twice_and_used_no_more"},
    ),
    "every writer helps itself to a new pass": (
        """
    class Target(TemplateTarget):
        def _change(self, what, offset, length, body):
            try:
                super()._change(what, offset, length, body)
            except TargetError:
                self._writer = self._array.ask("PUT", self._name, "writer", {"attempt": 99})
                super()._change(what, offset, length, body)
""",
        {
            "test_v16_a_frozen_writer_of_another_process[write]",
            "test_v16_a_frozen_writer_of_another_process[zero]",
            "test_v16_an_earlier_writer_is_kept_out",
        },
    ),
    "an earlier writer may come later": (
        """
    class Broken(Provider):
        def open_target(self, volume, attempt):
            return super().open_target(volume, 1000)
""",
        {"test_v16_the_earlier_one_is_refused"},
    ),
    "any storage will do": (
        """
    class Broken(Provider):
        def _found(self, ref):
            if isinstance(ref, VolumeRef):
                ref = replace(ref, storage_id=None)
            return super()._found(ref)
""",
        {"test_v17_storage_that_is_another"},
    ),
    "any length will do": (
        """
    class Broken(Provider):
        def _found(self, ref):
            return super()._found(replace(ref, length=0))
""",
        {"test_v17_storage_that_is_shorter"},
    ),
    "what is gone is an error of the system": (
        """
    class Broken(Provider):
        def _found(self, ref):
            try:
                return super()._found(ref)
            except StorageChanged as error:
                raise FileNotFoundError(str(error)) from error
""",
        {
            "test_v17_storage_that_is_another",
            "test_v17_storage_that_is_gone",
            "test_v17_storage_that_is_shorter",
        },
    ),
    "a volume is made in two steps": (
        """
    class Broken(Provider):
        def create(self, volume, source, tick=no_tick):
            name = its._disk(volume)
            if source is None or name in self._array.ask("GET", ""):
                return super().create(volume, None, tick)
            super().create(volume, None)
            writer = self._array.ask("PUT", name, "writer", {"attempt": 1})
            for offset in range(0, source.length, 1 << 18):
                time.sleep(0.1)
                tick()
                query = {"offset": offset, "length": min(1 << 18, source.length - offset)}
                data = self._array.call("GET", its._disk(source), "bytes", query)
                self._array.call("PUT", name, "bytes", {"offset": offset, "pass": writer}, data)
            return name
""",
        {"test_v18_killed_while_a_volume_is_made"},
    ),
    "cancelled work is left lying": (
        """
    class Broken(Provider):
        def create_snapshot(self, snapshot, in_use, tick=no_tick):
            trial = f"{its._disk(snapshot.volume)}@trial-{snapshot.id}"
            self._array.call("PUT", trial)
            tick()
            self._array.call("DELETE", trial)
            return super().create_snapshot(snapshot, in_use, tick)
""",
        {"test_v18_cancelled_while_a_snapshot_is_taken"},
    ),
    "one buffer for all threads": (
        """
    class Point(TemplatePoint):
        where = {}
        def read_into(self, offset, buffer):
            self.where[0] = offset
            time.sleep(0.0002)
            super().read_into(min(self.where[0], self.length - len(buffer)), buffer)
""",
        {"test_v19_threads_that_read_one_point"},
    ),
    "points of one process": (
        """
    class Broken(Provider):
        def open_point(self, ref, point_id, tick=no_tick):
            return super().open_point(ref, f"{point_id}-{os.getpid()}", tick)
""",
        {"test_v19_processes_with_one_volume"},
    ),
    "the key is logged": (
        """
    class Broken(Provider):
        def look(self, volume):
            logging.getLogger("sdk").debug("signing in with %s", self._array._headers)
            return super().look(volume)
""",
        {"test_v20_secrets_stay_secret"},
    ),
    "the key is in an error": (
        """
    class Broken(Provider):
        def adopt(self, path, **how):
            try:
                return super().adopt(path, **how)
            except InvalidInput:
                raise InvalidInput(f"{path} is not there for {self._array._headers}") from None
""",
        {"test_v20_secrets_stay_secret"},
    ),
    "it prints": (
        """
    class Broken(Provider):
        def keep_points(self, volume, needed):
            print("keeping")
            super().keep_points(volume, needed)
""",
        {"test_v20_success_is_silent"},
    ),
    "connections are left open": (
        """
    class Broken(Provider):
        left = []
        def look(self, volume):
            self.left.append(open(os.devnull))
            return super().look(volume)
""",
        {"test_v20_nothing_open_is_left_behind"},
    ),
    "threads are left running": (
        """
    class Broken(Provider):
        def look(self, volume):
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
            return super().look(volume)
""",
        {"test_v20_nothing_open_is_left_behind"},
    ),
}


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.HookRecorder]:
    """Runs the suite on modules of text."""
    for path in (TESTS, pytester.path):
        monkeypatch.syspath_prepend(str(path))
    pytester.makepyfile(conformance_of_template=(TESTS / "test_conformance.py").read_text())

    def run(text: str, *words: str) -> pytest.HookRecorder:
        return pytester.inline_run("-q", "-p", "no:cacheprovider", *words, pytester.makepyfile(text))

    return run


def expression(tests: Collection[str]) -> str:
    """Return what selects all tests of the guarantees of some tests; of those that take long, only these."""
    words = {re.match(r"test_(v\d+_)", test)[1] for test in tests}  # type: ignore[index]
    slow = {"v16_", "v18_", "v19_", "v20_"} & words
    return " or ".join(sorted(words - slow | {test.partition("[")[0] for test in tests if slow}))


def test_each_broken_provider_fails_the_tests_of_its_guarantee(
    run: Callable[..., pytest.HookRecorder],
) -> None:
    cases, chosen = {f"Case{number:02}": name for number, name in enumerate(BROKEN)}, []
    text = HEAD
    for case, name in cases.items():
        code, tests = BROKEN[name]
        text += CASE.format(name=case, code=code)
        chosen.append(f"(Test{case} and ({expression(tests)}))")
    failed: dict[str, set[str]] = {name: set() for name in BROKEN}
    for report in run(text, "-k", " or ".join(chosen)).getfailures():
        case, test = report.nodeid.split("::")[1:]
        failed[cases[case.removeprefix("Test")]].add(test)
    assert failed == {name: tests for name, (_, tests) in BROKEN.items()}


GOOD = HEAD + CASE.format(name="Good", code="")


def test_a_good_provider_passes_and_gets_its_verdicts(run: Callable[..., pytest.HookRecorder]) -> None:
    # What kills and draws at random is run by the conformance run of the template.
    passed, skipped, failed = run(GOOD, "-k", "not killed and not model").listoutcomes()
    assert (skipped, failed) == ([], [])
    assert len(passed) > 95


def test_the_verdicts_per_guarantee(
    pytester: pytest.Pytester, run: Callable[..., pytest.HookRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    code, _ = BROKEN["nothing is ever empty"]
    run(HEAD + CASE.format(name="Bad", code=code), "--guarantees", "-k", "v6_ or v12_")
    assert "guarantees of TestBad" in (said := capsys.readouterr().out)
    assert re.findall(r"^V\d+ .*$", said, re.MULTILINE) == ["V6   failed", "V12  ok"]


def test_declared_pieces_are_skipped_with_their_reason(run: Callable[..., pytest.HookRecorder]) -> None:
    text = GOOD + '    declared = {"foreign": "there are no others", "lose": "nothing is ever lost"}\n'
    _, skipped, failed = run(text, "-k", "foreign or gone or declares").listoutcomes()
    assert failed == []
    assert sorted({report.longrepr[2] for report in skipped}) == [
        "Skipped: declared: nothing is ever lost",
        "Skipped: declared: there are no others",
    ]
    text = GOOD + '    declared = {"no_such_piece": "because"}\n'
    result = run(text, "-k", "declares")
    assert [report.nodeid.rpartition("::")[2] for report in result.getfailures()] == [
        "test_v20_the_provider_declares_what_it_must"
    ]


def test_capabilities_that_are_lacking_are_skipped(run: Callable[..., pytest.HookRecorder]) -> None:
    code = """
    class Broken(Provider):
        capabilities = Capabilities()
        def create_snapshot(self, snapshot, in_use, tick=no_tick):
            raise OperationNotSupported("no snapshots")
        def open_target(self, volume, attempt):
            raise OperationNotSupported("no writing")

    class Point(TemplatePoint):
        def made(self):
            self.token = None
        def compare(self, since):
            return "it does not record changes"
"""
    result = run(HEAD + CASE.format(name="Poor", code=code), "-k", "v6_ or v7_ or v13_ or v15_ or v16_")
    _, skipped, failed = result.listoutcomes()
    assert failed == []
    assert {report.longrepr[2] for report in skipped} == {
        "Skipped: declared: it does not know allocation",
        "Skipped: declared: it does not know changes",
        "Skipped: declared: it takes no snapshots",
        "Skipped: declared: it does not write",
        "Skipped: declared: it does not fence",
    }


@pytest.mark.parametrize(
    "piece",
    [
        "options",
        "raw_write",
        "raw_read",
        "raw_names",
        "secrets",
        "adoptable",
        "discard",
        "grow",
        "shrink",
        "lose",
        "swap",
        "foreign",
        "restart_server",
        "provider_class",
    ],
)
def test_forgotten_pieces_fail_and_do_not_skip(run: Callable[..., pytest.HookRecorder], piece: str) -> None:
    text = f"{GOOD}    {piece} = Adoption.{piece}\n"
    text = text.replace("import pytest", "import pytest\nfrom backupfw.testing.volume import Adoption", 1)
    result = run(
        text,
        "-x",
        "-k",
        "v20_secrets or v4_what or v5_nothing or v5_what or v10_for or v14_ad or v17_ or v7_a_token_surv",
    )
    _, skipped, failed = result.listoutcomes()
    assert skipped == []
    assert re.search(rf"the suite's adoption lacks {piece}\b", str(failed[0].longrepr))
