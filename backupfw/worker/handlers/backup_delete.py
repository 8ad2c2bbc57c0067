"""``backup.delete`` and ``manifest.release``: remove what no other manifest names."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from oslo_log import log

from backupfw import crash_points
from backupfw.chunkstore.container import Container
from backupfw.chunkstore.errors import NotFound, NotSupported, PermissionDenied, Retained
from backupfw.engine import cleanup, objects, release, removal, sweep
from backupfw.engine.cinder_format import removal as link_removal
from backupfw.engine.cinder_format.chain import Place
from backupfw.engine.format import keys
from backupfw.engine.listing import objects_by_volume
from backupfw.engine.ports import KnownManifests
from backupfw.engine.sweep import VolumeRows
from backupfw.errors import Damaged, EngineError
from backupfw.manager.outcomes.deleting import ReleasePlan
from backupfw.manager.rows import Task
from backupfw.worker import links
from backupfw.worker.control import TaskControl
from backupfw.worker.handlers.base import Handler

LOG = log.getLogger(__name__)


class _Removal(Handler):
    """What a deletion and a release have in common."""

    def _unknown_child(self, task: Task, control: TaskControl) -> str | None:
        """Return a backup of Cinder's format that is not known here, and needs what is to be removed."""
        deleting = self._tools.backups.deleting
        link = deleting.doomed_link(task)
        if link is None:
            return None

        def container_of(name: str) -> Container:
            return self._tools.stores.container(link.store, name)

        return links.unknown_child(
            Place(container_of(link.container), link.key),
            link.backup_id,
            link.volume_id,
            container_of,
            lambda container, key: deleting.knows(link.store, container, key),
            control,
        )

    def _remove(self, plan: ReleasePlan, control: TaskControl) -> None:
        """Remove what the plan says; plan anew when a relative was deleted after the plan was made.

        :raises Damaged: a manifest that is still to be asked cannot be read; nothing shared was deleted.
        """
        container = self._tools.stores.container(plan.store, plan.container)
        while True:
            try:
                if plan.copied and not plan.is_link:
                    # A removal that waited would keep other copies of the volume waiting.
                    with removal.left_if_locked(container, "objects of a copy", plan.backup_id):
                        self._remove_copy(plan, container, control)
                else:
                    remove(plan, container, control)
                # A copy for which nothing was put has no keys there; the place may be another backup's.
                if not plan.is_link and (plan.begun or not plan.copied):
                    with removal.left_if_locked(container, "data keys", plan.backup_id):
                        self._tools.data_keys.forget(plan, container, control)
                return
            except Damaged as error:
                # This loop ends: each plan has one relative less, because a released manifest is no relative.
                newer = self._tools.backups.deleting.plan_again(plan)
                if error.key not in plan.relatives or error.key in newer.relatives:
                    raise
                LOG.info("The relative %s of %s was deleted meanwhile; planning anew", error.key, plan.key)
                plan = newer

    def _remove_copy(self, plan: ReleasePlan, container: Container, control: TaskControl) -> None:
        """Remove a copy.

        If its manifest is not there, only a sweep of the volume finds what was put for it: it may lie below
        the prefix of any of the volume's backups.
        """
        if not plan.begun or plan.key is None:
            return
        own = keys.installation_prefix(plan.installation_id)
        if not objects.is_missing(container, plan.key):
            known = KnownManifests(plan.relatives, plan.known_keys)
            if release.run(plan.key, known, own, container, control).complete:
                return
        removal.check_settled(container)
        prefix = keys.volume_prefix(plan.installation_id, plan.project_id, plan.volume_id)
        rows = _RowsOf(lambda: self._tools.backups.deleting.volume_rows(plan))
        for volume_prefix, listed in objects_by_volume(container, prefix, control):
            report = sweep.sweep_volume(volume_prefix, listed, container, rows, control)
            if report.stopped is not None:
                raise EngineError(report.stopped)
            if report.locked_until is not None:
                removal.say_left(container, "objects of a copy", plan.backup_id, report.locked_until)
        objects.prove_container(container, plan.key)


class _RowsOf:
    """The database of one volume, for a sweep."""

    def __init__(self, read: Callable[[], VolumeRows]) -> None:
        self._read = read

    def volume(self, project: str, volume: str) -> VolumeRows:  # noqa: ARG002  (there is one)
        """Read the volume's rows now."""
        return self._read()

    def deleting(self, project: str, volume: str) -> VolumeRows:
        """Read them now; no copy begins, because this one's manifest is released."""
        return self.volume(project, volume)

    def deleted(self, project: str, volume: str) -> None:
        """Do nothing: copies begin when the manifest is gone."""


class BackupDelete(_Removal):
    """Deletes a backup and, if nothing else needs them, its objects."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        tools = self._tools
        crash_points.reach("delete.begun")
        # Before the release, which is irrevocable.
        if (child := self._unknown_child(task, control)) is not None:
            LOG.warning("Backup %s is not deleted: backup %s in its store needs it", task.resource_id, child)
            tools.backups.deleting.refuse(
                task,
                f"Backup {child} of Cinder's format, which is in the store but not known here, needs the"
                " backup's data: import that one, or delete it first.",
            )
            return
        self._refuse_if_locked(task)
        plan = tools.backups.deleting.start(task)
        crash_points.reach("delete.planned")
        if plan is None:
            return
        self._remove(plan, control)
        crash_points.reach("delete.removed")
        tools.backups.deleting.finish(task, plan)
        crash_points.reach("delete.committed")

    def _refuse_if_locked(self, task: Task) -> None:
        """Ask the store for a lock that the database does not know, e.g. after it was rebuilt.

        What a manifest names is locked at least as long as the manifest.

        :raises Retained: the manifest is locked; nothing was changed.
        """
        found = self._tools.backups.deleting.of_unknown_lock(task)
        # Where nothing is locked, a store that is down keeps no other store from doing its part.
        if found is None or not self._tools.stores.locks(found[0].store):
            return
        place, key = found
        container = self._tools.stores.container(place.store, place.container)
        until = None
        with suppress(NotFound, NotSupported, PermissionDenied):
            until = container.locked_until(key)
        if until is not None:
            raise Retained(
                f"the manifest is locked until {until:%Y-%m-%d %H:%M} UTC",
                until=until,
                store=place.store,
                container=place.container,
                key=key,
            )

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.deleting.fail(task, reason)

    def locked(self, task: Task, until: datetime, seconds: float) -> None:
        """See :meth:`Handler.locked`; the user is told."""
        self._tools.backups.deleting.tell_locked(task, until)
        super().locked(task, until, seconds)


class ManifestRelease(_Removal):
    """Removes the objects of a manifest that nothing refers to any more."""

    def run(self, task: Task, control: TaskControl) -> None:
        """See :meth:`Handler.run`."""
        if (child := self._unknown_child(task, control)) is not None:
            LOG.warning("Backup %s, which is not known here, needs a link: its objects stay", child)
            self._tools.backups.deleting.forget_link(task)
            return
        plan = self._tools.backups.deleting.start_release(task)
        if plan is None:
            return
        self._remove(plan, control)
        self._tools.backups.deleting.finish_release(task, plan)

    def failed(self, task: Task, reason: str) -> None:
        """See :meth:`Handler.failed`."""
        self._tools.backups.deleting.fail_release(task, reason)


def remove(plan: ReleasePlan, container: Container, control: TaskControl) -> None:
    """Remove the objects of a released manifest that no other one names, then the manifest.

    :raises Damaged: a relative, or a manifest that the database does not know, cannot be read; nothing was
        deleted.
    :raises Unavailable: the container is missing, although something was put there.
    :raises ChunkStoreError: the store does not do it.
    """
    _remove(plan, container, control)
    if plan.begun:
        # Deletes succeed in a missing container, and the container may come back with all its objects.
        objects.prove_container(container, plan.key or plan.backup_id)


def _remove(plan: ReleasePlan, container: Container, control: TaskControl) -> None:
    if plan.is_link and plan.key is not None:
        link_removal.run(container, plan.key, control)
        return
    own = keys.installation_prefix(plan.installation_id)
    known = KnownManifests(plan.relatives, plan.known_keys)
    if plan.key is None:
        # No user waits for it, and nothing needs it.
        with removal.left_if_locked(container, "objects", plan.backup_id):
            _remove_uncommitted(plan, known, container, control)
        return
    _remove_given_up(plan, known, container, control)
    result = release.run(plan.key, known, own, container, control)
    if not result.complete:
        LOG.warning("The manifest %s was damaged or lost; a sweep may find objects it named", plan.key)


def _remove_given_up(
    plan: ReleasePlan, known: KnownManifests, container: Container, control: TaskControl
) -> None:
    """Remove what manifests name that will never be committed.

    First, because only these manifests say which objects of other backups an attempt took over.
    """
    own = keys.installation_prefix(plan.installation_id)
    for key in plan.given_up:
        if not objects.is_missing(container, key):
            release.run(key, known, own, container, control)


def _remove_uncommitted(
    plan: ReleasePlan, known: KnownManifests, container: Container, control: TaskControl
) -> None:
    _remove_given_up(plan, known, container, control)
    prefix = keys.backup_prefix(plan.installation_id, plan.project_id, plan.volume_id, plan.backup_id)
    cleanup.leftovers(prefix, None, known, (), container, control, required=plan.begun)
