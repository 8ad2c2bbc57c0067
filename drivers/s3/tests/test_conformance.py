"""The conformance suite on real S3 servers, bare and under all layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from backupfw_s3.store import S3Store
from botocore.config import Config
from botocore.exceptions import ClientError

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.stack import stack
from backupfw.chunkstore.options import option_values
from backupfw.testing.chunkstore import ChunkStoreTests
from tests.servers.ceph import Ceph
from tests.servers.process import free_port
from tests.servers.seaweedfs import SeaweedFS

WRONG_SECRET = "a-wrong-secret-that-must-not-show"


class S3Suite(ChunkStoreTests):
    """What all servers have in common; the server is reached with a plain client of the SDK."""

    secrets = ("very-secret-key-of-the-tester", "AKIDTESTER0000000001", WRONG_SECRET)
    server_options: dict[str, object] = {"conditional_put": "yes"}

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
        return self.wrap(S3Store("s3", self.options(server)))

    def wrap(self, store: ChunkStore) -> ChunkStore:
        return store

    def open_unreachable(self, server: Any) -> ChunkStore:
        return self.wrap(S3Store("s3", self.options(server, endpoint=f"http://127.0.0.1:{free_port()}")))

    def open_refused(self, server: Any) -> ChunkStore:
        return self.wrap(S3Store("s3", self.options(server, secret_access_key=WRONG_SECRET)))

    _clients: dict[str, Any] = {}

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
            assert error.response["Error"]["Code"] == "NoSuchKey"
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
    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, ceph_server: Ceph) -> Iterator[Ceph]:
        yield ceph_server


@pytest.mark.server
class TestSeaweedFS(S3Suite):
    # It keeps folders: a part of a key is a file's name.
    longest_part = 255
    server_options = {"conditional_put": "yes", "sorted_listing": False}

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, seaweedfs_server: SeaweedFS) -> Iterator[SeaweedFS]:
        yield seaweedfs_server


@pytest.mark.server
class TestCephUnderLayers(S3Suite):
    listing_keys = 1200
    largest = 16 << 20
    model_examples = 2

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, ceph_server: Ceph) -> Iterator[Ceph]:
        yield ceph_server

    def wrap(self, store: ChunkStore) -> ChunkStore:
        values = {"retry_tries": 2, "retry_base_pause": 0.01}
        return stack(store, type("Options", (), values))
