"""Sends requests, each once, over connections that are kept: keystoneauth1's session does it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import keystoneauth1.exceptions as keystone
import requests
from keystoneauth1.session import Session, TCPKeepAliveAdapter

from backupfw_swift.errors import ERRORS, Refused

#: Connections to a host that are kept while nobody uses them; more are made when more threads work at once.
IDLE = 64
#: Bytes that are read of an answer whose status is an error; nobody looks at them.
_WORDS = 1 << 16


class Transport:
    """Thread-safe: the session is not changed once it is made; its pool of connections has locks of its own.

    :param options: the driver's options.
    :ivar session: for Keystone's plug-ins.
    """

    def __init__(self, options: Any) -> None:
        self._requests = requests.Session()
        # The library would ask for compressed answers, whose length and bytes are not the object's.
        self._requests.headers.clear()
        # Requests of all threads would write one jar, and a cookie of one account go to the others.
        self._requests.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        for scheme in ("https://", "http://"):
            self._requests.mount(scheme, TCPKeepAliveAdapter(pool_maxsize=IDLE, max_retries=0))
        cert: str | tuple[str, str] | None = options.cert
        if options.cert and options.cert_key:
            cert = (options.cert, options.cert_key)
        self._timeout = (options.connect_timeout, options.read_timeout)
        self.session = Session(
            session=self._requests,
            verify=False if options.insecure else options.cacert or True,
            cert=cert,
            timeout=options.read_timeout,
            # A redirect would carry the token to whatever host it names.
            redirect=False,
        )

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: bytes | Iterable[bytes | memoryview] | None = None,
        stream: bool = False,
    ) -> requests.Response:
        """Send one request; the caller closes the answer if it asked for a stream.

        :param data: the body; one that is no ``bytes`` has a length.
        :raises Refused: any answer outside 200 to 299.
        :raises Exception: there is no whole answer (``errors.ERRORS``).
        """
        failure: BaseException | None = None
        try:
            answer = self.session.request(
                url,
                method,
                headers=dict(headers or {}),
                data=data,
                stream=stream,
                timeout=self._timeout,
                authenticated=False,
                raise_exc=False,
                # The library would log bodies.
                log=False,
            )
        except keystone.ConnectionError as error:
            # The error inside says more, and the text of this one holds the URL.
            failure = error.__context__ or error
        if failure is not None:
            raise failure
        if not 200 <= answer.status_code < 300:
            # Read the rest, so that the connection can be used again.
            with answer, suppress(*ERRORS):
                answer.raw.read(_WORDS)
            raise Refused(answer.status_code, answer.reason or "", answer.headers)
        return answer

    def close(self) -> None:
        """Close the connections that rest now, and each of the others when its call ends."""
        self._requests.close()
