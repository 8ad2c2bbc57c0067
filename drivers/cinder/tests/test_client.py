"""What is sent to a Block Storage service, for whom, and what its answers become."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from backupfw_cinder.catalogue import CinderCatalogue
from backupfw_cinder.client import FIXED_KEY, Client, Refused
from backupfw_cinder.host import Host
from backupfw_cinder.provider import CinderProvider
from backupfw_cinder.temporary import Temporary
from backupfw_cinder.volumes import Attachment, Volumes

from backupfw.errors import (
    ConfigError,
    Forbidden,
    InvalidInput,
    InvalidVolume,
    QuotaExceeded,
    ServiceUnavailable,
    SnapshotNotFound,
    StorageChanged,
    TargetError,
    VolumeNotFound,
)
from backupfw.volume.base import HEADER, Encryption, Needed, Restored, Storage, VolumeRef, no_tick
from backupfw.volume.local.target import LocalTarget

SECRET = "very-secret-password"
OURS, HIS = "a" * 32, "b" * 32
K1, K2 = "11111111-1111-4111-8111-111111111111", "22222222-2222-4222-8222-222222222222"
CALLER = SimpleNamespace(project_id=HIS, user_token="his-token")
OPERATOR = SimpleNamespace(project_id=HIS, user_token=None)
VOLUME = {
    "id": "v1",
    "status": "available",
    "size": 1,
    "name": "",
    "bootable": "true",
    "encrypted": False,
    "os-vol-tenant-attr:tenant_id": HIS,
}


class Cloud:
    """A Keystone and a Block Storage service that answers as a test says."""

    def __init__(self) -> None:
        self.answer: Callable[[str, str], tuple[int, Any]] = lambda _method, _path: (200, {})
        self.seen: list[tuple[str, str, str, str]] = []
        self.bodies: list[Any] = []
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def _do(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                status, found, headers = cloud.handle(self.command, self.path, dict(self.headers), body)
                text = json.dumps(found).encode()
                self.send_response(status)
                headers |= {"Content-Length": str(len(text)), "Content-Type": "application/json"}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = _do  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Be quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def handle(
        self, method: str, path: str, headers: dict[str, str], body: Any
    ) -> tuple[int, Any, dict[str, str]]:
        if path.rstrip("/") == "/identity/v3":
            links = [{"rel": "self", "href": f"{self.url}/identity/v3"}]
            return 200, {"version": {"id": "v3.14", "status": "stable", "links": links}}, {}
        if path == "/identity/v3/auth/tokens":
            if body["auth"]["identity"]["password"]["user"]["password"] != SECRET:
                return 401, {"error": {"message": "no"}}, {}
            endpoint = {
                "interface": "public",
                "region": "RegionOne",
                "region_id": "RegionOne",
                "id": "e",
                "url": f"{self.url}/volume/v3/{OURS}",
            }
            token = {
                "expires_at": "2999-01-01T00:00:00.000000Z",
                "issued_at": "2026-01-01T00:00:00.000000Z",
                "methods": ["password"],
                "user": {"id": "u", "name": "keeper", "domain": {"id": "default", "name": "d"}},
                "project": {"id": OURS, "name": "p", "domain": {"id": "default", "name": "d"}},
                "catalog": [{"type": "block-storage", "name": "cinder", "id": "s", "endpoints": [endpoint]}],
            }
            return 201, {"token": token}, {"X-Subject-Token": "our-token"}
        self.seen.append((method, path, headers["X-Auth-Token"], headers["OpenStack-API-Version"]))
        self.bodies.append(body)
        return *self.answer(method, path), {}


@pytest.fixture
def cloud() -> Iterator[Cloud]:
    made = Cloud()
    yield made
    made.server.shutdown()
    made.server.server_close()


def options(**given: Any) -> Any:
    values = {opt.dest: opt.default for opt in CinderProvider.options()}
    values |= {
        "username": "keeper",
        "password": SECRET,
        "project_name": "p",
        "user_domain_id": "default",
        "project_domain_id": "default",
        **given,
    }
    return SimpleNamespace(**values)


@pytest.fixture
def client(cloud: Cloud) -> Client:
    return Client(options(auth_url=f"{cloud.url}/identity/v3"))


def fault(text: str) -> Any:
    return {"badRequest": {"code": 400, "message": text}}


def test_each_asks_in_his_own_project(cloud: Cloud, client: Client) -> None:
    client.call("GET", "/volumes/v1")
    client.call("GET", "/volumes/v1", caller=OPERATOR)
    client.call("GET", "/volumes/v1", caller=CALLER)
    version = "volume 3.66"
    assert cloud.seen == [
        ("GET", f"/volume/v3/{OURS}/volumes/v1", "our-token", version),
        ("GET", f"/volume/v3/{OURS}/volumes/v1", "our-token", version),
        ("GET", f"/volume/v3/{HIS}/volumes/v1", "his-token", version),
    ]


def test_what_errors_become(cloud: Cloud, client: Client, caplog: pytest.LogCaptureFixture) -> None:
    cloud.answer = lambda *_: (400, fault("so not"))
    with pytest.raises(Refused, match="so not") as refused:
        client.call("POST", "/volumes", {})
    assert refused.value.status == 400
    cloud.answer = lambda *_: (503, {})
    with pytest.raises(ServiceUnavailable, match="temporarily") as away:
        client.call("GET", "/volumes/v1", caller=CALLER)
    assert away.value.may_pass
    # Not our user's fault: the caller's token has ended.
    cloud.answer = lambda *_: (401, {"error": {"message": "expired"}})
    with pytest.raises(Refused):
        client.call("GET", "/volumes/v1", caller=CALLER)
    wrong = Client(options(auth_url=f"{cloud.url}/identity/v3", password="other"))
    with pytest.raises(ServiceUnavailable, match="credentials"):
        wrong.call("GET", "/volumes/v1")
    cloud.server.shutdown()
    cloud.server.server_close()
    with pytest.raises(ServiceUnavailable, match="temporarily"):
        client.call("GET", "/volumes/v1")
    for secret in (SECRET, "his-token", "our-token"):
        assert secret not in caplog.text


def test_a_volume_is_described(cloud: Cloud, client: Client) -> None:
    catalogue = CinderCatalogue(client, Volumes(client, Connections()))
    more = {
        "os-vol-tenant-attr:tenant_id": "p9",
        "volume_type": "gold",
        "metadata": {"a": "b"},
        "volume_image_metadata": {"os": "x"},
    }
    cloud.answer = lambda *_: (200, {"volume": {**VOLUME, **more}})
    found = catalogue.volume(CALLER, "v1")
    assert (found.project_id, found.name, found.bootable, found.volume_type) == ("p9", None, True, "gold")
    assert (dict(found.metadata), dict(found.image_metadata)) == ({"a": "b"}, {"os": "x"})
    assert found.encryption_key_id is None
    for key in (K1, None):
        encrypted = {"encrypted": True, "encryption_key_id": key}
        cloud.answer = lambda *_, encrypted=encrypted: (200, {"volume": {**VOLUME, **encrypted}})
        # A service without a key manager has one key, which it does not show.
        assert catalogue.volume(CALLER, "v1").encryption_key_id == (key or FIXED_KEY)
    odd = {"encrypted": True, "encryption_key_id": "x" * 5000}
    cloud.answer = lambda *_: (200, {"volume": {**VOLUME, **odd}})
    with pytest.raises(ServiceUnavailable):
        catalogue.volume(CALLER, "v1")
    cloud.answer = lambda *_: (404, {})
    with pytest.raises(VolumeNotFound):
        catalogue.volume(CALLER, "v1")
    with pytest.raises(SnapshotNotFound):
        catalogue.snapshot(CALLER, "s1")
    cloud.answer = lambda *_: (403, {})
    with pytest.raises(Forbidden):
        catalogue.volume(CALLER, "v1")


def test_a_projects_volumes_are_listed_page_by_page(cloud: Cloud, client: Client) -> None:
    catalogue = CinderCatalogue(client, Volumes(client, Connections()))
    there = [{**VOLUME, "id": f"v{number}"} for number in range(5)]
    there[3]["metadata"] = {"backupfw_of": "v1"}
    most = 2

    def answer(method: str, path: str) -> tuple[int, Any]:
        parts = urlsplit(path)
        asked = dict(parse_qsl(parts.query))
        assert (method, parts.path) == ("GET", f"/volume/v3/{OURS}/volumes/detail")
        assert (asked["all_tenants"], asked["project_id"], asked["sort"]) == ("1", HIS, "id:asc")
        rest = [one for one in there if one["id"] > asked.get("marker", "")]
        links = [{"rel": "next", "href": "http://elsewhere/"}]
        return 200, {"volumes": rest[:most], **({"volumes_links": links} if rest[most:] else {})}

    cloud.answer = answer
    # A volume that this service has made for itself is nobody's to back up.
    assert [one.id for one in catalogue.volumes(HIS)] == ["v0", "v1", "v2", "v4"]
    assert [token for _, _, token, _ in cloud.seen] == ["our-token"] * 3
    most = 1000
    assert len(list(catalogue.volumes(HIS))) == 4
    assert len(cloud.seen) == 4
    there.clear()
    assert list(catalogue.volumes(HIS)) == []


@pytest.mark.parametrize(
    "answer",
    [
        (400, {"badRequest": {"code": 400, "message": "Invalid filters project_id are found"}}),
        (403, {}),
        (503, {}),
        (200, {"no": "volumes"}),
        # It ignores the filter, or the marker.
        (200, {"volumes": [{**VOLUME, "os-vol-tenant-attr:tenant_id": OURS}]}),
        (200, {"volumes": [VOLUME], "volumes_links": [{"rel": "next"}]}),
    ],
)
def test_a_list_that_may_lack_volumes_is_none(
    cloud: Cloud, client: Client, answer: tuple[int, dict[str, Any]]
) -> None:
    cloud.answer = lambda *_: answer
    with pytest.raises(ServiceUnavailable, match="Block Storage service"):
        list(CinderCatalogue(client, Volumes(client, Connections())).volumes(HIS))


def test_a_snapshot_is_described(cloud: Cloud, client: Client) -> None:
    cloud.answer = lambda *_: (
        200,
        {
            "snapshot": {
                "id": "s1",
                "volume_id": "v1",
                "status": "available",
                "size": 2,
                "created_at": "2026-11-29T01:02:03.000004",
                "os-extended-snapshot-attributes:project_id": HIS,
            }
        },
    )
    found = CinderCatalogue(client, Volumes(client, Connections())).snapshot(CALLER, "s1")
    assert (found.project_id, found.created_at.isoformat()) == (HIS, "2026-11-29T01:02:03.000004")


def test_who_sees_a_volume_need_not_own_it(cloud: Cloud, client: Client) -> None:
    """A service may let a reader see all projects' volumes, and show the owner to administrators only."""
    catalogue = CinderCatalogue(client, Volumes(client, Connections()))
    volume = {**VOLUME, "os-vol-tenant-attr:tenant_id": None}
    snapshot = {"id": "s1", "volume_id": "v1", "status": "available", "size": 1, "created_at": "2026-11-29"}
    owner: dict[str, str] = {"os-vol-tenant-attr:tenant_id": "p9"}
    owner |= {"os-extended-snapshot-attributes:project_id": "p9"}

    def answer(_method: str, path: str) -> tuple[int, Any]:
        more = owner if f"/{OURS}/" in path else {}
        return 200, {"volume": {**volume, **more}, "snapshot": {**snapshot, **more}}

    cloud.answer = answer
    assert catalogue.volume(CALLER, "v1").project_id == "p9"
    assert catalogue.snapshot(CALLER, "s1").project_id == "p9"
    owner.clear()
    with pytest.raises(ServiceUnavailable, match="whose volume"):
        catalogue.volume(CALLER, "v1")
    with pytest.raises(ServiceUnavailable, match="whose snapshot"):
        catalogue.snapshot(CALLER, "s1")


def test_a_volume_is_made_by_the_caller_only(cloud: Cloud, client: Client) -> None:
    catalogue = CinderCatalogue(client, Volumes(client, Connections()))
    wanted: dict[str, Any] = {
        "size": 1,
        "name": "n",
        "volume_type": None,
        "availability_zone": "az1",
        "metadata": {},
        "request": "r1",
    }
    with pytest.raises(InvalidInput, match="user who asks"):
        catalogue.create_volume(OPERATOR, **wanted)
    assert cloud.seen == []
    cloud.answer = lambda *_: (202, {"volume": {**VOLUME, "status": "creating"}, "volumes": []})
    assert catalogue.create_volume(CALLER, **wanted).status == "creating"
    assert {token for _, _, token, _ in cloud.seen} == {"his-token"}
    assert cloud.bodies[-1] == {
        "volume": {
            "size": 1, "name": "n", "availability_zone": "az1", "metadata": {"backupfw_request": "r1"}
        }
    }  # fmt: skip
    cloud.answer = lambda *_: (413, {"overLimit": {"code": 413, "message": "too much"}})
    with pytest.raises(QuotaExceeded, match="too much"):
        catalogue.create_volume(CALLER, **wanted)
    cloud.answer = lambda *_: (400, fault("no such zone"))
    with pytest.raises(InvalidInput, match="no such zone"):
        catalogue.create_volume(CALLER, **wanted)
    cloud.answer = lambda *_: (404, {})
    catalogue.delete_volume(CALLER, "v1")


def test_a_volume_whose_answer_was_lost_is_found_again(cloud: Cloud, client: Client) -> None:
    catalogue = CinderCatalogue(client, Volumes(client, Connections()))
    wanted = {"size": 1, "volume_type": None, "availability_zone": None, "metadata": {"a": "b"}}
    made: list[dict[str, Any]] = []
    away = False

    def answer(method: str, path: str) -> tuple[int, Any]:
        if method == "POST":
            made.append({**VOLUME, "status": "creating", **cloud.bodies[-1]["volume"], "id": f"m{len(made)}"})
            return 504, {}
        if method == "PUT":
            made[-1]["name"] = cloud.bodies[-1]["volume"]["name"]
            return 200, {"volume": made[-1]}
        # Some services do not filter.
        return (503, {}) if away and made else (200, {"volumes": [VOLUME, *made]})

    cloud.answer = answer
    found = catalogue.create_volume(CALLER, name="n", request="r1", **wanted)
    assert (found.id, found.project_id, found.metadata["a"]) == ("m0", HIS, "b")
    # Nobody can tell; whoever asks again gets it, by the name that he wants now.
    away = True
    with pytest.raises(ServiceUnavailable):
        catalogue.create_volume(CALLER, name="n", request="r2", **wanted)
    away = False
    made = [one for one in made if one["id"] == "m0"]
    found = catalogue.create_volume(CALLER, name="other", request="r1", **wanted)
    assert (found.id, found.name, made[0]["name"]) == ("m0", "other", "other")
    # It is of no use when it could not be made, or when somebody has it.
    for status in ("error", "in-use", "deleting"):
        made[0]["status"] = status
        assert catalogue.create_volume(CALLER, name="n", request="r1", **wanted).id == "m1"
        del made[1:]


def test_a_volume_that_is_not_made_yet_is_deleted_all_the_same(cloud: Cloud, client: Client) -> None:
    statuses = [400, 400, 202]
    cloud.answer = lambda *_: (statuses.pop(0), fault("Volume status must be available"))
    CinderCatalogue(client, Volumes(client, Connections())).delete_volume(CALLER, "v1")
    assert [(method, token) for method, _, token, _ in cloud.seen] == [("DELETE", "his-token")] * 3
    statuses += [403]
    with pytest.raises(Refused):
        CinderCatalogue(client, Volumes(client, Connections())).delete_volume(CALLER, "v1")


def test_an_answer_that_is_not_the_service_s_is_none(cloud: Cloud, client: Client) -> None:
    """A proxy answers with a page, or with something else, and says that all is well."""
    catalogue = CinderCatalogue(client, Volumes(client, Connections()))
    odd: tuple[Any, ...] = ("<html>", [], {}, {"volume": None}, {"volume": {**VOLUME, "size": "large"}})
    for body in (*odd, {"snapshot": {**VOLUME, "created_at": "yesterday"}}):
        cloud.answer = lambda *_, body=body: (200, body)
        with pytest.raises(ServiceUnavailable, match="temporarily"):
            catalogue.volume(CALLER, "v1")
        with pytest.raises(ServiceUnavailable):
            catalogue.snapshot(CALLER, "s1")
    cloud.answer = lambda *_: (200, {"volume": {**VOLUME, "metadata": None, "volume_image_metadata": None}})
    assert catalogue.volume(CALLER, "v1").metadata == {}


def test_an_error_s_text_is_cut(cloud: Cloud, client: Client) -> None:
    cloud.answer = lambda *_: (400, fault("x" * 5000))
    with pytest.raises(Refused) as refused:
        client.call("POST", "/volumes", {})
    assert refused.value.text == "x" * 255


class Connections(Host):
    """This host, which notes what is disconnected."""

    def __init__(self) -> None:
        self.ended: list[Any] = []

    def disconnect(self, info: Any, device: Any = None, *, force: bool = False) -> None:
        self.ended.append(info["device_path"])


@pytest.mark.parametrize("server", ["a-machine", None])
def test_a_volume_that_somebody_else_has_is_not_spoiled(
    cloud: Cloud, client: Client, server: str | None
) -> None:
    def answer(method: str, path: str) -> tuple[int, Any]:
        if "/attachments/detail" in path:
            one = {"id": "a1", "volume_id": "v1", "status": "attached", "instance": server}
            return 200, {"attachments": [one]}
        attached = {"attachment_id": "a1", "device": "/dev/vdb" if server else "backupfw-7"}
        return (200, {"volume": {**VOLUME, "attachments": [attached]}}) if method == "GET" else (202, {})

    cloud.answer = answer
    Volumes(client, Connections()).spoil("v1", None)
    changes = [(method, path.rpartition("/")[2]) for method, path, _, _ in cloud.seen if method != "GET"]
    assert changes == ([] if server else [("DELETE", "a1"), ("POST", "action")])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"auth_url": None}, "auth_url"),
        ({"auth_type": "v2password"}, "auth_type"),
        ({"auth_type": "v3applicationcredential"}, "an application credential ID"),
        ({"attach_dir": "attached"}, "attach_dir"),
    ],
)
def test_options_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CinderProvider(options(**{"auth_url": "http://127.0.0.1:1/v3", "rbd_pools": ["volumes"], **given}))


def test_what_left_attachments_have_connected_here_is_disconnected(cloud: Cloud, client: Client) -> None:
    def info(name: str, kind: str = "local") -> Any:
        return {"driver_volume_type": kind, "device_path": f"/dev/{name}"}

    hosts = {"here": socket.gethostname(), "there": "another", "ceph": socket.gethostname()}

    def answer(method: str, path: str) -> tuple[int, Any]:
        if "/attachments/detail" in path:
            common = {"volume_id": "v1", "status": "attached", "instance": None}
            kinds = {"ceph": "rbd"}
            return 200, {
                "attachments": [
                    {"id": name, "connection_info": info(name, kinds.get(name, "local")), **common}
                    for name in hosts
                ]
            }
        attached = [
            {"attachment_id": name, "device": "backupfw-7", "host_name": host} for name, host in hosts.items()
        ]
        return (200, {"volume": {**VOLUME, "attachments": attached}}) if method == "GET" else (202, {})

    cloud.answer = answer
    host = Connections()
    Volumes(client, host).detach_all("v1")
    assert host.ended == ["/dev/here"]
    assert [path.rpartition("/")[2] for method, path, _, _ in cloud.seen if method == "DELETE"] == list(hosts)


def test_which_volumes_are_in_ceph(cloud: Cloud, client: Client) -> None:
    pools = {"a@x#x": "ceph", "a@y#y": ["iSCSI", "iscsi"], "a@z#z": None}
    listed = [
        {"name": name, "capabilities": {"storage_protocol": protocol}} for name, protocol in pools.items()
    ]
    cloud.answer = lambda *_: (200, {"pools": listed})
    volumes = Volumes(client, Connections())
    found = [volumes.in_ceph({"os-vol-host-attr:host": place}) for place in (*pools, "a@away#away", None)]
    assert found == [True, False, None, None, None]
    # It is asked once for each that answers.
    asked = len(cloud.seen)
    assert volumes.in_ceph({"os-vol-host-attr:host": "a@y#y"}) is False
    assert len(cloud.seen) == asked


def test_a_volume_in_ceph_needs_its_pool(cloud: Cloud) -> None:
    pools = [{"name": "a@x#x", "capabilities": {"storage_protocol": "ceph"}}]
    volume = {**VOLUME, "os-vol-host-attr:host": "a@x#x"}
    cloud.answer = lambda _, path: (200, {"pools": pools} if "get_pools" in path else {"volume": volume})
    provider = CinderProvider(options(auth_url=f"{cloud.url}/identity/v3"))
    with pytest.raises(StorageChanged, match="in Ceph"):
        provider.open_point(VolumeRef("v1", 1 << 30), "p1")
    assert {method for method, _, _, _ in cloud.seen} == {"GET"}


class Images:
    """Stands for the provider of images: those that there are, and what is done with them."""

    def __init__(self, *places: str) -> None:
        self.places = set(places)
        self.kept: list[str] = []

    def look(self, image: VolumeRef) -> Storage:
        if image.location not in self.places:
            raise StorageChanged(f"volume {image.id}", "is gone", "")
        return Storage(str(image.location), image.length)

    def keep_points(self, image: VolumeRef, needed: Callable[[], Needed]) -> None:
        needed()
        self.kept.append(str(image.location))


def in_pools(cloud: Cloud, images: Images, monkeypatch: pytest.MonkeyPatch, **shown: Any) -> CinderProvider:
    """Return a provider for the volume v1, which is in Ceph and has these images."""
    pools = [{"name": "a@x#x", "capabilities": {"storage_protocol": "ceph"}}]
    volume = {**VOLUME, "os-vol-host-attr:host": "a@x#x", **shown}
    cloud.answer = lambda _, path: (
        200,
        {"pools": pools} if "get_pools" in path else {"volume": volume, "volumes": [], "snapshots": []},
    )
    provider = CinderProvider(options(auth_url=f"{cloud.url}/identity/v3"))
    monkeypatch.setattr(provider, "_rbd", images)
    monkeypatch.setattr(provider, "_pools", ("fast", "slow"))
    return provider


def test_old_bytes_are_not_taken_for_the_volume(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service moves a volume to another pool, and both have an image of its name for a while."""
    images = Images("rbd:fast/volume-v1")
    provider = in_pools(cloud, images, monkeypatch)
    volume = VolumeRef("v1", 1 << 30)
    assert provider.look(volume).length == 1 << 30
    images.places.add("rbd:slow/volume-v1")
    for use in (provider.look, lambda ref: provider.open_point(ref, "p1")):
        with pytest.raises(StorageChanged, match="several pools"):
            use(volume)
    provider.keep_points(volume, Needed)
    assert images.kept == ["rbd:fast/volume-v1", "rbd:slow/volume-v1"]
    images.places.remove("rbd:fast/volume-v1")
    assert provider.look(volume).length == 1 << 30


class Beginning(LocalTarget):
    """A target that has these bytes."""

    def __init__(self, content: bytes) -> None:
        self.content, self.length = content, len(content)

    def read_into(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.content[offset : offset + len(buffer)]


@pytest.mark.parametrize(
    ("key", "of_bytes", "same_header", "fits"),
    [
        (None, None, False, True),
        (K1, None, False, False),
        (None, K1, True, False),
        (K1, K1, False, True),
        (K2, K1, False, False),
        # A copy that the service has made, with a copy of the key.
        (K2, K1, True, True),
        # Perhaps it is the key of another service.
        (FIXED_KEY, FIXED_KEY, False, False),
        (FIXED_KEY, FIXED_KEY, True, True),
    ],
)
def test_only_bytes_that_the_volume_s_key_opens_are_written(
    cloud: Cloud, client: Client, key: str | None, of_bytes: str | None, same_header: bool, fits: bool
) -> None:
    shown = {"encrypted": key is not None, "encryption_key_id": None if key == FIXED_KEY else key}
    cloud.answer = lambda *_: (200, {"volume": {**VOLUME, **shown}})
    volumes = Volumes(client, Host(options()))
    target = Beginning(b"header".ljust(HEADER, b"\0") + b"data")
    header = hashlib.sha256(target.content[: HEADER if same_header else HEADER - 1]).hexdigest()
    encryption = None if of_bytes is None else Encryption(of_bytes, header)
    volume = VolumeRef("v1", 1 << 30, encryption=encryption)
    with nullcontext() if fits else pytest.raises(InvalidVolume, match="another key"):
        volumes.check_bytes(volume, target)
    # A backup needs the key that the volume had when it was asked for.
    with nullcontext() if key == of_bytes else pytest.raises(InvalidVolume, match="anew"):
        volumes.check_key(volume)


class Project:
    """The temporary snapshots and volumes that a service has; ``faults`` are the answers to some requests."""

    def __init__(self, bodies: list[Any]) -> None:
        self.bodies = bodies
        self.things: dict[str, dict[str, Any]] = {}
        self.faults: dict[str, int] = {}
        self.owner = HIS
        self.connection: dict[str, Any] = {}
        self.numbers = itertools.count(1)

    def add(self, kind: str, status: str, name: str, **fields: Any) -> str:
        number = f"{kind[:-1]}-{next(self.numbers)}"
        common = {"id": number, "kind": kind, "status": status, "name": name, "created_at": number}
        self.things[number] = {**common, "metadata": {"backupfw_of": "v1"}, "attachments": [], **fields}
        return number

    def answer(self, method: str, path: str) -> tuple[int, Any]:
        *_, kind, one = urlsplit(path).path.removesuffix("/action").split("/")
        if method == "GET" and one == "v1":
            attached = [
                {"attachment_id": each["id"], "device": each["connector"]["mountpoint"]}
                for each in self.things.values()
                if each["kind"] == "attachments" and each.get("volume_uuid") == one
            ]
            owner = {"os-vol-tenant-attr:tenant_id": self.owner}
            return 200, {"volume": {**VOLUME, "attachments": attached, **owner}}
        if one == "detail":
            return 200, {kind: [each for each in self.things.values() if each["kind"] == kind]}
        if one == "get_pools":
            return 200, {"pools": []}
        if one in ("volumes", "snapshots", "attachments"):
            if (status := self.faults.get(one)) is not None:
                return status, fault("no")
            (wanted,) = self.bodies[-1].values()
            more = {"volume_id": "v1", **wanted, "connection_info": self.connection}
            made = self.add(one, "available", more.pop("name", ""), **more)
            return 202, {one[:-1]: self.things[made]}
        if method == "GET":
            found = self.things.get(one)
            return (404, {}) if found is None else (200, {kind[:-1]: found})
        if one not in self.faults and not (kind == "attachments" and method == "POST"):
            self.things.pop(one, None)
        return 202, {}


@pytest.fixture
def project(cloud: Cloud) -> Project:
    made = Project(cloud.bodies)
    cloud.answer = made.answer
    return made


def test_what_could_not_be_made_is_made_again_of_the_same_snapshot(
    cloud: Cloud, client: Client, project: Project
) -> None:
    temporary = Temporary(client, Volumes(client, Connections()))
    snapshot = project.add("snapshots", "available", "backupfw-p1")
    wrong = project.add("volumes", "error", "backupfw-p1")
    project.add("volumes", "available", "backupfw-p2")
    found = temporary.hold(VolumeRef("v1", 1 << 30), "p1", no_tick)
    assert wrong not in project.things
    assert found["id"] not in (wrong, snapshot)
    wanted = {"snapshot_id": snapshot, "name": "backupfw-p1", "metadata": {"backupfw_of": "v1"}}
    assert {"volume": wanted} in cloud.bodies
    assert temporary.points("v1") >= {"p1", "p2"}


def test_what_is_used_up_or_stays_is_tried_again_later(client: Client, project: Project) -> None:
    temporary = Temporary(client, Volumes(client, Connections()))
    project.faults["snapshots"] = 413
    with pytest.raises(ServiceUnavailable, match="quota") as used_up:
        temporary.hold(VolumeRef("v1", 1 << 30), "p1", no_tick)
    stays = project.add("volumes", "error_deleting", "backupfw-p1")
    project.faults[stays] = 202
    with pytest.raises(ServiceUnavailable, match="not delete") as left:
        temporary.remove("v1", ["p1"])
    assert used_up.value.may_pass
    assert left.value.may_pass
    project.faults.clear()
    temporary.remove("v1", ["p1"])
    assert not project.things


def test_the_bytes_of_another_project_are_neither_read_nor_written(
    cloud: Cloud, project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner transfers his volume while his backup or restore waits for a worker."""
    disk = tmp_path / "disk"
    disk.write_bytes(b"b" * 4096)
    os.truncate(disk, 1 << 30)
    project.connection = {"driver_volume_type": "local", "device_path": str(disk)}
    monkeypatch.setattr(Host, "connector", lambda _self: {"host": "here"})
    provider = CinderProvider(options(auth_url=f"{cloud.url}/identity/v3", attach_dir=str(tmp_path / "a")))
    volume = VolumeRef("v1", 1 << 30, project_id=HIS)
    provider.open_point(volume, "p1").close()
    with provider.open_target(volume, 1):
        pass
    project.owner = OURS
    with pytest.raises(StorageChanged, match="another project"):
        provider.open_point(volume, "p1")
    with pytest.raises(StorageChanged, match="another project"), provider.open_target(volume, 1):
        pass
    assert project.things == {}
    del cloud.seen[:]
    for source in (None, Restored(bootable=True, metadata={"a": "b"})):
        provider.end_restore(volume, source)
    assert {method for method, _, _, _ in cloud.seen} == {"GET"}


def test_two_services_are_not_mixed(cloud: Cloud) -> None:
    other = Cloud()
    try:
        both = [
            CinderProvider.catalogue(options(auth_url=f"{one.url}/identity/v3")) for one in (cloud, other)
        ]
        cloud.answer = lambda *_: (200, {"volume": {**VOLUME, "name": "here"}})
        other.answer = lambda *_: (404, {})
        assert both[0].volume(CALLER, "v1").name == "here"
        with pytest.raises(VolumeNotFound):
            both[1].volume(CALLER, "v1")
        assert (len(cloud.seen), len(other.seen)) == (1, 1)
    finally:
        other.server.shutdown()
        other.server.server_close()


def test_passwords_of_connections_are_in_no_log(
    cloud: Cloud, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    info = {"driver_volume_type": "iscsi", "auth_password": "chap-secret"}
    listed = [
        {"id": "a1", "volume_id": "v1", "status": "attached", "instance": None, "connection_info": info}
    ]
    cloud.answer = lambda _, path: (
        200,
        {"attachments": listed, "attachment": listed[0]}
        if "/attachments" in path
        else {"volume": {**VOLUME, "attachments": []}},
    )
    volumes = Volumes(client, Connections())
    assert volumes.attach(VolumeRef("v1", 1 << 30), 1).info == info
    volumes.detach_all("v1")
    assert "v1" in caplog.text
    assert "chap-secret" not in caplog.text


@pytest.mark.parametrize("patience", [0.0, 60.0])
def test_a_reservation_of_nobody_may_be_one_of_ours_that_begins(
    cloud: Cloud, client: Client, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    """The service reserves the volume first, and records then who attaches it."""
    monkeypatch.setattr("backupfw_cinder.volumes._BEGINNING", patience)
    statuses = iter(["reserved", "available"])
    begun = {"id": "a1", "volume_id": "v1", "status": "reserved", "instance": None, "connection_info": {}}

    def answer(method: str, path: str) -> tuple[int, Any]:
        if path.endswith("/volumes/v1"):
            status = next(statuses, "in-use")
            return 200, {"volume": {**VOLUME, "status": status, "attachments": []}}
        listed = [] if "mountpoint" in path else [begun]
        return 200, {"attachment": begun} if method == "POST" else {"attachments": listed}

    cloud.answer = answer
    with nullcontext() if patience else pytest.raises(TargetError, match="Somebody else"):
        assert Volumes(client, Connections()).attach(VolumeRef("v1", 1 << 30), 1).id == "a1"
    assert ("DELETE", "/attachments/a1") not in [one[:2] for one in cloud.seen]


def test_a_device_that_a_later_attempt_has_is_left_alone(cloud: Cloud, client: Client) -> None:
    volumes = Volumes(client, Connections())
    mine = Attachment("a1", "v1", {})
    found: list[bool] = []
    here, other = socket.gethostname(), "another"
    for attached in ([], [("a1", here)], [("a2", other)], [("a2", here)]):
        shown = [
            {"attachment_id": name, "device": "backupfw-2", "host_name": host} for name, host in attached
        ]
        cloud.answer = lambda *_, shown=shown: (200, {"volume": {**VOLUME, "attachments": shown}})
        found.append(volumes.is_taken_over(mine))
    cloud.answer = lambda *_: (404, {})
    assert [*found, volumes.is_taken_over(mine)] == [False, False, False, True, False]


def test_where_a_new_volume_is_is_known_when_it_is_made(cloud: Cloud, client: Client) -> None:
    statuses = iter(("creating", "creating", "available"))
    cloud.answer = lambda *_: (200, {"volume": {**VOLUME, "status": next(statuses)}})
    assert Volumes(client, Connections()).made("v1")["status"] == "available"


@pytest.mark.parametrize(
    ("present", "alone"),
    [(["backupfw-7"], True), (["backupfw-7", "/dev/vdb"], False), ([], False), (["backupfw-7", None], False)],
)
def test_a_volume_that_was_not_ours_alone_is_not_restored(
    cloud: Cloud, client: Client, present: list[str | None], alone: bool
) -> None:
    """Several can attach a volume of some types, and its owner can delete our attachment."""
    shown = [{"attachment_id": f"a{one}", "device": one} for one in present]
    cloud.answer = lambda *_: (200, {"volume": {**VOLUME, "attachments": shown}})
    with nullcontext() if alone else pytest.raises(InvalidVolume, match="alone"):
        Volumes(client, Connections()).check_alone(Attachment("a1", "v1", {}))
