"""Lose a service with all that it has but the store, and get every backup back from the store.

Run by ``make demo-recovery``; ``--help`` lists the options.  Exit status 0 means that everything held.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import content
from content import MIB
from service import Failed, Service, command


def _back_up(service: Service, name: str, volume: str, incremental: bool) -> str:
    body = {"backup": {"volume_id": volume, "name": name, "incremental": incremental}}
    backup = str(service.expect(202, "POST", "/backups", body)["backup"]["id"])
    service.wait("backup", backup, "available")
    return backup


def _compare(state: Path, backup: str, original: Path) -> None:
    """Restore a backup to a file, and compare every byte."""
    restored = original.with_suffix(".restored")
    command(state, "backup", "restore", backup, "--to", str(restored))
    difference = content.first_difference(original, restored)
    if difference is not None:
        raise Failed(f"backup {backup}: what was restored differs at byte {difference}")
    restored.unlink()
    print(f"  {backup}: {original.stat().st_size // MIB} MiB, every byte equal", flush=True)


def _make(service: Service, work: Path, mib: int, lost: list[Path]) -> dict[str, Path]:
    """Make backups of two volumes; return for each of them a copy of what its volume held.

    :param lost: gets the files of the volumes.
    """
    originals: dict[str, Path] = {}
    for number in range(2):
        path = work / f"volume-{number}.raw"
        content.write_image(path, mib, seed=number + 1)
        volume = service.command("volume", "adopt", str(path))
        for at, incremental in enumerate((False, True)):
            if incremental:
                content.change(path, mib)
            name = f"volume {number + 1}, {'incremental' if incremental else 'full'}"
            backup = _back_up(service, name, volume, incremental)
            originals[backup] = work / f"original-{number}-{at}.raw"
            shutil.copyfile(path, originals[backup])
            print(f"  {backup}: {name}", flush=True)
        lost.append(path)
    return originals


def _described(state: Path) -> object:
    """Return what the catalogue shows of the backups."""
    return json.loads(command(state, "backup", "list", "--format", "json"))


def run(work: Path, mib: int) -> None:
    """Do everything.

    :raises Failed: something does not hold.
    """
    old, new = work / "old", work / "new"
    volumes: list[Path] = []
    service = Service(old)
    print(service.greeting)
    try:
        originals = _make(service, work, mib, volumes)
        before = _described(old)
    finally:
        service.kill()
    new.mkdir()
    (old / "store").rename(new / "store")
    shutil.rmtree(old)
    for path in volumes:
        path.unlink()
    print("  killed the service; removed its database, its volumes and everything else but the store")
    command(new, "db", "sync")
    rebuild = ("catalogue", "rebuild", "--store", "main")
    listed = command(new, *rebuild, "--dry-run", "-f", "value", "-c", "installation_id")
    (installation,) = set(listed.split())
    print(f"  the store has backups of installation {installation}; taking it over, if")
    print("  the old service is silent for 45 seconds", flush=True)
    print(f"  {command(new, *rebuild, '--take-over', installation)}")
    if (after := _described(new)) != before:
        raise Failed(f"the catalogue says\n{after}\nand not\n{before}")
    print(f"  audit: {command(new, 'audit')}", flush=True)
    service = Service(new)
    try:
        for backup, original in originals.items():
            _compare(new, backup, original)
        *_rest, last = originals
        for backup in _rest:
            service.expect(202, "DELETE", f"/backups/{backup}")
            service.wait("backup", backup, None)
        print("  deleted all but the last one")
        _compare(new, last, originals[last])
        service.expect(202, "DELETE", f"/backups/{last}")
        service.wait("backup", last, None)
        end = time.monotonic() + 30
        while service.stored() and time.monotonic() < end:
            time.sleep(0.05)
        if service.stored():
            raise Failed(f"{service.stored()} bytes stayed in the store after the last delete")
        print("  deleted it, too: the store is empty")
        if status := service.stop():
            raise Failed(f"the service ended with status {status}")
    except Failed as error:
        raise Failed(f"{error}\n{service.log_tail()}") from None
    finally:
        service.kill()


def main() -> int:
    """Run the demo; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--mib", type=int, default=64, help="MiB of each volume, at least 24 (default: %(default)s)"
    )
    parser.add_argument("--dir", help="where to put the temporary directory (default: the system's place)")
    args = parser.parse_args()
    if args.mib < 24:
        parser.error("--mib: at least 24")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="backupfw-demo-", dir=args.dir) as directory:
        try:
            run(Path(directory), args.mib)
        except (Failed, OSError) as error:
            print(f"\nFAILED: {error}", file=sys.stderr)
            return 1
    print(f"Everything held, in {time.monotonic() - begun:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
