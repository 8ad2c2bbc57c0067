"""``/messages``: what failed after it was accepted."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest

from backupfw.manager.outcomes.backups import BackupTasks
from backupfw.manager.queue.tasks import Tasks
from tests.functional.cloud import NOBODY, Client, Cloud, message

KEYS = {
    "id",
    "event_id",
    "user_message",
    "message_level",
    "resource_type",
    "resource_uuid",
    "created_at",
    "guaranteed_until",
    "request_id",
    "links",
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}")


def failed_backup(cloud: Cloud, project: str = "demo") -> tuple[str, str]:
    """Make a backup that fails; return its id and the id of the request that asked for it."""
    body = {"backup": {"volume_id": cloud.volume(project)}}
    answer = cloud.client(project).post("/backups", body)
    task = Tasks(cloud.db).claim("host/w", 60)
    assert task is not None
    BackupTasks(cloud.db, cloud.conf).creating.fail(task, "It broke.")
    return answer.json["backup"]["id"], answer.headers["x-openstack-request-id"]


def resources(client: Client, query: str = "") -> list[str]:
    return [item["resource_uuid"] for item in client.get(f"/messages{query}").json["messages"]]


def test_a_failed_backup_is_reported(cloud: Cloud, member: Client) -> None:
    backup, request = failed_backup(cloud)
    client = member.at("3.3")
    answer = client.get("/messages").json
    assert set(answer) == {"messages"}
    (told,) = answer["messages"]
    assert set(told) == KEYS
    assert told["event_id"] == "VOLUME_VOLUME_BACKUP_013_020"
    assert told["user_message"] == "create backup: The backup could not be made."
    assert told["message_level"] == "ERROR"
    assert (told["resource_type"], told["resource_uuid"]) == ("VOLUME_BACKUP", backup)
    assert told["request_id"] == request
    assert TIME.fullmatch(told["created_at"])
    assert TIME.fullmatch(told["guaranteed_until"])
    assert told["links"] == [
        {"rel": "self", "href": f"http://localhost/v3/demo/messages/{told['id']}"},
        {"rel": "bookmark", "href": f"http://localhost/demo/messages/{told['id']}"},
    ]
    assert client.get(f"/messages/{told['id']}").json == {"message": told}
    answer = client.delete(f"/messages/{told['id']}", 204)
    assert answer.body == b""
    assert "Content-Type" not in answer.headers
    gone = client.get(f"/messages/{told['id']}", 404)
    assert message(gone) == f"Message {told['id']} could not be found."
    client.delete(f"/messages/{told['id']}", 404)
    assert client.get("/messages").json == {"messages": []}


@pytest.mark.parametrize("version", [None, "3.2", "v2"])
def test_messages_came_with_3_3(shared: Cloud, version: str | None) -> None:
    client = shared.client() if version == "v2" else shared.client().at(version)
    client.get("/messages", 404)
    client.get(f"/messages/{NOBODY}", 404)
    client.delete(f"/messages/{NOBODY}", 404)
    shared.client().at("3.3").get("/messages")


@pytest.mark.parametrize("path", [NOBODY, "name", "%00", "%C3%A4"])
def test_a_message_that_does_not_exist_is_404(shared: Cloud, path: str) -> None:
    shared.client().at("3.3").get(f"/messages/{path}", 404)
    shared.client().at("3.3").delete(f"/messages/{path}", 404)


def test_who_may_read_and_delete(cloud: Cloud, admin: Client) -> None:
    failed_backup(cloud)
    (told,) = admin.at("3.3").get("/messages").json["messages"]
    path = f"/messages/{told['id']}"
    for role, allowed in (("none", set()), ("reader", {"get_all", "get"}), ("member", {"get_all", "get"})):
        client = cloud.client(roles=role).at("3.3")
        for rule, target in (("get_all", "/messages"), ("get", path)):
            answer = client.get(target, 200 if rule in allowed else 403)
            if rule not in allowed:
                assert message(answer) == f"Policy doesn't allow message:{rule} to be performed."
        if role != "member":
            refused = client.delete(path, 403)
            assert message(refused) == "Policy doesn't allow message:delete to be performed."
    outsider = cloud.client("other").at("3.3")
    assert resources(outsider) == []
    outsider.get(path, 404)
    outsider.delete(path, 404)
    foreign = cloud.client("other", roles="admin").at("3.5")
    assert resources(foreign) == []
    assert len(resources(foreign, "?all_tenants=1")) == 1
    foreign.get(path)
    cloud.client().at("3.3").delete(path, 204)


@pytest.fixture
def three(cloud: Cloud) -> list[str]:
    """Ids of three failed backups, the newest first."""
    return [failed_backup(cloud)[0] for _ in range(3)][::-1]


def test_before_3_5_all_of_them_come(member: Client, three: list[str]) -> None:
    for version in ("3.3", "3.4"):
        client = member.at(version)
        for query in ("", "?limit=1", "?limit=x", "?marker=x", "?sort=x:y", f"?resource_uuid={NOBODY}"):
            assert resources(client, query) == three
        assert set(client.get("/messages?limit=1").json) == {"messages"}


@pytest.mark.parametrize("version", ["3.5", "3.30", "3.31", "latest"])
def test_messages_come_in_pages(member: Client, three: list[str], version: str) -> None:
    client = member.at(version)
    assert resources(client) == three
    assert resources(client, "?limit=0") == []
    found: list[str] = []
    answer: Any = client.get("/messages?limit=2").json
    assert set(answer) == {"messages", "messages_links"}
    found += [item["resource_uuid"] for item in answer["messages"]]
    (link,) = answer["messages_links"]
    query = link["href"].partition("?")[2]
    answer = client.get(f"/messages?{query}").json
    assert set(answer) == {"messages"}
    assert [*found, *(item["resource_uuid"] for item in answer["messages"])] == three
    assert resources(client, "?offset=1&limit=1") == three[1:2]
    assert resources(client, "?sort=created_at:asc") == three[::-1]
    assert resources(client, "?sort_key=resource_uuid&sort_dir=asc") == sorted(three)
    assert resources(client, "?sort=guaranteed_until:asc,id") == three[::-1]
    assert resources(client, "?sort=event_id,resource_type,request_id,message_level:asc")
    client.get("/messages?sort=project_id", 400)
    client.get("/messages?limit=-1", 400)
    client.get(f"/messages?marker={uuid.uuid4()}", 404)


def test_a_listing_of_messages_can_be_filtered(cloud: Cloud, member: Client, three: list[str]) -> None:
    client = member.at("3.5")
    (one,) = client.get(f"/messages?resource_uuid={three[1]}").json["messages"]
    assert one["resource_uuid"] == three[1]
    assert resources(client, f"?request_id={one['request_id']}") == [three[1]]
    assert resources(client, "?event_id=VOLUME_VOLUME_BACKUP_013_020&message_level=ERROR") == three
    assert resources(client, "?resource_type=VOLUME") == []
    assert resources(client, "?nothing=x") == three
    assert resources(member.at("3.31"), "?resource_type=VOLUME_BACKUP") == three
    refused = member.at("3.31").get("/messages?nothing=x", 400)
    assert message(refused) == "Invalid filters nothing are found in query options."
    assert member.at("3.45").get("/messages?with_count=True&limit=1").json["count"] == 3
