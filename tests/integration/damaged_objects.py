"""What must happen when a stored object is damaged, whichever store it is in."""

from __future__ import annotations

from tests.integration.service import Client


def flipped(data: bytes) -> bytes:
    """Return the bytes with one bit in their middle changed."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 16
    return bytes(changed)


def refuses(client: Client, backup: str, key: str) -> None:
    """A backup with a damaged object: verify names the object, a restore refuses and names it too.

    :param key: the damaged object's key.
    """
    found = client.service.command("backup", "verify", backup, check=False)
    assert found.returncode == 1
    assert key in found.stdout, f"{key} is not named\n{found.stdout}\n{found.stderr}"
    target = client.restore(backup, wait=False)
    # Never available: no byte of it may be taken for the backup's.
    client.wait_status("volume", target, "error")
    client.wait_status("backup", backup, "available")
    reason = client.expect(200, "GET", f"/backups/{backup}")["backup"]["fail_reason"]
    # Without installation and project.
    assert key.split("/", 2)[-1] in reason
