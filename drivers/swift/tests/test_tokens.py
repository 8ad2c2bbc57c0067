"""When tokens are renewed, on a clock of the test's own."""

from __future__ import annotations

import threading

import pytest
from backupfw_swift.tokens import Grant, Tokens

from backupfw.chunkstore.errors import PermissionDenied, Unavailable


class Service:
    """Gives numbered grants, or fails as told."""

    def __init__(self, lifetime: float | None = 40.0, renew_before: float = 30.0) -> None:
        self.lifetime = lifetime
        self.now = 1000.0
        self.given = 0
        self.error: Exception | None = None
        self.tokens = Tokens(self.authenticate, renew_before, clock=lambda: self.now)

    def authenticate(self) -> Grant:
        if self.error is not None:
            raise self.error
        self.given += 1
        return Grant("http://example.org/v1/AUTH_x", f"token {self.given}", self.lifetime)

    def token(self) -> str:
        return self.tokens.current().token


def test_renewed_before_the_end() -> None:
    service = Service()
    assert service.token() == "token 1"
    service.now += 9.9
    assert service.token() == "token 1"
    service.now += 0.2
    assert service.token() == "token 2"
    assert service.token() == "token 2"


@pytest.mark.parametrize(("lifetime", "renewed_after"), [(20.0, 5.0), (30.0, 7.5), (86400.0, 86370.0)])
def test_short_tokens_are_not_renewed_all_the_time(lifetime: float, renewed_after: float) -> None:
    service = Service(lifetime)
    service.token()
    service.now += renewed_after - 0.1
    assert service.token() == "token 1"
    service.now += 0.2
    assert service.token() == "token 2"


def test_a_lifetime_that_is_not_known() -> None:
    service = Service(None)
    first = service.tokens.current()
    service.now += 1e9
    assert service.tokens.current() is first
    assert service.tokens.after(first).token == "token 2"


def test_a_refused_token_is_renewed_once() -> None:
    service = Service()
    first = service.tokens.current()
    second = service.tokens.after(first)
    assert second.token == "token 2"
    # Another thread was refused with the first one too, and comes later.
    assert service.tokens.after(first) is second
    assert service.tokens.current() is second


def test_a_good_token_outlives_the_service() -> None:
    service = Service()
    service.token()
    service.error = Unavailable("down")
    service.now += 20
    assert service.token() == "token 1"
    service.error = None
    # Not asked again at once.
    assert service.token() == "token 1"
    service.now += 5.1
    assert service.token() == "token 2"


def test_an_expired_token_does_not() -> None:
    service = Service()
    service.token()
    service.error = Unavailable("down")
    service.now += 40.1
    for _ in range(2):
        with pytest.raises(Unavailable):
            service.token()
    service.error = PermissionDenied("no more")
    with pytest.raises(PermissionDenied):
        service.token()
    service.error = None
    assert service.token() == "token 2"


def test_a_refused_token_is_not_used_again_while_the_service_is_down() -> None:
    service = Service()
    first = service.tokens.current()
    service.error = Unavailable("down")
    with pytest.raises(Unavailable):
        service.tokens.after(first)
    with pytest.raises(Unavailable):
        service.tokens.current()


def test_a_doubted_token_is_renewed_unless_it_is_young() -> None:
    service = Service(None)
    service.tokens.doubt()
    assert service.token() == "token 1"
    service.now += 59
    service.tokens.doubt()
    assert service.token() == "token 1"
    service.now += 2
    service.tokens.doubt()
    assert service.token() == "token 2"
    # While the service is down it is used all the same: it may be good.
    service.now += 61
    service.tokens.doubt()
    service.error = Unavailable("down")
    assert service.token() == "token 2"


def test_nobody_waits_for_a_renewal_while_the_token_is_good() -> None:
    service = Service()
    service.token()
    service.now += 20
    begun, go_on = threading.Event(), threading.Event()
    authenticate = service.authenticate

    def slow() -> Grant:
        begun.set()
        assert go_on.wait(30)
        return authenticate()

    service.tokens._authenticate = slow
    renewer = threading.Thread(target=service.token)
    renewer.start()
    assert begun.wait(30)
    assert service.token() == "token 1"
    go_on.set()
    renewer.join()
    assert service.token() == "token 2"


def test_the_token_is_not_shown() -> None:
    assert "token 1" not in repr(Service().tokens.current())
