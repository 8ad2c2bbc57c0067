"""Back up, change, delete, restore and compare a real volume on a service of its own.

Run by ``make demo``; ``--help`` lists the options.  Exit status 0 means that everything held.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import content
from content import MIB
from service import Failed, Service


@dataclass
class Step:
    """What one step of the demo cost.

    ``read`` and ``written`` are bytes of the service's process (None: another process did the work);
    ``stored`` is by how many bytes the store grew.
    """

    name: str
    seconds: float = 0.0
    read: int | None = 0
    written: int | None = 0
    stored: int = 0
    note: str = ""


@dataclass
class Demo:
    """The steps, in order; each works on the running service."""

    service: Service
    work: Path
    mib: int
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Measure a step from outside: clock, the process's own counters, the store's files."""
        step = Step(name)
        (read, written), stored = self.service.io(), self.service.stored()
        start = time.monotonic()
        print(f"  {name} …", end="", flush=True)
        yield step
        step.seconds = time.monotonic() - start
        now_read, now_written = self.service.io()
        step.read, step.written = now_read - read, now_written - written
        step.stored = self.service.stored() - stored
        self.steps.append(step)
        print(f" {step.seconds:.2f} s{', ' + step.note if step.note else ''}", flush=True)

    def path(self, volume: str) -> Path:
        """Where a volume's bytes are."""
        return Path(self.service.command("volume", "path", volume))

    def backup(self, name: str, volume: str, incremental: bool) -> str:
        """Make a backup and check the figures its record shows."""
        with self.step(name) as step:
            body = {"backup": {"volume_id": volume, "name": name, "incremental": incremental}}
            backup = self.service.expect(202, "POST", "/backups", body)["backup"]["id"]
            self.service.wait("backup", backup, "available")
        record = json.loads(self.service.command("backup", "show", backup))
        step.note = f"{record['object_count']} objects"
        if record["put_bytes"] != step.stored:
            raise Failed(f"the record says {record['put_bytes']} bytes put, the store grew by {step.stored}")
        return str(backup)

    def restore(self, name: str, backup: str, target: str | None, like: Path) -> str:
        """Restore, and compare the target with the volume byte for byte."""
        with self.step(name):
            body = {"restore": {"volume_id": target}}
            answer = self.service.expect(202, "POST", f"/backups/{backup}/restore", body)["restore"]
            self.service.wait("backup", backup, "available")
            self.service.wait("volume", answer["volume_id"], "available")
        restored = self.path(answer["volume_id"])
        difference = content.first_difference(like, restored)
        if difference is not None:
            raise Failed(f"{name}: the restored volume differs at byte {difference}")
        print(f"  compared: {like.stat().st_size // MIB} MiB, every byte equal")
        return str(answer["volume_id"])

    def delete(self, name: str, backup: str) -> None:
        """Delete a backup."""
        with self.step(name):
            self.service.expect(202, "DELETE", f"/backups/{backup}")
            self.service.wait("backup", backup, None)

    def import_record(self, name: str, backup: str) -> str:
        """Export the record and import it under another id: a second reference to the same data."""
        with self.step(name) as step:
            record = self.service.expect(200, "GET", f"/backups/{backup}/export_record")["backup-record"]
            fields = json.loads(base64.b64decode(record["backup_url"]))
            fields["id"] = str(uuid.uuid4())
            record["backup_url"] = base64.b64encode(json.dumps(fields).encode()).decode()
            duplicate = self.service.expect(201, "POST", "/backups/import_record", {"backup-record": record})
            self.service.wait("backup", duplicate["backup"]["id"], "available")
        if step.stored:
            raise Failed(f"an import stored {step.stored} bytes")
        return str(duplicate["backup"]["id"])

    def run(self) -> None:
        """Do everything; raises Failed at the first thing that does not hold."""
        size = str(-(-self.mib // 1024))
        image = self.work / "image.raw"
        content.write_image(image, self.mib)
        print(f"  content: {self.mib} MiB, three eighths text-like, three random, two zero or hole")
        volume = self.service.command(
            "volume", "create", "--size", size, "--image", str(image), "--name", "data"
        )
        image.unlink()
        original = self.path(volume)

        full = self.backup("full backup", volume, incremental=False)
        changed = content.change(original, self.mib)
        print(f"  changed {changed / MIB:.1f} MiB, 3 MiB of it from data to zeros")
        incremental = self.backup("incremental backup", volume, incremental=True)
        self.delete("delete the full one", full)
        self.restore("restore to a new volume", incremental, None, original)

        dirt = self.work / "dirt.raw"
        content.write_dirt(dirt, self.mib)
        dirty = self.service.command(
            "volume", "create", "--size", size, "--image", str(dirt), "--name", "dirty"
        )
        dirt.unlink()
        self.restore("restore to a dirty volume", incremental, dirty, original)

        duplicate = self.import_record("export and import", incremental)
        self.delete("delete the original", incremental)
        with self.step("verify the import") as step:
            verdict = self.service.command("backup", "verify", duplicate)
            step.note = verdict.partition(": ")[2]
        # The command reads the store itself.
        step.read = step.written = None
        self.delete("delete the import", duplicate)
        # The release of the objects goes on after the record has gone.
        end = time.monotonic() + 30
        while self.service.stored() and time.monotonic() < end:
            time.sleep(0.05)
        if self.service.stored():
            raise Failed(f"{self.service.stored()} bytes stayed in the store after the last delete")
        print("  the store is empty again")


def _mib(count: int | None) -> str:
    return "-" if count is None else f"{count / MIB:,.1f}"


def table(steps: list[Step]) -> str:
    """Return what each step cost."""
    heads = ("step", "took s", "read MiB", "sent MiB", "stored MiB", "read MiB/s")
    rows = [
        (
            step.name,
            f"{step.seconds:.2f}",
            _mib(step.read),
            _mib(step.written),
            f"{step.stored / MIB:+,.1f}" if step.stored else "0",
            "-" if step.read is None else f"{step.read / MIB / step.seconds:,.0f}",
        )
        for step in steps
    ]
    widths = [max(len(row[at]) for row in (heads, *rows)) for at in range(len(heads))]
    lines = []
    for row in (heads, *rows):
        cells = [
            row[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells))
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--mib", type=int, default=400, help="MiB of content, at least 24 (default: %(default)s)"
    )
    parser.add_argument("--dir", help="where to put the temporary directory (default: the system's place)")
    args = parser.parse_args()
    if args.mib < 24:
        parser.error("--mib: at least 24")
    with tempfile.TemporaryDirectory(prefix="backupfw-demo-", dir=args.dir) as directory:
        try:
            service = Service(Path(directory) / "state")
        except Failed as error:
            print(f"\nFAILED: {error}", file=sys.stderr)
            return 1
        print(service.greeting)
        demo = Demo(service, Path(directory), args.mib)
        try:
            demo.run()
            status = service.stop()
            if status:
                raise Failed(f"the service ended with status {status}")
        except (Failed, OSError) as error:
            print(f"\nFAILED: {error}\n{service.log_tail()}", file=sys.stderr)
            return 1
        finally:
            service.kill()
    print()
    print(table(demo.steps))
    print(
        "\nread, sent: all bytes the service process read and wrote meanwhile; stored: growth of the store."
    )
    print("Everything held.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
