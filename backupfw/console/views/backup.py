"""What can be done with one backup: verify it, keep it, restore it, delete it; the last two ask before."""

from __future__ import annotations

from backupfw.api.request import Request, Response, expose
from backupfw.console.page import Page, View, go
from backupfw.errors import InvalidInput
from backupfw.manager.rows import Backup
from backupfw.manager.rules.backup_rows import KEEP_KEY


class BackupPage(Page):
    """``/console/volumes/{volume_id}/{backup_id}``."""

    backup: Backup

    def project_of(self, req: Request) -> str:
        """Find the backup; return its project."""
        self.backup = self.site.managers.backups.get(req.context, self.parts[1])
        return self.backup.project_id

    @expose("GET", "delete", rule="backup:delete")
    def confirm_delete(self, req: Request, resp: Response) -> View:
        """Ask whether the deletion is meant."""
        frees = self.site.overview.frees(req.context, self.backup.id)
        return View("delete", backup=self.backup, frees=frees)

    @expose("POST", "delete", rule="backup:delete")
    def delete(self, req: Request, resp: Response) -> None:
        """Delete it."""
        self.site.managers.backups.delete(self.acting(req, self.backup.project_id), self.backup.id)
        go(req, resp, f"volumes/{self.backup.volume_id}")

    @expose("POST", "keep", rule="backup:update")
    def keep(self, req: Request, resp: Response) -> None:
        """Keep it from every policy, or let them delete it again."""
        wanted = {KEEP_KEY: "false" if req.data.get("keep") == "false" else "true"}
        self.site.managers.backups.merge_metadata(req.context, self.backup.id, wanted)
        go(req, resp, f"volumes/{self.backup.volume_id}")

    @expose("POST", "verify", rule="backup:verify")
    def verify(self, req: Request, resp: Response) -> None:
        """Have a worker read all of it."""
        self.site.managers.backups.verify(self.acting(req, self.backup.project_id), self.backup.id)
        go(req, resp, f"volumes/{self.backup.volume_id}")

    @expose("GET", "restore", rule="backup:restore")
    def ask_restore(self, req: Request, resp: Response) -> View:
        """Ask where to."""
        return View("restore", backup=self.backup)

    @expose("POST", "restore", rule="backup:restore")
    def restore(self, req: Request, resp: Response) -> None:
        """Restore it, to a new volume unless another one is named."""
        context, volume_id, asked = self.acting(req, self.backup.project_id), None, req.data.get
        if asked("to") == "existing":
            volume_id = asked("volume_id", "").strip().lower()
            if "overwrite" not in req.data:
                raise InvalidInput("Say that what is on the volume may be overwritten.")
            target = self.site.managers.backups.project_of_volume(context, volume_id)
            self.enforce(req, "backup:restore", target)
        name = asked("name", "").strip() or None
        _, made, _ = self.site.managers.backups.restore(
            context, self.backup.id, volume_id=volume_id, name=name
        )
        go(req, resp, f"volumes/{made}")
