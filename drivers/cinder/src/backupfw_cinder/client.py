"""Requests to a Block Storage service, of the service's user or in the name of a caller."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from keystoneauth1 import exceptions
from keystoneauth1.adapter import Adapter
from oslo_log import log

from backupfw.errors import BackupfwError, ServiceUnavailable
from backupfw.volume.catalogue import Caller
from backupfw_cinder.options import session_of

LOG = log.getLogger(__name__)

#: The microversion of all requests, that of OpenStack Xena.
VERSION = "3.66"

#: The id of the one key of a service without a key manager, which it does not show.
FIXED_KEY = "00000000-0000-0000-0000-000000000000"

# How many characters of an error's text users see.
_LONGEST = 255

_AWAY = "The Block Storage service is temporarily unavailable."
_REFUSES_US = "The Block Storage service does not accept this service's credentials."


class Refused(BackupfwError):
    """A request was answered with a status of 400 and above.

    :ivar status: the HTTP status.
    :ivar text: what the service says, for users.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"The Block Storage service answered with status {status}: {text}")
        self.status = status
        self.text = text


class Client:
    """A client of one service.  Thread-safe; connects at the first request.

    :param options: values of the provider's options.
    :raises ConfigError: one of them cannot be.
    """

    def __init__(self, options: Any) -> None:
        self._adapter = Adapter(
            session_of(options),
            service_type=options.service_type,
            service_name=options.service_name,
            interface=options.valid_interfaces,
            region_name=options.region_name,
            endpoint_override=options.endpoint_override,
            connect_retries=options.connect_retries,
            status_code_retries=options.status_code_retries,
            default_microversion=VERSION,
        )
        self._lock = threading.Lock()
        self._place: tuple[str, str] | None = None

    def call(self, method: str, path: str, body: Any = None, caller: Caller | None = None) -> dict[str, Any]:
        """Send a request; returns the decoded answer.

        :param path: below the project, e.g. ``/volumes/<id>``.
        :param caller: send it with his token, in his project; the service's user sends it if he is None or
            has no token.
        :raises Refused: the answer is an error.
        :raises ServiceUnavailable: there is no answer, or one that says that there is none now.
        """
        try:
            answer = self._send(method, path, body, caller)
        except exceptions.Unauthorized as error:
            LOG.error("The service's user cannot identify itself: %s", error)
            raise unavailable(_REFUSES_US) from error
        except exceptions.ClientException as error:
            LOG.warning("%s %s: %s", method, path, error)
            raise unavailable(_AWAY) from error
        if answer.status_code >= 500:
            LOG.warning("%s %s: %s %s", method, path, answer.status_code, _text_of(answer))
            raise unavailable(_AWAY)
        if answer.status_code >= 400:
            raise Refused(answer.status_code, _text_of(answer))
        with understood():
            return dict(answer.json()) if answer.content else {}

    def _send(self, method: str, path: str, body: Any, caller: Caller | None) -> Any:
        # A connection may have a password, which the library would write to a log for debugging.
        values: dict[str, Any] = {"raise_exc": False, "log": not path.startswith("/attachments")}
        if body is not None:
            values["json"] = body
        if method == "POST":
            # A connection can end when the request is done already: sent again, it would be done twice.
            values["connect_retries"] = 0
        if caller is None or caller.user_token is None:
            return self._adapter.request(path, method, **values)
        # A token is good for its own project only, and an endpoint may name the service's.
        endpoint, project = self._found_endpoint()
        if project and endpoint.endswith(f"/{project}"):
            endpoint = f"{endpoint.removesuffix(project)}{caller.project_id}"
        return self._adapter.request(
            endpoint + path,
            method,
            authenticated=False,
            headers={"X-Auth-Token": caller.user_token},
            **values,
        )

    def _found_endpoint(self) -> tuple[str, str]:
        with self._lock:
            if self._place is None:
                endpoint = self._adapter.get_endpoint()
                if not endpoint:
                    raise exceptions.EndpointNotFound
                self._place = endpoint.rstrip("/"), self._adapter.get_project_id() or ""
            return self._place


def key_of(found: Mapping[str, Any]) -> str | None:
    """Return the id of the key that encrypts a volume, :data:`FIXED_KEY` if it is not shown; None: none does.

    :param found: the volume as the service describes it.
    """
    if not found.get("encrypted"):
        return None
    key = str(found.get("encryption_key_id") or FIXED_KEY)
    with understood():
        return str(uuid.UUID(key))


def unavailable(text: str) -> ServiceUnavailable:
    """Return an error that says this to users; the task is tried again later."""
    error = ServiceUnavailable(text)
    error.may_pass = True
    return error


@contextmanager
def understood() -> Iterator[None]:
    """Raise ServiceUnavailable if an answer has another form than the service's: a proxy's page, say."""
    try:
        yield
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        LOG.warning("The Block Storage service gave an answer that is none of its own: %r", error)
        raise unavailable(_AWAY) from error


def _text_of(answer: Any) -> str:
    """Return the message of an error's body."""
    try:
        (fault,) = answer.json().values()
        return str(fault["message"])[:_LONGEST]
    except (ValueError, AttributeError, TypeError, KeyError):
        return str(answer.reason)[:_LONGEST]
