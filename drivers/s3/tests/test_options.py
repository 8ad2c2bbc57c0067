"""Options: bounds, what does not fit together, and the table in the README."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import pytest
from backupfw_s3.store import S3Store

from backupfw.chunkstore.errors import Unavailable
from backupfw.chunkstore.options import ConfigError, option_values
from backupfw.naming import container_problem
from backupfw.testing.readme import require_options_table

README = Path(__file__).parents[1] / "README.md"
KEY = base64.b64encode(bytes(range(32))).decode()
GOOD: dict[str, Any] = {"access_key_id": "AKID", "secret_access_key": "secret"}


def open_store(**values: object) -> S3Store:
    return S3Store("main", option_values(S3Store.options(), **values))


@pytest.mark.parametrize(
    "values",
    [
        {"access_key_id": "AKID"},
        {"secret_access_key": "hidden"},
        {"session_token": "hidden"},
        {**GOOD, "profile": "p"},
        {**GOOD, "server_encryption": "sse-c"},
        {**GOOD, "server_encryption": "sse-c", "customer_key": "hidden"},
        {**GOOD, "server_encryption": "sse-c", "customer_key": "aGlkZGVu"},
        {**GOOD, "server_encryption": "sse-c", "customer_key": KEY, "endpoint": "http://s3.example.org"},
        {**GOOD, "customer_key": KEY},
        {**GOOD, "kms_key_id": "id"},
        {**GOOD, "endpoint": "https://user:hidden@s3.example.org"},
        {**GOOD, "endpoint": "ftp://s3.example.org"},
        {**GOOD, "endpoint": "s3.example.org"},
        {**GOOD, "bulk_delete_size": 0},
        {**GOOD, "bulk_delete_size": 1001},
        {**GOOD, "pool_size": 0},
        {**GOOD, "read_timeout": 0},
        {**GOOD, "addressing_style": "other"},
        {**GOOD, "checksum_mode": "never"},
        {**GOOD, "server_encryption": "rot13"},
        {"profile": "there-is-no-such-profile"},
    ],
)
def test_wrong_options_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        open_store(**values)
    assert "hidden" not in str(caught.value)
    assert KEY not in str(caught.value)


def test_good_options_are_taken() -> None:
    open_store(**GOOD).close()
    open_store(**GOOD, server_encryption="sse-c", customer_key=KEY, endpoint="https://s3.example.org").close()
    open_store(
        **GOOD, server_encryption="sse-kms", kms_key_id="id", endpoint="https://s3.example.org/sub"
    ).close()
    open_store(**GOOD, signature="v2", endpoint="http://s3.example.org:7480", proxy="http://p:1").close()


def test_what_depends_on_aws() -> None:
    aws = open_store(**GOOD, region="eu-west-3")
    assert aws.capabilities.if_absent
    assert aws.client.meta.endpoint_url == "https://s3.eu-west-3.amazonaws.com"
    assert aws.client.meta.config.request_checksum_calculation == "when_supported"
    other = open_store(**GOOD, endpoint="https://s3.example.org")
    assert not other.capabilities.if_absent
    assert other.client.meta.config.request_checksum_calculation == "when_required"
    assert other.client.meta.config.s3["addressing_style"] == "path"
    assert other.client.meta.config.retries["total_max_attempts"] == 1


@pytest.mark.parametrize(
    ("values", "address"),
    [
        ({"endpoint": "https://s3.example.org"}, "https://s3.example.org/bucket/key"),
        ({"endpoint": "https://s3.example.org/sub"}, "https://s3.example.org/sub/bucket/key"),
        (
            {"endpoint": "https://s3.example.org", "addressing_style": "virtual"},
            "https://bucket.s3.example.org/key",
        ),
        ({"region": "eu-west-3"}, "https://bucket.s3.eu-west-3.amazonaws.com/key"),
        (
            {"region": "eu-west-3", "addressing_style": "path"},
            "https://s3.eu-west-3.amazonaws.com/bucket/key",
        ),
    ],
)
def test_where_the_bucket_stands(values: dict[str, Any], address: str) -> None:
    store = open_store(**GOOD, **values)
    addresses: list[str] = []

    def catch(request: Any, **_: object) -> None:
        addresses.append(request.url)
        raise OSError("caught")

    store.client.meta.events.register("before-send.s3", catch)
    with pytest.raises(Unavailable):
        store.get("bucket", "key")
    assert addresses == [address]


def test_the_environment_leads_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://elsewhere.example.org")
    assert open_store(**GOOD, region="us-east-1").client.meta.endpoint_url.endswith("amazonaws.com")


def test_the_sdks_own_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        "[backups]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = s\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    store = open_store(profile="backups", endpoint="http://127.0.0.1:1")
    assert store.client._request_signer._credentials.access_key == "AKIDPROFILE"


@pytest.mark.parametrize("name", ["volumebackups", "a-1", "a.b.c", "x" * 63, "1a2"])
def test_bucket_names(name: str) -> None:
    assert container_problem(name) is None
    assert re.fullmatch(S3Store.container_pattern, name)


BAD_NAMES = (
    *("ab", "x" * 64, "Upper", "a_b", "-a1", "a1-", "a..b", "a.-b", "a-.b", "192.168.0.1", "xn--abc"),
    *("\u00e9abc", "abc-s3alias", "a/b", "a b", "abc\n"),
)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_what_is_no_bucket_name(name: str) -> None:
    assert not re.fullmatch(S3Store.container_pattern, name)


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, S3Store.options())
