"""Calls of the service through openstackclient's connection, and what it answers in plain words."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from openstack import exceptions as sdk_exceptions
from osc_lib import exceptions

__all__ = ["Service", "for_each", "wait"]

LOG = logging.getLogger(__name__)

#: Seconds between two looks at something that is awaited.
PAUSE = 2.0


class Service:
    """The Block Storage endpoint that the user chose.

    :param app: the running shell.  The connection is made with the first call.
    """

    def __init__(self, app: Any) -> None:
        self._proxy = app.client_manager.sdk_connection.block_storage

    def find_backup(self, name_or_id: str) -> Any:
        """Return the backup as openstacksdk has it.

        :raises CommandError: there is none, or several have this name.
        """
        with _plain_words():
            return self._proxy.find_backup(name_or_id, ignore_missing=False)

    def find_volume(self, name_or_id: str) -> Any:
        """Return the volume as openstacksdk has it.

        :raises CommandError: there is none, or several have this name.
        """
        with _plain_words():
            return self._proxy.find_volume(name_or_id, ignore_missing=False)

    def get(self, path: str, key: str, **query: Any) -> Any:
        """Return what the answer to a GET has under a key; None if it has no such key, or is a 404.

        A name in a path, e.g. an empty one, may lead to another resource.

        :raises CommandError: any other refusal, in the service's words.
        """
        with _plain_words():
            answer = self._proxy.get(path, params=query)
            if answer.status_code == 404:
                return None
            sdk_exceptions.raise_from_response(answer)
        return answer.json().get(key)

    def send(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request that changes something; return the answer's body, None if it has none.

        :raises CommandError: the service refuses it, in its words.
        """
        with _plain_words():
            answer = self._proxy.request(path, method, json=body)
            sdk_exceptions.raise_from_response(answer)
        return answer.json() if answer.content else None

    def act(self, path: str, action: str, body: dict[str, Any]) -> Any:
        """Ask for an action on the resource at a path; as :meth:`send`."""
        return self.send("POST", f"{path}/action", {action: body})


def for_each(names: Sequence[str], failure: str, do: Callable[[str], object]) -> None:
    """Do something with each; one that is refused does not keep the others from it.

    :param failure: what the error says of those that were refused, after their number.
    :raises CommandError: at least one was refused; the reasons are in the log, which users see.
    """
    refused = 0
    for name in names:
        try:
            do(name)
        except exceptions.CommandError as error:
            refused += 1
            LOG.error("%s", error)
    if refused:
        raise exceptions.CommandError(f"{refused} of {len(names)} {failure}.")


@contextmanager
def _plain_words() -> Iterator[None]:
    """Give the service's own message to the user, without class names and addresses."""
    try:
        yield
    except sdk_exceptions.HttpException as error:
        text = error.details or error.message
        # What openstacksdk itself did not find has no status.
        status = f" (HTTP {error.status_code})" if error.status_code else ""
        raise exceptions.CommandError(f"{text}{status}") from error
    except sdk_exceptions.SDKException as error:
        raise exceptions.CommandError(str(error)) from error


def wait(look: Callable[[], Any], is_over: Callable[[Any], bool]) -> Any:
    """Look again and again until something is over; returns what was seen last."""
    seen = look()
    while not is_over(seen):
        time.sleep(PAUSE)
        seen = look()
    return seen
