"""Credentials and connections to the JSON API: made at first use, shared by all threads.

The driver speaks the service's JSON API itself; google-auth gives the tokens.  Google's SDK
(google-cloud-storage) does not fit: it holds a whole object in memory twice when it sends it, it needs two
requests for what is larger than 8 MiB, and for a range it does not say how long the object is.  Without
objects' bytes it has nothing to offer but four short requests for listings and buckets.

One ``requests`` session serves every thread: its connection pool is locked, and nothing of it is
changed after it was made.  Nothing retries here, with two exceptions: an answer 401 gets a new token and
the request is sent again at once, because a token may be taken back at any time; and google-auth itself
asks a failing token server up to three times.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.cookiejar import DefaultCookiePolicy
from typing import Any
from urllib.parse import urlencode

import google.auth
import requests
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.transport.requests import AuthorizedSession, Request
from google.oauth2 import service_account
from requests.utils import get_environ_proxies

from backupfw.chunkstore.errors import ChunkStoreError, PermissionDenied
from backupfw_gcs.errors import Refused

#: The smallest scope that reads and writes objects and makes buckets.
SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"
#: Where ambient credentials get their tokens, for the choice of a proxy.
_TOKENS = "https://oauth2.googleapis.com/"


class Link:
    """The way to the service; thread-safe.

    :param store: the store's name, for errors.
    :param options: the driver's options.
    :ivar timeout: (connect, read) in seconds.
    """

    def __init__(self, store: str, options: Any) -> None:
        self._store = store
        self._options = options
        self._lock = threading.Lock()
        self._session: AuthorizedSession | None = None
        self._tokens: requests.Session | None = None
        self._credentials: Credentials | None = None
        self._project: str | None = options.project
        self._closed = False
        self.timeout = (float(options.connect_timeout), float(options.read_timeout))
        self.endpoint: str = options.endpoint
        # At level DEBUG it would add each request's headers, token included, to its records.
        logging.getLogger("google.auth.transport.requests").setLevel(logging.INFO)

    def _opened(self) -> AuthorizedSession:
        """Return the session.

        :raises ChunkStoreError: the store is closed, or there are no usable credentials.
        """
        with self._lock:
            if self._closed:
                raise ChunkStoreError("the store is closed", store=self._store)
            if self._session is None:
                self._session = self._open()
            return self._session

    @property
    def project(self) -> str:
        """The project for buckets.

        :raises ChunkStoreError: neither the options nor the credentials name one.
        """
        self._opened()
        if not self._project:
            raise ChunkStoreError("no project is known: set option project", store=self._store)
        return self._project

    def identity(self) -> str:
        """Say whose credentials are used, for the operator."""
        self._opened()
        if self._options.anonymous:
            return "anonymous"
        email = getattr(self._credentials, "service_account_email", None)
        return str(email) if email and "@" in str(email) else type(self._credentials).__name__

    def pages(self, path: str, query: Mapping[str, str]) -> Iterator[Sequence[Mapping[str, Any]]]:
        """Ask for a listing page by page, and yield each page's items; a page may have none.

        :param path: absolute and quoted, without query.
        :raises Refused: any answer outside 200 to 299.
        :raises ValueError: an answer is no page of a listing.
        """
        token = ""
        while True:
            asked = {**query, "prettyPrint": "false", **({"pageToken": token} if token else {})}
            page = self.request("GET", f"{path}?{urlencode(asked)}", headers={}).json()
            items = page.get("items", []) if isinstance(page, dict) else None
            if not isinstance(items, list):
                raise ValueError("an answer that is no page of a listing")  # noqa: TRY004  (not an argument's type)
            yield items
            following = str(page.get("nextPageToken") or "")
            if not following:
                return
            if following == token:
                # Otherwise the listing would never end.
                raise ValueError("a page of a listing names itself as the next one")
            token = following

    def request(
        self, method: str, path: str, *, data: Any = None, headers: Mapping[str, str], stream: bool = False
    ) -> requests.Response:
        """Send one request; the caller closes the answer if it asked for a stream.

        :param path: absolute, quoted, with its query.
        :raises Refused: any answer outside 200 to 299.
        """
        response: requests.Response = self._opened().request(
            method,
            self.endpoint + path,
            data=data,
            headers=dict(headers),
            stream=stream,
            timeout=self.timeout,
            allow_redirects=False,
        )
        if not 200 <= response.status_code < 300:
            with response:
                raise Refused(response.status_code, response.headers, response.content)
        return response

    def _open(self) -> AuthorizedSession:
        tokens = self._plain_session()
        request = Request(tokens)
        self._credentials, project = self._find_credentials(request)
        self._project = self._project or project
        session = AuthorizedSession(self._credentials, auth_request=request)
        # Otherwise a .netrc would replace the token, and each request would read the environment.
        session.trust_env = False
        self._equip(session, get_environ_proxies(self.endpoint), ("https", "http"))
        self._tokens = tokens
        return session

    def _plain_session(self) -> requests.Session:
        """Return a session for tokens; the metadata server (http) is never asked through a proxy."""
        session = requests.Session()
        session.trust_env = False
        self._equip(session, get_environ_proxies(_TOKENS), ("https",))
        return session

    def _equip(self, session: requests.Session, ambient: Mapping[str, str], schemes: tuple[str, ...]) -> None:
        adapter = requests.adapters.HTTPAdapter(
            pool_connections=4, pool_maxsize=self._options.pool_size, max_retries=0
        )
        # Requests of all threads would write one jar.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=()))
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        proxy = self._options.proxy
        session.proxies = dict.fromkeys(schemes, proxy) if proxy else dict(ambient)
        ca_bundle = self._options.ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE")
        session.verify = ca_bundle or True

    def _find_credentials(self, request: Request) -> tuple[Credentials, str | None]:
        if self._options.anonymous:
            return AnonymousCredentials(), None
        path = self._options.service_account_file
        if not path:
            credentials, project = google.auth.default(scopes=[SCOPE], request=request)
            return credentials, project
        try:
            made = service_account.Credentials.from_service_account_file(path, scopes=[SCOPE])
        except OSError as error:
            raise PermissionDenied(
                f"the service account file cannot be read: {error.strerror}", store=self._store
            ) from error
        except (auth.MalformedError, ValueError, KeyError, TypeError, AttributeError):
            # Not chained: a parser's message may quote the key.
            raise PermissionDenied("the service account file is not one", store=self._store) from None
        return made, made.project_id

    def close(self) -> None:
        """Close all connections; what is under way ends with an error."""
        with self._lock:
            self._closed = True
            for session in (self._session, self._tokens):
                if session is not None:
                    session.close()
            self._session = self._tokens = None


def field(answer: Any, name: str) -> str:
    """Return a field of an answer.

    :raises ValueError: the answer lacks it.
    """
    try:
        return str(answer[name])
    except (KeyError, TypeError) as error:
        raise ValueError(f"an answer without {name}") from error
