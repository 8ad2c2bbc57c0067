"""The conformance suite on real S3 servers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import boto3
import pytest
from backupfw_s3.store import S3Store
from botocore.config import Config
from botocore.exceptions import ClientError

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.errors import NotFound
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import ChunkStoreTests
from tests.servers.ceph import Ceph
from tests.servers.ports import free_port
from tests.servers.seaweedfs import SeaweedFS

WRONG_SECRET = "a-wrong-secret-that-must-not-show"


class S3Suite(ChunkStoreTests):
    """What all servers have in common; the server is reached with a plain client of the SDK."""

    secrets = ("very-secret-key-of-the-tester", "AKIDTESTER0000000001", WRONG_SECRET)
    # Small batches: the suite puts more keys than one takes.  Full ones are in test_servers.py.
    server_options: ClassVar[dict[str, object]] = {"conditional_put": "yes", "bulk_delete_size": 90}
    declared: ClassVar[dict[str, str]] = {"expire_token": "requests are signed, there are no tokens"}

    def options(self, server: Any, **changes: object) -> Any:
        values = {
            "endpoint": server.endpoint,
            "access_key_id": server.access_key,
            "secret_access_key": server.secret_key,
            "region": "us-east-1",
            **self.server_options,
            **changes,
        }
        return option_values(S3Store.options(), **values)

    def open_store(self, server: Any) -> ChunkStore:
        return S3Store("s3", self.options(server))

    def open_locking(self, server: Any) -> ChunkStore:
        options = self.options(server, delete_versions=True)
        options.lock_days = 1
        return S3Store("s3", options)

    def open_unreachable(self, server: Any) -> ChunkStore:
        return S3Store("s3", self.options(server, endpoint=f"http://127.0.0.1:{free_port()}"))

    def open_refused(self, server: Any) -> ChunkStore:
        return S3Store("s3", self.options(server, secret_access_key=WRONG_SECRET))

    def server_address(self, server: Any) -> tuple[str, int]:
        return "127.0.0.1", server.port

    def open_through(self, server: Any, host: str, port: int) -> ChunkStore:
        return S3Store("s3", self.options(server, endpoint=f"http://{host}:{port}"))

    _clients: ClassVar[dict[str, Any]] = {}

    def raw(self, server: Any) -> Any:
        if server.endpoint not in self._clients:
            self._clients[server.endpoint] = boto3.session.Session().client(
                "s3",
                endpoint_url=server.endpoint,
                aws_access_key_id=server.access_key,
                aws_secret_access_key=server.secret_key,
                region_name="us-east-1",
                config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
            )
        return self._clients[server.endpoint]

    def raw_put(self, server: Any, container: str, key: str, data: bytes) -> None:
        self.raw(server).put_object(Bucket=container, Key=key, Body=data)

    def raw_get(self, server: Any, container: str, key: str) -> bytes | None:
        try:
            data: bytes = self.raw(server).get_object(Bucket=container, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchKey":
                raise
            return None
        return data

    def raw_keys(self, server: Any, container: str) -> set[str]:
        pages = self.raw(server).get_paginator("list_objects_v2").paginate(Bucket=container)
        return {entry["Key"] for page in pages for entry in page.get("Contents", ())}

    def remove_container(self, server: Any, container: str) -> None:
        client = self.raw(server)
        keys = sorted(self.raw_keys(server, container))
        for start in range(0, len(keys), 1000):
            objects = [{"Key": key} for key in keys[start : start + 1000]]
            client.delete_objects(Bucket=container, Delete={"Objects": objects})
        client.delete_bucket(Bucket=container)


@pytest.mark.server
class TestCeph(S3Suite):
    # Three pages; the server does 200 puts a second.
    listing_keys = 2100
    model_examples = 5

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, ceph_server: Ceph) -> Ceph:
        return ceph_server

    def restart_server(self, server: Ceph) -> None:
        server.restart_gateway()

    @contextmanager
    def full_store(self, server: Ceph, container: str) -> Iterator[ChunkStore]:
        store = self.open_store(server)
        with server.quota(container, 1 << 20):
            yield store
        store.close()


@pytest.mark.server
class TestSeaweedFS(S3Suite):
    # It keeps folders: a part of a key is a file's name.
    longest_part = 255
    # An empty object is not found when keys lie in the folder of its name: see the last test.
    has_folders = True
    # It makes slashes of backslashes: see the last but one.
    key_pattern = r"[^\\]+"
    listing_keys = 2100
    model_examples = 5
    server_options: ClassVar[dict[str, object]] = {**S3Suite.server_options, "sorted_listing": False}
    declared: ClassVar[dict[str, str]] = {
        **S3Suite.declared,
        "full_store": "quotas are enforced by a command that somebody has to run, not by the server",
    }

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, seaweedfs_server: SeaweedFS) -> SeaweedFS:
        return seaweedfs_server

    def restart_server(self, server: SeaweedFS) -> None:
        server.stop()
        server.start()

    def test_the_server_makes_slashes_of_backslashes(self, server: SeaweedFS, container: str) -> None:
        self.raw_put(server, container, "back\\slash", b"x")
        assert self.raw_keys(server, container) == {"back/slash"}

    def test_the_server_takes_an_empty_object_for_a_folder(
        self, server: SeaweedFS, store: ChunkStore, container: str
    ) -> None:
        self.raw_put(server, container, "a/a", b"")
        self.raw_put(server, container, "a", b"")
        with pytest.raises(NotFound):
            store.get(container, "a", 0, 1)
