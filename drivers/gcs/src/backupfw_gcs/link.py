"""Credentials, connections and the SDK's client: made at first use, shared by all threads.

One ``requests`` session serves every thread: its connection pool is locked, and nothing of it is
changed after it was made.  Nothing retries here, with one exception: an answer 401 gets a new token and
the request is sent again at once, because a token may be taken back at any time.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from typing import Any

import google.auth
import requests
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials, Credentials
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import storage
from google.oauth2 import service_account
from requests.utils import get_environ_proxies

from backupfw.chunkstore.errors import ChunkStoreError, PermissionDenied

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
        self._client: storage.Client | None = None
        self._closed = False
        self.timeout = (float(options.connect_timeout), float(options.read_timeout))
        self.endpoint: str = options.endpoint
        # At level DEBUG it would add each request's headers, token included, to its records.
        logging.getLogger("google.auth.transport.requests").setLevel(logging.INFO)

    @property
    def client(self) -> storage.Client:
        """The SDK's client.

        :raises ChunkStoreError: the store is closed, or there are no usable credentials.
        """
        return self._opened()[0]

    def _opened(self) -> tuple[storage.Client, AuthorizedSession]:
        with self._lock:
            if self._closed:
                raise ChunkStoreError("the store is closed", store=self._store)
            if self._client is None or self._session is None:
                self._client, self._session = self._open()
            return self._client, self._session

    @property
    def project(self) -> str:
        """The project for buckets.

        :raises ChunkStoreError: neither the options nor the credentials name one.
        """
        project = self.client.project
        if not project:
            raise ChunkStoreError("no project is known: set option project", store=self._store)
        return str(project)

    def identity(self) -> str:
        """Say whose credentials are used, for the operator."""
        client = self.client
        if self._options.anonymous:
            return "anonymous"
        email = getattr(client._credentials, "service_account_email", None)
        return str(email) if email and "@" in str(email) else type(client._credentials).__name__

    def request(
        self, method: str, path: str, *, data: Any = None, headers: Mapping[str, str], stream: bool = False
    ) -> requests.Response:
        """Send one request; the caller closes the answer if it asked for a stream.

        :param path: absolute, quoted, with its query.
        :raises google.api_core.exceptions.GoogleAPICallError: any answer outside 200 to 299.
        """
        response: requests.Response = self._opened()[1].request(
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
                raise api.from_http_response(response)
        return response

    def _open(self) -> tuple[storage.Client, AuthorizedSession]:
        tokens = self._plain_session()
        request = Request(tokens)
        credentials, project = self._credentials(request)
        session = AuthorizedSession(credentials, auth_request=request)
        # Else a .netrc would replace the token, and the environment be read for every request.
        session.trust_env = False
        self._equip(session, get_environ_proxies(self.endpoint), ("https", "http"))
        client = storage.Client(
            project=self._options.project or project,
            credentials=credentials,
            client_options={"api_endpoint": self.endpoint},
            _http=session,
        )
        # It asks for each bucket's properties in the background where OpenTelemetry is installed: requests,
        # with retries, and a permission that nobody needs.
        client._bucket_metadata_cache = None
        self._tokens = tokens
        return client, session

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
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        proxy = self._options.proxy
        session.proxies = dict.fromkeys(schemes, proxy) if proxy else dict(ambient)
        ca_bundle = self._options.ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE")
        session.verify = ca_bundle or True

    def _credentials(self, request: Request) -> tuple[Credentials, str | None]:
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
            self._session = self._tokens = self._client = None
