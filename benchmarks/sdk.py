"""The other side of the comparison through a store: the bare SDK of S3 and of Swift, and nothing else."""

from __future__ import annotations

from typing import Any, Protocol

import boto3
from botocore.config import Config
from swiftclient import client as swiftclient

from tests.servers.ceph import Ceph
from tests.servers.swift import Swift

BUCKET = "bare"


class Objects(Protocol):
    """Moves objects; one for each thread."""

    def put(self, key: str, data: memoryview) -> None:
        """Store an object."""

    def get(self, key: str, offset: int, length: int) -> bytes:
        """Return a range of an object."""


class BareS3:
    """boto3 as it comes, but for the checksums that not every server knows."""

    def __init__(self, server: Ceph) -> None:
        self._client: Any = boto3.session.Session().client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )
        self._client.create_bucket(Bucket=BUCKET)

    def put(self, key: str, data: memoryview) -> None:
        """Put with what boto3 does by itself: over plain HTTP it signs the payload (SHA-256)."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=bytes(data))

    def get(self, key: str, offset: int, length: int) -> bytes:
        """Get a range."""
        answer = self._client.get_object(
            Bucket=BUCKET, Key=key, Range=f"bytes={offset}-{offset + length - 1}"
        )
        data: bytes = answer["Body"].read()
        return data


class BareSwift:
    """python-swiftclient with one kept connection."""

    def __init__(self, server: Swift) -> None:
        self._connection: Any = swiftclient.Connection(
            f"{server.url}/auth/v1.0", server.user, server.key, auth_version="1", retries=0
        )
        self._connection.put_container(BUCKET)

    def put(self, key: str, data: memoryview) -> None:
        """Put without a checksum: the least that works."""
        self._connection.put_object(BUCKET, key, contents=bytes(data), content_length=len(data))

    def get(self, key: str, offset: int, length: int) -> bytes:
        """Get a range."""
        _, data = self._connection.get_object(
            BUCKET, key, headers={"Range": f"bytes={offset}-{offset + length - 1}"}
        )
        found: bytes = data
        return found
