"""Options: bounds, bucket names, errors without a server, and the table in the README."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import requests
from backupfw_gcs.errors import Refused, translate
from backupfw_gcs.store import GcsStore
from google.auth import exceptions as auth

from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    IntegrityError,
    NoSpace,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
    Unavailable,
)
from backupfw.chunkstore.options import ConfigError, option_values
from backupfw.naming import container_problem
from backupfw.testing.readme import require_options_table

README = Path(__file__).parents[1] / "README.md"


def open_store(**values: object) -> GcsStore:
    return GcsStore("main", option_values(GcsStore.options(), **values))


@pytest.mark.parametrize(
    "values",
    [
        {"anonymous": True, "service_account_file": "/etc/key.json"},
        {"endpoint": "https://user:hidden@storage.example.org"},
        {"endpoint": "ftp://storage.example.org"},
        {"endpoint": "https://storage.example.org/path"},
        {"location": "no where"},
        {"storage_class": "TAPE"},
        {"bulk_delete_size": 0},
        {"bulk_delete_size": 101},
        {"pool_size": 0},
        {"connect_timeout": 0},
        {"read_timeout": 3601},
        {"proxy": "socks5://127.0.0.1:1"},
        {"unknown": 1},
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(**values)
    assert "/etc/key.json" not in str(caught.value)


def test_opening_asks_nobody() -> None:
    store = open_store()
    assert store.capabilities.if_absent
    assert store.capabilities.bulk_delete == 100
    store.close()


@pytest.mark.parametrize(
    "name", ["volumebackups", "a-1", "a_b", "a.b.c", "x" * 63, "1a2", f"{'x' * 63}.{'y' * 63}", "abc--d"]
)
def test_bucket_names(name: str) -> None:
    assert container_problem(name) is None
    assert re.fullmatch(GcsStore.container_pattern, name)


BAD_NAMES = (
    *("ab", "x" * 64, "Upper", "-a1", "a1-", "a..b", "a.-b", ".abc", "192.168.0.1", "goog-x", "my-google"),
    *("\u00e9abc", "a/b", "a b", "abc\n", ".".join(["x" * 60] * 4)),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_bucket_name(name: str) -> None:
    assert not re.fullmatch(GcsStore.container_pattern, name)


def answer(status: int, message: str = "", reason: str = "", **headers: str) -> Exception:
    """Return the error for an answer."""
    content = {"error": {"message": message, "errors": [{"reason": reason}]}}
    return Refused(status, headers, json.dumps(content).encode())


@pytest.mark.parametrize(
    ("error", "kind", "temporary"),
    [
        (answer(400, "Invalid argument"), ChunkStoreError, False),
        (answer(400, 'Provided CRC32C "x" doesn\'t match calculated CRC32C "y".'), IntegrityError, True),
        (answer(401), PermissionDenied, False),
        (answer(403, "no", "forbidden"), PermissionDenied, False),
        (answer(403, "slow", "rateLimitExceeded"), Unavailable, True),
        (answer(404), NotFound, False),
        (answer(408), Unavailable, True),
        (answer(409), Unavailable, True),
        (answer(412), AlreadyExists, False),
        (answer(416), RangeError, False),
        (answer(418), ChunkStoreError, False),
        (answer(429), Unavailable, True),
        (answer(500), Unavailable, True),
        (answer(501), NotSupported, False),
        (answer(503), Unavailable, True),
        (answer(507), NoSpace, False),
        (auth.DefaultCredentialsError("secret-path"), PermissionDenied, False),
        (auth.RefreshError("secret-path", {"error": "invalid_grant"}), PermissionDenied, False),
        (auth.RefreshError("secret-path", retryable=True), Unavailable, True),
        (auth.TransportError("secret-path"), Unavailable, True),
        (auth.MalformedError("secret-path"), PermissionDenied, False),
        (requests.exceptions.ConnectionError("secret-path"), Unavailable, True),
        (requests.exceptions.ReadTimeout("secret-path"), Unavailable, True),
        (requests.exceptions.ChunkedEncodingError("secret-path"), Unavailable, True),
        (requests.exceptions.ProxyError("secret-path"), Unavailable, True),
        (requests.exceptions.InvalidURL("secret-path"), ChunkStoreError, False),
        (ValueError("secret-path"), Unavailable, True),
    ],
)
def test_the_table_of_errors(error: Exception, kind: type[ChunkStoreError], temporary: bool) -> None:
    found = translate(error, "main", "container", "key", "storage.objects.get")
    assert type(found) is kind
    assert found.temporary is temporary
    assert (found.store, found.container, found.key) == ("main", "container", "key")
    assert "secret-path" not in str(found)
    assert "example.org" not in str(found)


def test_how_long_to_wait() -> None:
    waits = {"9": 9.0, "": None, "Wed, 21 Oct 2015 07:28:00 GMT": 0.0, "\u0661": None}
    for value, seconds in waits.items():
        found = translate(answer(503, **{"Retry-After": value}), "main")
        assert found.retry_after == seconds


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, GcsStore.options())
