"""Answers that no good server gives, and what is sent: over real sockets, from a scripted server."""

from __future__ import annotations

import base64
import hashlib
import logging
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from blake3 import blake3

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import (
    AlreadyExists,
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    NoSpace,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
    Unavailable,
)
from backupfw.worker.reasons import user_reason

NS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
EMPTY_LIST = f"<ListBucketResult {NS}><IsTruncated>false</IsTruncated></ListBucketResult>".encode()


def listing(*keys: str, token: str | None = None, truncated: bool = False) -> bytes:
    entries = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in keys)
    more = f"<NextContinuationToken>{token}</NextContinuationToken>" if token else ""
    flag = "true" if truncated else "false"
    return (
        f"<ListBucketResult {NS}><IsTruncated>{flag}</IsTruncated>{more}{entries}</ListBucketResult>".encode()
    )


def error(code: str, more: str = "", message: str = "told by the server") -> bytes:
    return f"<Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>".encode()


def put_answers(status: int, headers: dict[str, str], body: bytes) -> Any:
    """Answer puts so, and let every container be there."""

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return (status, headers, body) if method == "PUT" else (200, {}, EMPTY_LIST)

    return answer


def etag(data: bytes) -> str:
    return f'"{hashlib.md5(data).hexdigest()}"'


# ---- errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind", "temporary"),
    [
        (403, "AccessDenied", PermissionDenied, False),
        (403, "InvalidAccessKeyId", PermissionDenied, False),
        (403, "RequestTimeTooSkewed", PermissionDenied, True),
        (400, "ExpiredToken", PermissionDenied, True),
        (400, "BadDigest", IntegrityError, True),
        (400, "RequestTimeout", Unavailable, True),
        (403, "QuotaExceeded", NoSpace, False),
        (507, "", NoSpace, False),
        (503, "SlowDown", Unavailable, True),
        (429, "", Unavailable, True),
        (500, "Whatever", Unavailable, True),
        (404, "NoSuchBucket", NotFound, False),
        (409, "OperationAborted", Unavailable, True),
        (400, "Whatever", ChunkStoreError, False),
        (418, "", ChunkStoreError, False),
    ],
)
def test_a_refused_put(
    scripted: Any, status: int, code: str, kind: type[ChunkStoreError], temporary: bool
) -> None:
    scripted.answer = put_answers(status, {}, error(code) if code else b"")
    with pytest.raises(ChunkStoreError) as caught:
        scripted.open().put("bucket", "key", Body.from_bytes(b"data"))
    assert type(caught.value) is kind
    assert caught.value.temporary is temporary
    assert (caught.value.store, caught.value.container, caught.value.key) == ("odd", "bucket", "key")
    assert "127.0.0.1" not in str(caught.value)
    assert [method for method, *_ in scripted.requests].count("PUT") == 1


def test_the_missing_permission_is_named(scripted: Any) -> None:
    scripted.answer = lambda method, path: (403, {}, error("AccessDenied"))
    for use, permission in (
        (lambda store: store.get("bucket", "key"), "s3:GetObject"),
        (lambda store: list(store.list("bucket")), "s3:ListBucket"),
        (lambda store: store.delete("bucket", ["key"]), "s3:DeleteObject"),
        (lambda store: list(store.list_containers()), "s3:ListAllMyBuckets"),
    ):
        with pytest.raises(PermissionDenied, match=permission):
            use(scripted.open())
    scripted.answer = put_answers(403, {}, error("AccessDenied"))
    report = scripted.open(check_bucket="bucket").check()
    (write,) = [item for item in report.items if item.name == "write"]
    assert not write.ok
    assert "s3:PutObject" in write.detail


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidAccessKeyId", "RequestTimeTooSkewed"])
def test_no_permission_is_named_where_none_is_missing(scripted: Any, code: str) -> None:
    scripted.answer = lambda method, path: (403, {}, error(code))
    for use in (
        lambda store: list(store.list("bucket")),
        lambda store: store.put("bucket", "key", Body.from_bytes(b"data")),
    ):
        with pytest.raises(PermissionDenied) as caught:
            use(scripted.open())
        assert "needs s3:" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "body"),
    [
        (400, {}, error("AuthorizationHeaderMalformed", "<Region>eu-north-1</Region>")),
        (400, {}, error("AuthorizationHeaderMalformed", "", "the region is wrong; expecting 'eu-north-1'")),
        (301, {"x-amz-bucket-region": "eu-north-1"}, error("PermanentRedirect")),
    ],
)
def test_a_wrong_region_is_reported(scripted: Any, status: int, headers: dict[str, str], body: bytes) -> None:
    """No server at hand looks at the region."""
    scripted.answer = lambda method, path: (status, headers, body)
    with pytest.raises(ChunkStoreError, match="region = eu-north-1") as caught:
        scripted.open().get("bucket", "key")
    assert not caught.value.temporary
    assert user_reason(caught.value, "req-1") == "The service asks for the store in a wrong region."
    assert "needs s3:" not in str(caught.value)


def test_a_signature_that_is_malformed_otherwise_is_no_region(scripted: Any) -> None:
    scripted.answer = lambda method, path: (400, {}, error("AuthorizationHeaderMalformed"))
    with pytest.raises(PermissionDenied) as caught:
        scripted.open().get("bucket", "key")
    assert "region" not in str(caught.value)


def test_a_skewed_clock_is_reported_with_what_the_server_says(scripted: Any) -> None:
    told = "<ServerTime>2026-01-02T03:04:05Z</ServerTime>"
    scripted.answer = lambda method, path: (403, {}, error("RequestTimeTooSkewed", told))
    with pytest.raises(PermissionDenied, match="the store's shows 2026-01-02T03:04:05Z, this host's 20"):
        scripted.open().get("bucket", "key")


def test_missing_credentials_are_named(
    scripted: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "missing"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(PermissionDenied, match="no credentials: neither access_key_id") as caught:
        scripted.open(access_key_id=None, secret_access_key=None).get("bucket", "key")
    assert user_reason(caught.value, "req-1") == "The service has no credentials for the store."
    assert scripted.requests == []


def test_retry_after_is_honoured(scripted: Any) -> None:
    scripted.answer = lambda method, path: (503, {"Retry-After": "17"}, error("SlowDown"))
    with pytest.raises(Unavailable) as caught:
        scripted.open().get("bucket", "key")
    assert caught.value.retry_after == 17


def test_an_error_with_a_good_status(scripted: Any) -> None:
    scripted.answer = lambda method, path: (200, {}, error("InternalError"))
    with pytest.raises(Unavailable):
        list(scripted.open().list("bucket"))
    with pytest.raises(Unavailable):
        scripted.open().delete("bucket", ["key"])


@pytest.mark.parametrize("body", [b"<html>no</html>", b"<ListBucket", b"\x00\x01"])
def test_an_answer_that_is_not_s3(scripted: Any, body: bytes) -> None:
    scripted.answer = lambda method, path: (502, {}, body)
    with pytest.raises(Unavailable) as caught:
        list(scripted.open().list("bucket"))
    assert caught.value.temporary


def test_nothing_is_tried_twice(scripted: Any) -> None:
    scripted.answer = lambda method, path: (503, {}, error("SlowDown"))
    with pytest.raises(Unavailable):
        scripted.open().get("bucket", "key")
    assert len(scripted.requests) == 1


def test_read_timeout(scripted: Any) -> None:
    scripted.answer = lambda method, path: (200, {"Content-Length": "10"}, b"12345")
    with pytest.raises(Unavailable):
        scripted.open(read_timeout=0.3).get("bucket", "key")


# ---- reading -----------------------------------------------------------------------------------------


def test_a_whole_answer_is_compared(scripted: Any) -> None:
    data = b"some bytes"
    good = {"ETag": etag(data), "x-amz-meta-Backupfw-Blake3": blake3(data).hexdigest()}
    scripted.answer = lambda method, path: (200, good, data)
    assert scripted.open().get("bucket", "key") == data
    for bad in (
        {**good, "x-amz-meta-Backupfw-Blake3": blake3(b"other").hexdigest()},
        {"ETag": etag(b"other")},
    ):
        scripted.answer = lambda method, path, bad=bad: (200, bad, data)
        with pytest.raises(IntegrityError) as caught:
            scripted.open().get("bucket", "key")
        assert caught.value.temporary
    # What is no MD5, or not of these bytes, is not compared.
    for other in (
        {"ETag": '"0123456789abcdef0123456789abcdef-3"'},
        {"ETag": etag(b"other"), "x-amz-server-side-encryption": "aws:kms"},
        {"ETag": etag(b"other"), "x-amz-server-side-encryption-customer-algorithm": "AES256"},
        {},
    ):
        scripted.answer = lambda method, path, other=other: (200, other, data)
        assert scripted.open().get("bucket", "key") == data
    scripted.answer = lambda method, path: (200, {"ETag": etag(b"other")}, data)
    assert scripted.open(etag_is_md5=False).get("bucket", "key") == data


def test_a_short_answer(scripted: Any) -> None:
    scripted.answer = lambda method, path: (200, {"Content-Length": "10", "Connection": "close"}, b"12345")
    with pytest.raises(ChunkStoreError) as caught:
        scripted.open().get("bucket", "key")
    assert caught.value.temporary


@pytest.mark.parametrize(
    ("status", "headers", "body", "expected"),
    [
        (206, {"Content-Range": "bytes 2-5/10"}, b"2345", b"2345"),
        (206, {"Content-Range": "bytes 2-5/*"}, b"2345", b"2345"),
        (206, {"Content-Range": "bytes 2-4/5"}, b"234", RangeError),
        (206, {"Content-Range": "bytes 2-4/10"}, b"234", IntegrityError),
        (206, {"Content-Range": "bytes 3-6/10"}, b"3456", IntegrityError),
        (206, {}, b"2345", IntegrityError),
        (200, {}, b"0123456789", IntegrityError),
        (200, {}, b"01234", RangeError),
        (200, {}, b"", RangeError),
        (416, {}, error("InvalidRange"), RangeError),
        (416, {}, b"", RangeError),
    ],
)
def test_answers_to_a_range(
    scripted: Any, status: int, headers: dict[str, str], body: bytes, expected: Any
) -> None:
    scripted.answer = lambda method, path: (status, headers, body)
    store = scripted.open()
    if isinstance(expected, bytes):
        assert store.get("bucket", "key", 2, 4) == expected
    else:
        with pytest.raises(expected):
            store.get("bucket", "key", 2, 4)
    assert scripted.requests[0][2]["range"] == "bytes=2-5"


# ---- writing -----------------------------------------------------------------------------------------


def test_what_a_put_sends(scripted: Any) -> None:
    data = bytes(range(256)) * 9000
    scripted.answer = put_answers(200, {"ETag": etag(data)}, b"")
    store = scripted.open(storage_class="COLD", server_encryption="sse-s3")
    store.put("bucket", "a key/\u00e9", Body.from_bytes(memoryview(bytearray(data))))
    store.put("bucket", "other", Body.from_bytes(data))
    # The container is looked for once.
    assert [method for method, *_ in scripted.requests] == ["GET", "PUT", "PUT"]
    _, path, headers, body = scripted.requests[1]
    assert path == "/bucket/a%20key/%C3%A9"
    assert body == data
    assert headers["content-length"] == str(len(data))
    assert headers["content-md5"] == base64.b64encode(hashlib.md5(data).digest()).decode()
    assert headers["x-amz-content-sha256"] == hashlib.sha256(data).hexdigest()
    assert headers["x-amz-meta-backupfw-blake3"] == blake3(data).hexdigest()
    assert headers["x-amz-storage-class"] == "COLD"
    assert headers["x-amz-server-side-encryption"] == "AES256"
    # Some servers refuse these headers.
    for name in headers:
        assert not name.startswith(("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")), name
    for name in ("transfer-encoding", "content-encoding", "expect", "x-amz-decoded-content-length"):
        assert name not in headers


def test_newer_checksums_are_sent_where_asked_for_but_not_as_trailers(scripted: Any) -> None:
    data = b"x" * 100_000
    scripted.answer = put_answers(200, {"ETag": etag(data)}, b"")
    scripted.open(checksum_mode="when_supported").put("bucket", "key", Body.from_bytes(data))
    _, _, headers, body = scripted.requests[-1]
    assert body == data
    assert headers["x-amz-checksum-crc32"] == "b6vWvw==" or len(headers["x-amz-checksum-crc32"]) == 8
    assert "x-amz-trailer" not in headers
    assert "content-encoding" not in headers


def test_a_server_that_does_not_compare_is_compared_with(scripted: Any) -> None:
    scripted.answer = put_answers(200, {"ETag": etag(b"other")}, b"")
    with pytest.raises(IntegrityError) as caught:
        scripted.open(bulk_delete_size=1).put("bucket", "key", Body.from_bytes(b"data"))
    assert caught.value.temporary
    # What is there must not be taken for the object.
    assert scripted.requests[-1][:2] == ("DELETE", "/bucket/key")
    scripted.open(etag_is_md5=False).put("bucket", "key", Body.from_bytes(b"data"))


def test_put_does_not_make_containers(scripted: Any) -> None:
    scripted.answer = lambda method, path: (
        (404, {}, error("NoSuchBucket")) if method == "GET" else (200, {}, b"")
    )
    with pytest.raises(NotFound):
        scripted.open().put("bucket", "key", Body.from_bytes(b"data"))
    assert "PUT" not in {method for method, *_ in scripted.requests}


def test_conditional_put(scripted: Any) -> None:
    body = Body.from_bytes(b"data")
    scripted.answer = put_answers(412, {}, error("PreconditionFailed"))
    with pytest.raises(NotSupported):
        scripted.open().put("bucket", "key", body, if_absent=True)
    assert scripted.requests == []
    with pytest.raises(AlreadyExists):
        scripted.open(conditional_put="yes").put("bucket", "key", body, if_absent=True)
    assert scripted.requests[-1][2]["if-none-match"] == "*"
    scripted.answer = put_answers(409, {}, error("ConditionalRequestConflict"))
    with pytest.raises(Unavailable):
        scripted.open(conditional_put="yes").put("bucket", "key", body, if_absent=True)
    scripted.answer = put_answers(501, {}, error("NotImplemented"))
    with pytest.raises(NotSupported):
        scripted.open(conditional_put="yes").put("bucket", "key", body, if_absent=True)


@pytest.mark.parametrize(
    ("location", "sent"), [(None, b""), ("north", b"<LocationConstraint>north</LocationConstraint>")]
)
def test_new_buckets_are_where_they_should_be(scripted: Any, location: str | None, sent: bytes) -> None:
    scripted.answer = lambda method, path: (
        (404, {}, error("NoSuchBucket")) if method == "GET" else (200, {}, b"")
    )
    scripted.open(bucket_location=location, region="south").ensure_container("bucket")
    method, path, _, body = scripted.requests[-1]
    assert (method, path) == ("PUT", "/bucket")
    assert sent in body
    assert bool(body) == bool(sent)


def test_somebody_elses_bucket(scripted: Any) -> None:
    scripted.answer = lambda method, path: (
        (404, {}, error("NoSuchBucket")) if method == "GET" else (409, {}, error("BucketAlreadyExists"))
    )
    with pytest.raises(PermissionDenied, match="somebody else"):
        scripted.open().ensure_container("bucket")


# ---- listing and deleting ----------------------------------------------------------------------------


def test_all_pages_are_read(scripted: Any) -> None:
    pages = {None: listing("a", "b", token="one", truncated=True), "one": listing("c%2Bd")}
    pages["one"] = pages["one"].replace(b"<Contents>", b"<EncodingType>url</EncodingType><Contents>", 1)

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        query = parse_qs(urlsplit(path).query)
        assert query["encoding-type"] == ["url"]
        return 200, {}, pages[query.get("continuation-token", [None])[0]]

    scripted.answer = answer
    assert [info.key for info in scripted.open().list("bucket", start_after="0")] == ["a", "b", "c+d"]
    assert "start-after=0" in scripted.requests[0][1]
    assert "start-after" not in scripted.requests[1][1]


@pytest.mark.parametrize("token", [None, "same"])
def test_a_listing_that_cannot_go_on_is_an_error(scripted: Any, token: str | None) -> None:
    scripted.answer = lambda method, path: (200, {}, listing("a", token=token, truncated=True))
    with pytest.raises(ChunkStoreError, match="cut off"):
        list(scripted.open().list("bucket"))


def test_listings_are_lazy(scripted: Any) -> None:
    scripted.answer = lambda method, path: (200, {}, listing("a", "b", token="more", truncated=True))
    found = scripted.open().list("bucket")
    assert scripted.requests == []
    assert [next(found).key, next(found).key] == ["a", "b"]
    assert len(scripted.requests) == 1


def deleted(*keys: str, errors: dict[str, str] | None = None) -> bytes:
    good = "".join(f"<Deleted><Key>{key}</Key></Deleted>" for key in keys)
    bad = "".join(
        f"<Error><Key>{key}</Key><VersionId></VersionId><Code>{code}</Code></Error>"
        for key, code in (errors or {}).items()
    )
    return f"<DeleteResult {NS}>{good}{bad}</DeleteResult>".encode()


def test_every_key_of_a_bulk_delete_is_accounted_for(scripted: Any) -> None:
    errors = {"b": "AccessDenied", "c": "InternalError", "d": "NoSuchKey"}
    scripted.answer = lambda method, path: (200, {}, deleted("a", errors=errors))
    with pytest.raises(DeleteFailed) as caught:
        scripted.open().delete("bucket", ["a", "b", "c", "d", "e"])
    found = caught.value.errors
    assert {key: type(each) for key, each in found.items()} == {
        "b": PermissionDenied,
        "c": Unavailable,
        "e": Unavailable,
    }
    assert [key for key, each in found.items() if each.temporary] == ["c", "e"]
    method, path, headers, body = scripted.requests[0]
    assert (method, path) == ("POST", "/bucket?delete")
    assert headers["content-md5"] == base64.b64encode(hashlib.md5(body).digest()).decode()
    assert not [name for name in headers if "checksum" in name]


def test_a_failed_request_leaves_the_others(scripted: Any) -> None:
    answers = iter([(503, {}, error("SlowDown")), (200, {}, deleted("c", "d"))])
    scripted.answer = lambda method, path: next(answers)
    with pytest.raises(DeleteFailed) as caught:
        scripted.open(bulk_delete_size=2).delete("bucket", ["a", "b", "c", "d"])
    assert set(caught.value.errors) == {"a", "b"}
    assert caught.value.temporary


def test_keys_one_by_one(scripted: Any) -> None:
    scripted.answer = lambda method, path: (
        (403, {}, error("AccessDenied")) if "kept" in path else (204, {}, b"")
    )
    with pytest.raises(DeleteFailed) as caught:
        scripted.open(bulk_delete_size=1).delete("bucket", ["a", "kept", "b", "a"])
    assert set(caught.value.errors) == {"kept"}
    assert [path for _, path, *_ in scripted.requests] == ["/bucket/a", "/bucket/kept", "/bucket/b"]


def test_a_key_that_xml_cannot_hold(scripted: Any) -> None:
    scripted.answer = lambda method, path: (200, {}, deleted("a")) if method == "POST" else (204, {}, b"")
    scripted.open().delete("bucket", ["a", "odd\uffff"])
    assert [method for method, *_ in scripted.requests] == ["POST", "DELETE"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (501, error("NotImplemented")),
        (400, error("InvalidArgument")),
        (400, error("MissingContentMD5")),
        (405, error("MethodNotAllowed")),
        (404, error("NoSuchKey")),
        (400, b""),
    ],
)
def test_a_server_without_bulk_deletes(
    scripted: Any, caplog: pytest.LogCaptureFixture, status: int, body: bytes
) -> None:
    """All servers at hand have them: found out at the first delete, said once, then left alone."""
    scripted.answer = lambda method, path: (status, {}, body) if method == "POST" else (204, {}, b"")
    store = scripted.open()
    assert store.capabilities.bulk_delete == 1000
    store.delete("bucket", ["a", "b"])
    assert [method for method, *_ in scripted.requests] == ["POST", "DELETE", "DELETE"]
    # The retry layer asks before each batch.
    assert store.capabilities.bulk_delete == 1
    store.delete("bucket", ["c", "d"])
    assert [method for method, *_ in scripted.requests[3:]] == ["DELETE", "DELETE"]
    (record,) = [record for record in caplog.records if record.name.startswith("backupfw")]
    assert "bulk_delete_size = 1" in record.getMessage()
    assert "Store odd" in record.getMessage()


def test_check_names_the_option_for_servers_without_bulk_deletes(scripted: Any) -> None:
    objects: dict[str, bytes] = {}

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        url = urlsplit(path)
        key = unquote(url.path.removeprefix("/bucket").removeprefix("/"))
        query = parse_qs(url.query, keep_blank_values=True)
        if method == "POST" or "versions" in query:
            return 501, {}, error("NotImplemented")
        if not key:
            found = sorted(name for name in objects if name.startswith(query.get("prefix", [""])[0]))
            return 200, {}, listing(*found).replace(b"<Size>1<", b"<Size>4096<")
        if method == "PUT":
            if scripted.requests[-1][2].get("content-md5") == "1B2M2Y8AsgTpgAmY7PhCfg==":
                return 400, {}, error("BadDigest")
            objects[key] = scripted.requests[-1][3]
            return 200, {"ETag": etag(objects[key])}, b""
        if method == "DELETE":
            objects.pop(key, None)
            return 204, {}, b""
        if key not in objects:
            return 404, {}, error("NoSuchKey")
        if asked := scripted.requests[-1][2].get("range"):
            first, last = map(int, asked.removeprefix("bytes=").split("-"))
            head = {"Content-Range": f"bytes {first}-{last}/{len(objects[key])}"}
            return 206, head, objects[key][first : last + 1]
        return 200, {}, objects[key]

    scripted.answer = answer
    report = scripted.open(check_bucket="bucket").check()
    assert report.ok, report
    assert [item.name for item in report.items if item.warning] == ["bulk-delete"]
    (told,) = [item.detail for item in report.items if item.warning]
    assert "bulk_delete_size = 1" in told
    assert objects == {}


def test_a_bulk_delete_that_fails_otherwise_teaches_nothing(scripted: Any) -> None:
    for status, code in (
        (403, "AccessDenied"),
        (400, "ExpiredToken"),
        (503, "SlowDown"),
        (404, "NoSuchBucket"),
    ):
        scripted.requests.clear()
        scripted.answer = lambda method, path, status=status, code=code: (status, {}, error(code))
        store = scripted.open()
        with suppress(ChunkStoreError):
            store.delete("bucket", ["a", "b"])
        assert [method for method, *_ in scripted.requests] == ["POST"], code
        assert store.capabilities.bulk_delete == 1000
    # Single requests fare no better: the bulk one may be as good.
    scripted.answer = lambda method, path: (400, {}, error("InvalidArgument"))
    store = scripted.open()
    with pytest.raises(ChunkStoreError):
        store.delete("bucket", ["a", "b"])
    assert store.capabilities.bulk_delete == 1000


@pytest.mark.parametrize("mode", ["when_required", "when_supported"])
def test_bulk_deletes_carry_their_md5(scripted: Any, mode: str) -> None:
    """Some servers insist on it, whatever newer checksum comes along."""
    scripted.answer = lambda method, path: (200, {}, deleted("a", "b"))
    scripted.open(checksum_mode=mode).delete("bucket", ["a", "b"])
    _, _, headers, body = scripted.requests[0]
    assert headers["content-md5"] == base64.b64encode(hashlib.md5(body).digest()).decode()
    assert any("x-amz-checksum" in name for name in headers) == (mode == "when_supported")


def test_a_listing_of_versions_that_cannot_go_on_is_an_error(scripted: Any) -> None:
    answer = f"<ListVersionsResult {NS}><IsTruncated>true</IsTruncated></ListVersionsResult>".encode()
    scripted.answer = lambda method, path: (200, {}, answer)
    with pytest.raises(ChunkStoreError, match="cut off"):
        scripted.open(delete_versions=True).delete("bucket", ["a"])
    assert {method for method, *_ in scripted.requests} == {"GET"}


def test_versions_are_deleted_the_oldest_first_and_their_marker_last(scripted: Any) -> None:
    """Over pages too: a delete that is cut off brings no older version back."""

    def page(versions: str, more: str) -> bytes:
        return f"<ListVersionsResult {NS}>{more}{versions}</ListVersionsResult>".encode()

    def entry(kind: str, version: str) -> str:
        return f"<{kind}><Key>a</Key><VersionId>{version}</VersionId></{kind}>"

    more = "<NextKeyMarker>a</NextKeyMarker><NextVersionIdMarker>v3</NextVersionIdMarker>"
    first = page(
        entry("DeleteMarker", "v5") + entry("Version", "v4") + entry("Version", "v3"),
        f"<IsTruncated>true</IsTruncated>{more}",
    )
    second = page(entry("Version", "v2") + entry("Version", "v1"), "<IsTruncated>false</IsTruncated>")

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if method == "DELETE":
            return 204, {}, b""
        return 200, {}, second if "key-marker" in path else first

    scripted.answer = answer
    scripted.open(delete_versions=True, bulk_delete_size=1).delete("bucket", ["a"])
    gone = [
        parse_qs(urlsplit(path).query)["versionId"]
        for method, path, *_ in scripted.requests
        if method == "DELETE"
    ]
    assert gone == [["v1"], ["v2"], ["v3"], ["v4"], ["v5"]]


@pytest.mark.parametrize("status", [404, 501])
def test_a_server_that_cannot_list_versions_is_no_empty_bucket(scripted: Any, status: int) -> None:
    scripted.answer = lambda method, path: (
        status,
        {},
        error("NotImplemented" if status == 501 else "NoSuchKey"),
    )
    with pytest.raises(NotSupported):
        scripted.open(delete_versions=True).delete("bucket", ["a"])
    assert {method for method, *_ in scripted.requests} == {"GET"}


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (403, "AccessDenied")])
def test_erasing_where_versions_cannot_be_listed(scripted: Any, status: int, code: str) -> None:
    """A bucket without versions is erased all the same; that it has none has to be known."""

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if "versions" in path:
            return status, {}, error(code)
        if "versioning" in path:
            return 200, {}, f"<VersioningConfiguration {NS}/>".encode()
        return (200, {}, deleted("a")) if method == "POST" else (200, {}, listing("a"))

    scripted.answer = answer
    scripted.open().erase("bucket", "a")
    assert [method for method, *_ in scripted.requests][-1] == "POST"
    scripted.answer = lambda method, path: (403, {}, error("AccessDenied"))
    with pytest.raises(PermissionDenied, match="ListBucketVersions"):
        scripted.open().erase("bucket", "a")


def test_settings_that_may_not_be_asked_for(scripted: Any) -> None:
    scripted.answer = lambda method, path: (403, {}, error("AccessDenied"))
    items = scripted.open().inspect("bucket")
    assert all(item.ok and item.warning for item in items)
    assert "needs s3:GetBucketVersioning" in items[0].detail
    assert "needs s3:GetBucketObjectLockConfiguration" in items[1].detail


# ---- secrets -----------------------------------------------------------------------------------------


def test_not_even_debugging_shows_secrets(scripted: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("botocore", "botocore.endpoint", "botocore.auth", "botocore.parsers"):
        caplog.set_level(logging.DEBUG, logger=name)
    values = {
        "access_key_id": "AKIDNEVERSHOWN",
        "secret_access_key": "never-shown-secret",
        "session_token": "never-shown-token",
        "proxy": "http://never-shown-user:never-shown-password@127.0.0.1:1/",
    }
    said = []
    scripted.answer = lambda method, path: (403, {}, error("AccessDenied"))
    for changes in ({"proxy": None}, {}):
        store = scripted.open(**{**values, **changes})
        for use in (
            lambda: store.put("bucket", "key", Body.from_bytes(b"data")),  # noqa: B023
            lambda: store.get("bucket", "key"),  # noqa: B023
            lambda: store.delete("bucket", ["key"]),  # noqa: B023
        ):
            with pytest.raises(ChunkStoreError) as caught:
                use()
            said += traceback.format_exception(caught.value)
        said += [repr(store), repr(vars(store))]
    said += [record.getMessage() for record in caplog.records]
    assert len(caplog.records) > 0
    for text in ("AKIDNEVERSHOWN", "never-shown"):
        assert not [line for line in said if text in line]


def test_requests_go_through_the_proxy(scripted: Any) -> None:
    scripted.answer = lambda method, path: (404, {}, error("NoSuchKey"))
    store = scripted.open(endpoint="http://storage.invalid", proxy=scripted.endpoint)
    with pytest.raises(NotFound):
        store.get("bucket", "key")
    # A plain HTTP proxy is asked for the absolute address.
    assert [request[:2] for request in scripted.requests] == [("GET", "http://storage.invalid/bucket/key")]
