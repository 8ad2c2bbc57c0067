"""What the driver makes of each answer: over real connections, from a server that answers as told.

For answers that real servers cannot be brought to give at will; test_servers.py has the rest.
"""

from __future__ import annotations

import email.utils
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from backupfw_swift import store as store_module
from backupfw_swift.store import SwiftStore
from requests.structures import CaseInsensitiveDict

from backupfw.chunkstore.base import Body
from backupfw.chunkstore.errors import (
    ChunkStoreError,
    DeleteFailed,
    IntegrityError,
    InvalidName,
    NoSpace,
    NotFound,
    NotSupported,
    PermissionDenied,
    RangeError,
    Unavailable,
)
from backupfw.chunkstore.options import option_values

X = Body.from_bytes(b"some bytes")
ETAG = hashlib.md5(b"some bytes", usedforsecurity=False).hexdigest()


@dataclass
class Answer:
    """What to answer; ``cut`` closes the connection after so many bytes of the body.

    A status of 0 closes the connection without an answer.  It is silent ``until`` something happens.
    """

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    until: threading.Event | None = None


@dataclass
class Request:
    """What came."""

    method: str
    path: str
    headers: CaseInsensitiveDict[str]
    body: bytes


class Server(ThreadingHTTPServer):
    """Gives tokens on /auth, describes itself as told, and answers everything else from a list."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []
        self.requests: list[Request] = []
        self.info: Answer = Answer(404)
        self.auth: list[Answer] = []
        self.tokens: list[str] = []
        self.connections = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def token(self) -> Answer:
        """A new token."""
        token = f"very-secret-token-{len(self.tokens)}-and-the-rest-of-it"
        self.tokens.append(token)
        return Answer(200, headers={"X-Auth-Token": token, "X-Storage-Url": f"{self.url}/v1/AUTH_x"})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        server = self.server
        with server.lock:
            if self.path == "/auth":
                answer = server.auth.pop(0) if server.auth else server.token()
            elif self.path == "/info":
                answer = server.info
            else:
                headers = CaseInsensitiveDict(self.headers.items())
                server.requests.append(Request(self.command, self.path, headers, body))
                answer = server.answers.pop(0) if server.answers else Answer(500)
        if answer.until is not None:
            answer.until.wait(60)
        if not answer.status:
            self.close_connection = True
            return
        self.send_response(answer.status)
        headers = {"Content-Length": str(len(answer.body)), **answer.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: answer.cut])
        if answer.cut is not None:
            self.close_connection = True

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def opened(server: Server, **more: Any) -> SwiftStore:
    values = {"auth": "v1", "auth_url": f"{server.url}/auth", "username": "u", "password": "very-secret-key"}
    return SwiftStore("main", option_values(SwiftStore.options(), **values, **more))


@pytest.fixture
def store(server: Server) -> Iterator[SwiftStore]:
    store = opened(server)
    yield store
    store.close()


STATUSES = [
    (400, ChunkStoreError, False),
    (401, PermissionDenied, False),
    (403, PermissionDenied, False),
    (404, NotFound, False),
    (405, NotSupported, False),
    (408, Unavailable, True),
    (409, Unavailable, True),
    (412, InvalidName, False),
    (413, NoSpace, False),
    (416, RangeError, False),
    (418, ChunkStoreError, False),
    (422, IntegrityError, True),
    (429, Unavailable, True),
    (498, Unavailable, True),
    (499, Unavailable, True),
    (500, Unavailable, True),
    (501, NotSupported, False),
    (502, Unavailable, True),
    (503, Unavailable, True),
    (507, NoSpace, False),
    (599, Unavailable, True),
    (301, ChunkStoreError, False),
]


@pytest.mark.parametrize(("status", "kind", "temporary"), STATUSES)
def test_the_table(
    server: Server, store: SwiftStore, status: int, kind: type[ChunkStoreError], temporary: bool
) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.put("c", "key", X),
        lambda: store.get("c", "key"),
        lambda: store.get("c", "key", 0, 1),
        lambda: list(store.list("c")),
        lambda: store.ensure_container("c"),
    ]
    for number, use in enumerate(uses):
        server.answers += [Answer(status), Answer(status)]
        server.requests.clear()
        if number == 4 and kind is NotFound:
            continue  # then it is made
        with pytest.raises(ChunkStoreError) as caught:
            use()
        assert type(caught.value) is kind
        assert caught.value.temporary is temporary
        assert (caught.value.store, caught.value.container) == ("main", "c")
        assert "127.0.0.1" not in str(caught.value)
        # Nothing is tried again, but a refused token is renewed.
        assert len(server.requests) == (2 if status == 401 else 1)
        server.answers.clear()


def test_no_cookie_is_kept_for_other_threads(server: Server, store: SwiftStore) -> None:
    server.answers += [Answer(201, headers={"Etag": ETAG, "Set-Cookie": "session=of-one; Path=/"})] * 2
    for _ in range(2):
        store.put("c", "key", X)
    assert [one.method for one in server.requests] == ["PUT", "PUT"]
    assert all("Cookie" not in one.headers for one in server.requests)


def test_retry_after(server: Server, store: SwiftStore) -> None:
    later = email.utils.formatdate(time.time() + 100, usegmt=True)
    for text, low, high in (("7", 7, 7), ("1.5", 1.5, 1.5), (later, 90, 101), ("soon", None, None)):
        server.answers.append(Answer(503, headers={"Retry-After": text}))
        with pytest.raises(Unavailable) as caught:
            store.get("c", "key")
        found = caught.value.retry_after
        assert (found is None) if low is None else (found is not None and low <= found <= high)


class TestTokens:
    def test_a_refused_token_is_renewed_and_the_whole_body_sent_again(
        self, server: Server, store: SwiftStore
    ) -> None:
        server.answers += [Answer(401), Answer(201, headers={"ETag": ETAG})]
        store.put("c", "key", X)
        first, second = server.requests
        assert first.headers["X-Auth-Token"] == server.tokens[0]
        assert second.headers["X-Auth-Token"] == server.tokens[1]
        assert second.body == b"some bytes"

    def test_a_file_is_sent_again_from_its_start(
        self, server: Server, store: SwiftStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store_module, "_ONE_PIECE", 1000)
        data = bytes(range(256)) * 1000
        (tmp_path / "body").write_bytes(data)
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        server.answers += [Answer(401), Answer(201, headers={"ETag": etag})]
        with open(tmp_path / "body", "rb") as file:
            store.put("c", "key", Body.from_file(file))
        for request in server.requests:
            assert request.body == data
            assert request.headers["Content-Length"] == str(len(data))

    @pytest.mark.parametrize("size", [5000, 500_000])
    def test_a_file_that_changes_while_it_is_sent_breaks_off(
        self, server: Server, store: SwiftStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        monkeypatch.setattr(store_module, "_ONE_PIECE", 1000)
        path = tmp_path / "body"
        path.write_bytes(bytes(range(256)) * 1000)
        judged = store._judged

        def judged_then_changed(body: Body, container: str, key: str) -> tuple[bytes | None, str]:
            found = judged(body, container, key)
            os.truncate(path, size)
            return found

        monkeypatch.setattr(store, "_judged", judged_then_changed)
        server.answers += [Answer(422)] * 2
        with open(path, "rb") as file, pytest.raises(ChunkStoreError, match="while it was sent") as caught:
            store.put("c", "key", Body.from_file(file))
        assert (caught.value.container, caught.value.key) == ("c", "key")
        # No byte too many: it would reach the server as another request.
        assert len(server.requests) <= 1
        assert all(len(request.body) < 256_000 for request in server.requests)

    def test_many_threads_renew_once(self, server: Server, store: SwiftStore) -> None:
        server.answers += [Answer(200, b"x") for _ in range(40)]
        store.get("c", "key")
        refused = store._tokens.current()
        threads = [threading.Thread(target=store._tokens.after, args=(refused,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(server.tokens) == 2

    def test_a_missing_authentication_service_is_no_missing_object(
        self, server: Server, store: SwiftStore
    ) -> None:
        server.auth = [Answer(404)]
        with pytest.raises(ChunkStoreError) as caught:
            store.get("c", "key")
        assert not isinstance(caught.value, NotFound)
        server.answers = [Answer(401)]
        server.auth = [server.token(), Answer(404)]
        with pytest.raises(ChunkStoreError) as caught:
            store.delete("c", ["key", "other"])
        assert not isinstance(caught.value, NotFound)

    def test_a_put_that_breaks_may_be_a_refused_token(self, server: Server, store: SwiftStore) -> None:
        server.answers += [Answer(0), Answer(0), Answer(201, headers={"ETag": ETAG})]
        for _ in range(2):
            with pytest.raises(Unavailable):
                store.put("c", "key", X)
        assert len(server.tokens) == 1  # too young
        store._tokens._since -= 100
        server.answers.insert(0, Answer(0))
        with pytest.raises(Unavailable):
            store.put("c", "key", X)
        store.put("c", "key", X)
        assert server.requests[-1].headers["X-Auth-Token"] == server.tokens[1]

    def test_a_redirect_does_not_get_the_token(self, server: Server, store: SwiftStore) -> None:
        with Server() as other:
            thread = threading.Thread(target=other.serve_forever, args=(0.01,))
            thread.start()
            server.answers.append(Answer(307, headers={"Location": f"{other.url}/v1/AUTH_x/c/key"}))
            with pytest.raises(ChunkStoreError) as caught:
                store.get("c", "key")
            other.shutdown()
            thread.join()
        assert not caught.value.temporary
        assert other.requests == []

    def test_not_even_their_beginnings_are_logged(
        self, server: Server, store: SwiftStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.DEBUG)
        server.answers += [Answer(401), Answer(200, b"x"), Answer(503), Answer(201, headers={"ETag": ETAG})]
        store.get("c", "key")
        with pytest.raises(Unavailable):
            store.get("c", "key")
        store.put("c", "key", X)
        assert "urllib3.connectionpool" in {record.name for record in caplog.records}
        text = "\n".join(record.getMessage() for record in caplog.records) + repr(store._tokens.current())
        assert "very" not in text


class TestPut:
    def test_length_and_md5_are_sent(self, server: Server, store: SwiftStore) -> None:
        server.answers.append(Answer(201, headers={"ETag": f'"{ETAG}"'}))
        store.put("c ä", "a/b c%é?#", X)
        (request,) = server.requests
        assert request.path == "/v1/AUTH_x/c%20%C3%A4/a/b%20c%25%C3%A9%3F%23"
        assert request.headers["Content-Length"] == "10"
        assert request.headers["ETag"] == ETAG

    @pytest.mark.parametrize("etag", ["0" * 32, ""])
    def test_another_etag_than_was_sent(self, server: Server, store: SwiftStore, etag: str) -> None:
        server.answers.append(Answer(201, headers={"ETag": etag}))
        with pytest.raises(IntegrityError) as caught:
            store.put("c", "key", X)
        assert caught.value.temporary

    def test_a_put_that_a_newer_one_overtook(self, server: Server, store: SwiftStore) -> None:
        server.answers += [Answer(202), Answer(200)]
        store.put("c", "key", X)
        assert [request.method for request in server.requests] == ["PUT", "HEAD"]

    def test_a_put_that_a_later_delete_undid(self, server: Server, store: SwiftStore) -> None:
        server.answers += [Answer(202), Answer(404)]
        with pytest.raises(Unavailable):
            store.put("c", "key", X)

    def test_a_bad_body_sends_nothing(self, server: Server, store: SwiftStore) -> None:
        with pytest.raises(IntegrityError) as caught:
            store.put("c", "key", Body(b"some", 4, b"0" * 32))
        assert not caught.value.temporary
        assert server.requests == []


class TestGet:
    def test_etag(self, server: Server, store: SwiftStore) -> None:
        server.answers += [
            Answer(200, b"some bytes", {"ETag": ETAG}),
            Answer(200, b"some bytez", {"ETag": ETAG}),
            Answer(200, b"some bytez", {"ETag": f'"{ETAG}"', "X-Static-Large-Object": "True"}),
            Answer(200, b"some bytez", {"ETag": f"{ETAG}-2"}),
        ]
        assert store.get("c", "key") == b"some bytes"
        with pytest.raises(IntegrityError) as caught:
            store.get("c", "key")
        assert caught.value.temporary
        assert (caught.value.store, caught.value.container, caught.value.key) == ("main", "c", "key")
        # These are no MD5 of the bytes.
        assert store.get("c", "key") == b"some bytez"
        assert store.get("c", "key") == b"some bytez"

    @pytest.mark.parametrize("cut", [0, 5, 99_999])
    def test_a_torn_answer(self, server: Server, store: SwiftStore, cut: int) -> None:
        data = bytes(100_000)
        for part in (None, (5, 100_000)):
            headers = {"Content-Range": "bytes 5-100004/200000"} if part else {}
            server.answers.append(Answer(206 if part else 200, data, headers, cut=cut))
            with pytest.raises(IntegrityError) as caught:
                store.get("c", "key", *(part or (None, None)))
            assert caught.value.temporary

    @pytest.mark.parametrize(
        ("answer", "kind"),
        [
            (Answer(206, b"x" * 10, {"Content-Range": "bytes 5-14/15"}), None),
            (Answer(206, b"x" * 10, {"Content-Range": "bytes 5-14/*"}), None),
            (Answer(206, b"x" * 9, {"Content-Range": "bytes 5-13/14"}), RangeError),
            (Answer(206, b"x" * 9, {"Content-Range": "bytes 5-13/100"}), IntegrityError),
            (Answer(206, b"x" * 10, {"Content-Range": "bytes 4-13/100"}), IntegrityError),
            (Answer(206, b"x" * 9, {"Content-Range": "bytes 5-14/100"}), IntegrityError),
            (Answer(206, b"x" * 10), IntegrityError),
            (Answer(200, b"x" * 14), RangeError),
            (Answer(200, b""), RangeError),
            (Answer(200, b"x" * 15), ChunkStoreError),
            (Answer(416), RangeError),
        ],
    )
    def test_ranges(
        self, server: Server, store: SwiftStore, answer: Answer, kind: type[ChunkStoreError] | None
    ) -> None:
        server.answers.append(answer)
        if kind is None:
            assert store.get("c", "key", 5, 10) == b"x" * 10
        else:
            with pytest.raises(ChunkStoreError) as caught:
                store.get("c", "key", 5, 10)
            assert type(caught.value) is kind
        assert server.requests[0].headers["Range"] == "bytes=5-14"

    def test_silence(self, server: Server) -> None:
        store = opened(server, read_timeout=0.2)
        gave_up = threading.Event()
        server.answers.append(Answer(200, b"x", until=gave_up))
        with pytest.raises(Unavailable) as caught:
            store.get("c", "key")
        gave_up.set()
        assert caught.value.temporary


class TestListing:
    def test_goes_on_until_a_page_is_empty(self, server: Server, store: SwiftStore) -> None:
        pages = [["a", "b"], ["c"], []]
        for page in pages:
            text = json.dumps([{"name": name, "bytes": 3} for name in page])
            server.answers.append(Answer(200, text.encode(), {"Content-Type": "application/json"}))
        assert [info.key for info in store.list("c", "pre/&x", "a0")] == ["a", "b", "c"]
        paths = [request.path.partition("?")[2] for request in server.requests]
        assert paths == [f"format=json&marker={after}&prefix=pre/%26x" for after in ("a0", "b", "c")]

    def test_a_page_that_does_not_come_after_the_last(self, server: Server, store: SwiftStore) -> None:
        page = json.dumps([{"name": "a", "bytes": 3}]).encode()
        server.answers += [Answer(200, page, {"Content-Type": "application/json"})] * 2
        with pytest.raises(IntegrityError):
            list(store.list("c"))

    @pytest.mark.parametrize("body", [b"<html>", b"{}", b"[1]", b'[{"subdir": "a/"}]', b'[{"name": "a"}]'])
    def test_an_answer_that_is_none(self, server: Server, store: SwiftStore, body: bytes) -> None:
        server.answers.append(Answer(200, body, {"Content-Type": "text/html"}))
        with pytest.raises(Unavailable, match="cannot be understood"):
            list(store.list("c"))


BULK = Answer(200, json.dumps({"bulk_delete": {"max_deletes_per_request": 3}}).encode())


def bulk_answer(deleted: int, missing: int = 0, errors: object = (), status: str = "200 OK") -> Answer:
    """An answer as Swift's middleware gives it, with the white space it sends while it works."""
    text = json.dumps(
        {
            "Number Deleted": deleted,
            "Number Not Found": missing,
            "Errors": errors,
            "Response Status": status,
            "Response Body": "",
        }
    )
    return Answer(200, b" \r\n\r\n" + text.encode())


class TestDelete:
    def test_bulk_size(self, server: Server) -> None:
        assert opened(server).capabilities.bulk_delete == 1
        server.info = BULK
        assert opened(server).capabilities.bulk_delete == 3
        assert opened(server, bulk_delete_size=2).capabilities.bulk_delete == 2
        assert opened(server, bulk_delete=False).capabilities.bulk_delete == 1
        server.info = Answer(200, json.dumps({"bulk_delete": {"max_failed_deletes": 2}}).encode())
        assert opened(server).capabilities.bulk_delete == 2
        server.info = Answer(503)
        store = opened(server)
        assert store.capabilities.bulk_delete == 1
        # Not asked again at once: it may be down.
        server.info = BULK
        assert store.capabilities.bulk_delete == 1
        store._ask_again = 0
        assert store.capabilities.bulk_delete == 3

    def test_batches(self, server: Server, store: SwiftStore) -> None:
        server.info = BULK
        server.answers += [bulk_answer(2, 1), bulk_answer(2)]
        store.delete("c", ["a", " é%", "b", "x/y", "z", "a"])
        first, second = server.requests
        assert (first.method, first.path) == ("POST", "/v1/AUTH_x?bulk-delete")
        assert first.headers["Content-Type"] == "text/plain"
        assert first.body == "/c/a\n/c/%20é%25\n/c/b\n".encode()
        assert second.body == b"/c/x/y\n/c/z\n"

    def test_keys_too_long_for_a_line_go_alone(self, server: Server, store: SwiftStore) -> None:
        server.info = BULK
        long = "%" * 1000
        server.answers += [bulk_answer(2), Answer(204)]
        store.delete("c", ["a", long, "b"])
        assert [request.method for request in server.requests] == ["POST", "DELETE"]

    def test_what_remains_is_named(self, server: Server, store: SwiftStore) -> None:
        server.info = BULK
        errors = [["/c/a%20b", "503 Service Unavailable"], ["/c/x", "403 Forbidden"]]
        server.answers.append(bulk_answer(1, 0, errors, "400 Bad Request"))
        with pytest.raises(DeleteFailed) as caught:
            store.delete("c", ["a b", "gone", "x"])
        assert {key: type(each) for key, each in caught.value.errors.items()} == {
            "a b": Unavailable,
            "x": PermissionDenied,
        }
        assert not caught.value.temporary

    def test_a_request_that_stopped_half_way(self, server: Server, store: SwiftStore) -> None:
        server.info = BULK
        server.answers.append(bulk_answer(1, 0, [], "502 Bad Gateway"))
        with pytest.raises(Unavailable) as caught:
            store.delete("c", ["a", "b", "c"])
        assert caught.value.temporary

    def test_a_token_that_ended_in_the_middle(self, server: Server, store: SwiftStore) -> None:
        server.info = BULK
        server.answers += [
            bulk_answer(1, 0, [["/c/b", "401 Unauthorized"]], "401 Unauthorized"),
            bulk_answer(2, 1),
        ]
        store.delete("c", ["a", "b", "c"])
        assert len(server.tokens) == 2

    def test_an_answer_that_is_none(self, server: Server, store: SwiftStore) -> None:
        server.info = BULK
        server.answers += [Answer(200, b"<html>"), Answer(200, b"[]")]
        for _ in range(2):
            with pytest.raises(Unavailable):
                store.delete("c", ["a", "b"])

    def test_one_by_one(self, server: Server, store: SwiftStore) -> None:
        server.answers += [Answer(204), Answer(404), Answer(500), Answer(204)]
        with pytest.raises(DeleteFailed) as caught:
            store.delete("c", ["a", "b", "x", "y"])
        assert set(caught.value.errors) == {"x", "y"}
        assert caught.value.temporary


class TestContainers:
    def test_a_container_that_is_there_is_not_touched(self, server: Server) -> None:
        server.answers.append(Answer(204))
        opened(server, storage_policy="gold").ensure_container("c")
        assert [request.method for request in server.requests] == ["HEAD"]

    def test_somebody_else_makes_it_first(self, server: Server) -> None:
        server.answers += [Answer(404), Answer(409), Answer(204)]
        opened(server, storage_policy="gold").ensure_container("c")
        assert server.requests[1].headers["X-Storage-Policy"] == "gold"

    def test_refusals_say_what_is_missing(self, server: Server) -> None:
        store = opened(server, storage_policy="lead")
        server.answers += [Answer(404), Answer(400)]
        with pytest.raises(InvalidName, match="storage policy lead"):
            store.ensure_container("c")
        server.answers += [Answer(404), Answer(403)]
        with pytest.raises(PermissionDenied, match="may not make it"):
            store.ensure_container("c")


def test_connections_are_kept(server: Server, store: SwiftStore) -> None:
    for turn in range(20):
        server.answers.append(Answer(404 if turn % 3 else 200, b"x" * turn))
        try:
            store.get("c", "key")
        except NotFound:
            assert turn % 3
    # The authentication has the same one.
    assert server.connections == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"username": None}, "username or user_id"),
        ({"password": None}, "password"),
        ({"project_name": None}, "project_name or project_id"),
        ({"auth": "application_credential"}, "application_credential_id or application_credential_name"),
        (
            {
                "auth": "application_credential",
                "application_credential_name": "n",
                "application_credential_secret": "s",
                "username": None,
            },
            "username",
        ),
        ({"cert_key": "/key"}, "cert"),
    ],
)
def test_options_that_do_not_fit_together(values: dict[str, Any], message: str) -> None:
    good = {"auth_url": "http://127.0.0.1:1", "username": "u", "password": "p", "project_name": "p"}
    merged = {name: value for name, value in {**good, **values}.items() if value is not None}
    with pytest.raises(ChunkStoreError, match=message):
        SwiftStore("main", option_values(SwiftStore.options(), **merged))
