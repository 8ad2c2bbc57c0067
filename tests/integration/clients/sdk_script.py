"""Run by the interpreter that has openstacksdk: everything a script does with backups, each step checked.

``sdk_script.py VERSION [ENDPOINT]``: VERSION is 2 or 3; with an ENDPOINT there is no Keystone.
Prints one JSON object: what was done, and ids for the caller to look at.
"""

import json
import sys
import time
import uuid

import openstack
from openstack import exceptions

version, endpoint = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None
if endpoint:
    connection = openstack.connect(
        auth_type="none",
        endpoint=endpoint,
        block_storage_api_version=version,
        block_storage_endpoint_override=endpoint,
    )
else:
    connection = openstack.connect(block_storage_api_version=version)
storage = connection.block_storage
NAME = f"sdk-{uuid.uuid4().hex[:8]}"
done = []


def wait(find, status):
    """Poll as scripts do."""
    for _ in range(600):
        found = find()
        if found is not None and found.status == status:
            return found
        assert found is None or not found.status.startswith("error") or status.startswith("error"), found
        time.sleep(0.2)
    raise SystemExit(f"not {status}: {found}")


def gone(call, *args):
    for _ in range(600):
        try:
            call(*args)
        except exceptions.NotFoundException:
            return
        time.sleep(0.2)
    raise SystemExit("not gone")


volume = storage.create_volume(size=1, name=NAME + "-volume", metadata={"k": "v"})
volume = wait(lambda: storage.get_volume(volume.id), "available")
backup = storage.create_backup(volume_id=volume.id, name=NAME + "-full", description="one")
backup = wait(lambda: storage.get_backup(backup.id), "available")
assert (backup.name, backup.volume_id, backup.size) == (NAME + "-full", volume.id, 1), backup
child = storage.create_backup(volume_id=volume.id, name=NAME + "-child", is_incremental=True, force=True)
child = wait(lambda: storage.get_backup(child.id), "available")
assert child.is_incremental
assert storage.get_backup(backup.id).has_dependent_backups
done.append("create")
assert storage.find_backup(NAME + "-full").id == backup.id
assert storage.find_backup(backup.id).id == backup.id
assert storage.find_backup("no such backup") is None
ids = [each.id for each in storage.backups(details=True, limit=1)]
assert {backup.id, child.id} <= set(ids), ids
assert ids.index(child.id) < ids.index(backup.id), "newest first"
assert [each.id for each in storage.backups(volume_id=volume.id, name=NAME + "-child")] == [child.id]
done.append("list")
if version == "3":
    assert storage.update_backup(backup.id, name=NAME + "-renamed").name == NAME + "-renamed"
    storage.set_backup_metadata(backup.id, a="b")
    storage.set_backup_metadata(backup.id, c="d")
    assert storage.fetch_backup_metadata(backup.id).metadata == {"a": "b", "c": "d"}
    done.append("metadata")
restored = storage.restore_backup(child.id, name=NAME + "-restored")
target = restored.volume_id
wait(lambda: storage.get_volume(target), "available")
wait(lambda: storage.get_backup(child.id), "available")
assert storage.get_volume(target).metadata["k"] == "v"
done.append("restore")
try:
    record = storage.export_backup(child.id)
    # Version 2's library hands the answer on as it is.
    record = record.get("backup-record", record)
    assert record["backup_service"].startswith("cinder.backup.drivers"), record
    done.append("export")
except exceptions.ForbiddenException:
    done.append("export refused")
snapshot = storage.create_snapshot(volume_id=volume.id, name=NAME + "-snapshot", is_forced=True)
snapshot = wait(lambda: storage.get_snapshot(snapshot.id), "available")
storage.delete_snapshot(snapshot.id)
gone(storage.get_snapshot, snapshot.id)
limits = storage.get_limits()
assert limits.absolute.max_total_backups is not None, limits
done.append("around")
for each in (backup, child):
    storage.delete_backup(each.id, ignore_missing=False)
    gone(storage.get_backup, each.id)
for each in (volume.id, target):
    storage.delete_volume(each, ignore_missing=False)
    gone(storage.get_volume, each)
done.append("delete")
print(json.dumps({"done": done}))
