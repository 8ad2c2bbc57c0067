"""``manifest.scrub``: verify what a store has of one volume, repair what is damaged, and tell its owners.

``backup.verify`` does the same for one backup, because somebody asked for it.
"""

from __future__ import annotations

import threading
import time
from contextlib import closing, suppress

from oslo_log import log

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.engine import scrub, verify
from backupfw.engine.format import keys
from backupfw.errors import Damaged, EngineError, UnsupportedFormat
from backupfw.manager.outcomes.scrubbing import ScrubbedManifest, ScrubPlan
from backupfw.manager.rows import Place, Task
from backupfw.worker import stored
from backupfw.worker.control import TaskControl
from backupfw.worker.copies import Copies
from backupfw.worker.damaged_objects import FoundDamaged, mark_sharers
from backupfw.worker.handlers.base import Handler, Tools

LOG = log.getLogger(__name__)

#: Seconds between two records of how far an attempt is: what a kill makes the next one read again.
CHECKPOINT_SECONDS = 10.0
#: Damaged objects after which they are recorded at the next segment's end, and seconds after which they are.
_MANY, _LONG = 10_000, 60.0


class ManifestScrub(Handler):
    """Verifies the manifests of a volume, or goes on where an earlier attempt ended."""

    # No user waits for it, and a store that is down has nothing to tell.
    waits_for_stores = True

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        crash_points.reach("scrub.begun")
        plan = self._tools.backups.scrubbing.start(task)
        if plan is not None:
            with closing(_Scrub(self._tools, task, plan, control)) as running, suppress(_NothingLeft):
                running.run()
            self._tools.backups.scrubbing.finish(task)
            crash_points.reach("scrub.committed")

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.scrubbing.fail(task, reason)


class BackupVerify(ManifestScrub):
    """Verifies a backup in one of its places, or goes on where an earlier attempt ended."""

    # Somebody wants to know.
    waits_for_stores = False


class _NothingLeft(Exception):
    """All that was to be verified is deleted."""


class _SlowStore:
    """What ``Stores`` is, for the one store that a scrub reads: no faster than it may be read."""

    def __init__(self, tools: Tools, plan: ScrubPlan) -> None:
        self._tools = tools
        self._plan = plan
        self._layer: LimitLayer | None = None

    def container(self, store: str, container: str) -> Container:
        found = self._tools.stores.container(store, container)
        if self._layer is None:
            # It is not closed: that would close the store.
            self._layer = LimitLayer(found.store, self._limits())
        return Container(self._layer, found.name, found.settled_at)

    def look(self) -> None:
        """Take over a limit that was changed."""
        if self._layer is not None and self._layer.limits != self._limits():
            self._layer.set_limits(self._limits())

    def _limits(self) -> Limits:
        return Limits(bytes_per_second=self._tools.backups.scrubbing.bytes_per_second(self._plan))


class _Scrub:
    """One attempt."""

    def __init__(self, tools: Tools, task: Task, plan: ScrubPlan, control: TaskControl) -> None:
        self._tools = tools
        self._task = task
        self._plan = plan
        self._control = control
        self._store = _SlowStore(tools, plan)
        self._container = self._store.container(plan.store, plan.container)
        self._lock = threading.Lock()
        self._found = FoundDamaged()
        #: Ids of the backups whose owners were told.
        self._told: set[str] = set()
        #: Keys of manifests that could not be read.
        self._unread: set[str] = set()
        self._recorded_at = self._saved_at = time.monotonic()

    def close(self) -> None:
        """Give the temporary file up."""
        self._found.close()

    def run(self) -> None:
        """Verify, and record what was found."""
        plan = self._plan
        listed = self._read()
        if plan.asked_for and self._unread - listed:
            # It was repaired, so what it names can be read now.
            self._unread.clear()
            listed = self._read()
        for manifest in plan.manifests:
            self._control.check()
            if manifest.key in self._unread and manifest.key not in listed:
                # It was repaired, but what it names was not read, or it cannot be read here.
                continue
            named: set[str] = set()
            if not plan.links:
                named = self._named(manifest, listed) or set()
            self._tools.backups.scrubbing.prove(plan, manifest.id, named)
            crash_points.reach("scrub.proven")

    def _read(self) -> frozenset[str]:
        """Read everything, and record what is damaged; return the keys of what still is."""
        plan = self._plan
        if plan.links:
            self._link()
        else:
            self._manifests()
        self._record()
        return self._tools.backups.damaged_objects.keys(
            plan.store, plan.container, keys.volume_prefix_of(plan.key)
        )

    def _link(self) -> None:
        """Verify one link, as a restore reads it."""
        plan, listed = self._plan, self._tools.backups.damaged_objects
        (link,) = plan.manifests

        def damaged(container: str, key: str, reason: str) -> None:
            LOG.error("Store %s: object %s in %s is damaged: %s", plan.store, key, container, reason)
            if listed.record(plan.store, container, key, reason, link.id):
                listed.alert(plan.store, container, [key], self._told)

        with stored.opened(self._store, self._tools.data_keys, plan, self._control) as data:
            data.verify(self._control, damaged, quick=False, streams=self._tools.engine.streams)

    def _manifests(self) -> None:
        """Verify manifests of ours together, and the data keys that they need."""
        plan = self._plan
        needed = dict.fromkeys(one.key_id for one in plan.manifests if one.key_id is not None)
        if needed:
            for key, reason in self._tools.data_keys.mend(self._container, plan.key, needed).items():
                LOG.error("Store %s: %s was damaged, and was put again: %s", plan.store, key, reason)
        scrub.run(
            {one.key: one.encrypted for one in plan.manifests},
            self._container,
            self._control,
            self._damaged,
            find_key=self._tools.data_keys.finder(self._container, plan.key),
            start=self._task.checkpoint,
            save=self._save,
            leave_out=self._leave_out,
            streams=self._tools.engine.streams,
        )

    def _leave_out(self, key: str, error: EngineError) -> None:
        if self._plan.asked_for and not isinstance(error, Damaged):
            raise error
        LOG.warning("Manifest %s in store %s cannot be verified now: %s", key, self._plan.store, error)
        self._unread.add(key)
        (manifest_id,) = (one.id for one in self._plan.manifests if one.key == key)
        self._tools.backups.scrubbing.leave_out(self._task, manifest_id)

    def _damaged(self, key: str, reason: str) -> None:
        with self._lock:
            self._found.add(key, reason)

    def _save(self, segment: int) -> None:
        """Record now and then how far the scrub is, and before that what was found up to there."""
        crash_points.reach("scrub.segment", segment)
        moment = time.monotonic()
        if moment < self._saved_at + CHECKPOINT_SECONDS:
            return
        if not self._tools.backups.scrubbing.goes_on(self._task):
            raise _NothingLeft
        self._store.look()
        if self._found.count:
            # Each time all manifests are read for it.
            if self._found.count < _MANY and moment < self._recorded_at + _LONG:
                return
            self._record()
        self._tools.tasks.checkpoint(self._task, segment)
        self._saved_at = moment
        crash_points.reach("scrub.saved", segment)

    def _record(self) -> None:
        """Record what was found, repair it, and tell the owners of what is left."""
        with self._lock:
            found, self._found = self._found, FoundDamaged()
        with closing(found):
            for part in found.parts():
                self._record_part(part)
        self._recorded_at = time.monotonic()

    def _record_part(self, part: dict[str, str]) -> None:
        plan, backups = self._plan, self._tools.backups
        listed = backups.damaged_objects
        left = set(part)
        naming: list[tuple[ScrubbedManifest, set[str]]] = []
        for manifest in plan.manifests:
            if not left:
                break
            # What no live manifest names was not damaged: it was deleted.
            named = self._named(manifest, left)
            if named is None:
                named = left & {manifest.key}
            recorded = {
                key
                for key in sorted(named)
                if listed.record(plan.store, plan.container, key, part[key], manifest.id)
            }
            for key in sorted(recorded):
                LOG.error("Store %s: object %s is damaged: %s", plan.store, key, part[key])
            left -= recorded
            naming.append((manifest, recorded))
        crash_points.reach("scrub.recorded")
        for manifest, recorded in naming:
            if recorded:
                mark_sharers(backups, self._container, manifest.id, recorded, self._control)
                self._repair(manifest, recorded)
                listed.alert(plan.store, plan.container, recorded, self._told)

    def _repair(self, manifest: ScrubbedManifest, damaged: set[str]) -> None:
        """Put damaged objects again as another store has them, if one has."""
        plan, tools = self._plan, self._tools
        places = tools.backups.scrubbing.places(manifest.id)
        here = Place(manifest.id, plan.store, plan.container)
        if here not in places or len(places) < 2:
            return
        copies = Copies(
            tools.backups, tools.stores, tools.data_keys, manifest.key, places, tools.engine.streams
        )
        container = tools.stores.container(plan.store, plan.container)
        copies.put_again(here, container, damaged, self._control)

    def _named(self, manifest: ScrubbedManifest, wanted: set[str] | frozenset[str]) -> set[str] | None:
        """Return those objects that a manifest names; None: it is missing, damaged, or of a newer release."""
        try:
            return verify.named(manifest.key, wanted, self._container, self._control)
        except (Damaged, UnsupportedFormat):
            return None
