"""The Cinder that the other tests use is a real one: what it makes can be read and written by librbd."""

from __future__ import annotations

import pytest

from tests.servers.cinder import Cinder, Tenant
from tests.servers.keystone import Keystone

pytestmark = pytest.mark.server


def _lives(server: Cinder, tenant: Tenant) -> None:
    volume = tenant.create_volume(name="data")
    content = b"written behind the back of Cinder" * 1000
    server.write(volume, 4096, content)
    assert server.read(volume, 4095, len(content) + 2) == b"\0" + content + b"\0"
    snapshot = tenant.create_snapshot(volume)
    assert server.snapshots(volume) == [f"snapshot-{snapshot}"]
    attachment = tenant.attach(volume)
    tenant.call("DELETE", f"/attachments/{attachment}")
    tenant.wait("volume", volume, "available")
    tenant.call("DELETE", f"/volumes/{volume}?cascade=true")
    tenant.wait("volume", volume, None)
    assert f"volume-{volume}" not in server.images()


def test_it_obeys_its_policies(real_cinder: Cinder, identity: Keystone) -> None:
    mine = real_cinder.tenant(identity.add_user("owner", "owners", "member"))
    other = real_cinder.tenant(identity.add_user("stranger", "strangers", "member"))
    _lives(real_cinder, mine)
    volume = mine.create_volume()
    assert other.status("volume", volume) is None
    assert other.request("DELETE", f"/volumes/{volume}").status_code == 404
    assert mine.request("GET", "/scheduler-stats/get_pools").status_code == 403
    mine.call("DELETE", f"/volumes/{volume}")
    mine.wait("volume", volume, None)
