"""Run by the interpreter that has openstacksdk: everything a script does with backups, each step checked.

``sdk_script.py VERSION VOLUME [ENDPOINT]``: VERSION is 2 or 3; VOLUME has content that its caller will
compare; with an ENDPOINT there is no Keystone.  Prints one JSON object: which operations were shown, by their
names in docs/clients.md, what was refused, and the ids of volumes that must have the content.
"""

import base64
import json
import sys
import time
import uuid

import openstack
from openstack import exceptions

version, source = sys.argv[1:3]
endpoint = sys.argv[3] if len(sys.argv) > 3 else None
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
refused = []


def wait(find, status):
    """Poll as scripts do."""
    for _ in range(600):
        found = find()
        if found is not None and found.status == status:
            return found
        assert found is None or not found.status.startswith("error") or status.startswith("error"), found
        time.sleep(0.2)
    raise SystemExit(f"not {status}: {found}")


def backed_up(**fields):
    made = storage.create_backup(**fields)
    return wait(lambda: storage.get_backup(made.id), "available")


def gone(call, *args):
    for _ in range(600):
        try:
            call(*args)
        except exceptions.NotFoundException:
            return
        time.sleep(0.2)
    raise SystemExit("not gone")


assert storage.get_endpoint().rstrip("/").rpartition("/v")[2].startswith(version)
done.append("discovery of versions")
volume = storage.create_volume(size=1, name=NAME + "-volume", metadata={"k": "v"})
volume = wait(lambda: storage.get_volume(volume.id), "available")
assert volume.id in [each.id for each in storage.volumes()]
backup = backed_up(volume_id=source, name=NAME + "-full", description="one")
assert (backup.name, backup.volume_id, backup.size) == (NAME + "-full", source, 1), backup
done.append("create a backup: full")
child = backed_up(volume_id=source, name=NAME + "-child", is_incremental=True, force=True)
assert child.is_incremental
assert storage.get_backup(backup.id).has_dependent_backups
done.append("… incremental")
assert storage.find_backup(backup.id).id == backup.id
assert storage.find_backup("no such backup") is None
done.append("show by id")
assert storage.find_backup(NAME + "-full").id == backup.id
done.append("show by name")
assert [each.id for each in storage.backups(volume_id=source, name=NAME + "-child")] == [child.id]
done.append("list, with filters")
ids = [each.id for each in storage.backups(details=True, limit=1, volume_id=source)]
assert ids == [child.id, backup.id], "newest first"
done.append("… by pages")
if version == "3":
    assert storage.update_backup(backup.id, name=NAME + "-renamed").name == NAME + "-renamed"
    storage.set_backup_metadata(backup.id, a="b")
    storage.set_backup_metadata(backup.id, c="d")
    assert storage.fetch_backup_metadata(backup.id).metadata == {"a": "b", "c": "d"}
    done.append("name, description, metadata afterwards")
    try:
        storage.delete_backup_metadata(backup.id, ["a"])
    except exceptions.NotFoundException:
        refused.append("remove one key of metadata")
    tagged = backed_up(volume_id=volume.id, metadata={"x": "y"}, availability_zone="nova")
    assert (tagged.metadata, tagged.availability_zone) == ({"x": "y"}, "nova"), tagged
    done += ["… with metadata", "… in an availability zone"]
    assert storage.update_volume(volume.id, name=NAME + "-disk").name == NAME + "-disk"
    copy = storage.create_volume(size=1, name=NAME + "-copy", backup_id=child.id)
    wait(lambda: storage.get_volume(copy.id), "available")
    done.append("a new volume from a backup (3.47)")
storage.set_volume_metadata(volume.id, more="so")
assert storage.get_volume(volume.id).metadata == {"k": "v", "more": "so"}
storage.extend_volume(volume.id, 2)
assert wait(lambda: storage.get_volume(volume.id), "available").size == 2
done.append("volumes: change")
over = storage.create_volume(size=1, name=NAME + "-over")
wait(lambda: storage.get_volume(over.id), "available")
new = storage.restore_backup(child.id, name=NAME + "-new").volume_id
wait(lambda: storage.get_volume(new), "available")
wait(lambda: storage.get_backup(child.id), "available")
done.append("restore to a new volume")
storage.restore_backup(child.id, volume_id=over.id)
wait(lambda: storage.get_backup(child.id), "available")
wait(lambda: storage.get_volume(over.id), "available")
done.append("restore over a volume")
same = [new, over.id] + ([copy.id] if version == "3" else [])
snapshot = storage.create_snapshot(volume_id=volume.id, name=NAME + "-snapshot", is_forced=True)
snapshot = wait(lambda: storage.get_snapshot(snapshot.id), "available")
assert [each.id for each in storage.snapshots(name=NAME + "-snapshot")] == [snapshot.id]
of_snapshot = backed_up(volume_id=volume.id, snapshot_id=snapshot.id)
assert of_snapshot.snapshot_id == snapshot.id
done.append("… of a snapshot")
storage.delete_snapshot(snapshot.id)
gone(storage.get_snapshot, snapshot.id)
done.append("snapshots: create, list, delete")
limits = storage.get_limits()
assert limits.absolute.total_backups_used >= 3, limits
done.append("limits")
if version == "3":
    lost = storage.create_backup(volume_id=volume.id, availability_zone="nowhere")
    wait(lambda: storage.get_backup(lost.id), "error")
    told = storage.get("/messages", microversion="3.5", params={"resource_uuid": lost.id}).json()["messages"]
    assert [each["resource_type"] for each in told] == ["VOLUME_BACKUP"], told
    storage.delete_backup(lost.id)
    gone(storage.get_backup, lost.id)
try:
    record = storage.export_backup(child.id)
    # Version 2's library hands the answer on as it is.
    record = record.get("backup-record", record)
    assert record["backup_service"].startswith("cinder.backup.drivers"), record
    done.append("export a record")
except exceptions.ForbiddenException:
    refused.append("export a record")
if "export a record" in done:
    # The call posts to another one's address and loses the record; the session under it does what is right.
    try:
        storage.import_backup(record["backup_service"], record["backup_url"])
    except exceptions.SDKException:
        refused.append("import a record")
    known = json.loads(base64.b64decode(record["backup_url"]))
    duplicate = str(uuid.uuid4())
    url = base64.b64encode(json.dumps({**known, "id": duplicate}).encode()).decode()
    body = {"backup-record": {**record, "backup_url": url}}
    answer = storage.post("/backups/import_record", json=body)
    assert answer.status_code == 201, answer.text
    wait(lambda: storage.get_backup(duplicate), "available")
    storage.delete_backup(duplicate)
    gone(storage.get_backup, duplicate)
    storage.reset_backup_status(child.id, "error")
    assert storage.get_backup(child.id).status == "error"
    done.append("reset the status")
    storage.delete_backup(child.id, force=True)
    gone(storage.get_backup, child.id)
    done.append("force delete")
    found = [each for each in storage.services() if each.binary == "cinder-backup"]
    assert [(each.status, each.state) for each in found] == [("enabled", "up")], found
    done.append("services")
    # Version 2's library cannot tell a project from a name without Keystone.
    project = uuid.uuid4().hex
    if endpoint is None:
        project = connection.identity.create_project(name=NAME + "-project").id
        changed = storage.update_quota_set(project, backups=7)
        assert (changed.backups, storage.get_quota_set(project).backups) == (7, 7), changed
        storage.revert_quota_set(project)
        assert storage.get_quota_set(project).backups == -1
        done.append("quotas")
for each in storage.backups():
    if each.name is None or each.name.startswith(NAME):
        storage.delete_backup(each.id)
        gone(storage.get_backup, each.id)
done.append("delete")
storage.delete_volume(volume.id, ignore_missing=False)
gone(storage.get_volume, volume.id)
done.append("volumes: create, show, list, delete")
print(json.dumps({"done": done, "refused": refused, "same": same}))
