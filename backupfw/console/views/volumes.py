"""Volumes: a list, and of each volume its backups on a time line."""

from __future__ import annotations

from backupfw.api.request import Request, Response, expose
from backupfw.console import timeline
from backupfw.console.page import Page, View, go, number
from backupfw.console.views.backup import BackupPage
from backupfw.manager.usecases.overview import VolumeState

#: How many volumes a page has.
SHOWN = 50
_ACTS = ("create", "verify", "restore", "delete", "update")


class VolumePage(Page):
    """``/console/volumes/{volume_id}``."""

    item = ("backup_id", BackupPage)
    volume: VolumeState

    def project_of(self, req: Request) -> str:
        """Find the volume; return its project."""
        self.volume = self.site.overview.volume(req.context, self.parts[0].lower())
        return self.volume.project_id

    @expose("GET", rule="backup:get_all")
    def show(self, req: Request, resp: Response) -> View:
        """Show its backups."""
        offset = number(req.query.get("from"))
        backups, total = self.site.overview.time_line(req.context, self.volume.id, offset=offset)
        now, project = self.site.overview.moment(), self.volume.project_id
        may = {one: self.allows(req, f"backup:{one}", project) for one in _ACTS}
        may["plan"] = self.allows(req, "backup_policy:create", project) and may["create"] and may["delete"]
        line, place = timeline.drawn(backups, now), (offset + 1, offset + len(backups), total)
        return View("volume", volume=self.volume, line=line, backups=backups, place=place, now=now, may=may)

    @expose("POST", "backup", rule="backup:create")
    def backup(self, req: Request, resp: Response) -> None:
        """Begin a backup."""
        self.site.managers.backups.create(
            self.acting(req, self.volume.project_id),
            volume_id=self.volume.id,
            name=req.data.get("name", "").strip() or None,
            incremental=req.data.get("kind") == "incremental",
            force="force" in req.data,
        )
        go(req, resp, f"volumes/{self.volume.id}")


class VolumesPage(Page):
    """``/console/volumes``."""

    item = ("volume_id", VolumePage)

    @expose("GET", rule="volume:get_all")
    def index(self, req: Request, resp: Response) -> View:
        """List them."""
        name, overview = req.query.get("name") or "", self.site.overview
        found = overview.volumes(req.context, name=name, marker=req.query.get("marker"), limit=SHOWN + 1)
        return View("volumes", volumes=found, shown_most=SHOWN, name=name, now=overview.moment())
