"""How users of the console identify themselves: by a token that the service printed, or at Keystone."""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from backupfw import errors, naming
from backupfw.conf.identity import GROUP
from backupfw.console.sessions import User

if TYPE_CHECKING:
    from oslo_config import cfg

#: The user of a console with ``noauth``.
OPERATOR = "operator"


class Refused(Exception):
    """What was given identifies nobody."""


class Field(NamedTuple):
    """A field of the form."""

    name: str
    label: str
    kind: str = "text"
    value: str = ""
    autocomplete: str = "off"


class Login(Protocol):
    """A way to identify oneself."""

    @property
    def fields(self) -> tuple[Field, ...]:
        """What the form asks for."""

    @property
    def hint(self) -> str:
        """Where users find that."""

    def user(self, given: Mapping[str, str]) -> User:
        """Return who has given the values of the fields.

        :raises Refused: nobody.
        :raises ServiceUnavailable: that cannot be found out now.
        """


def new_token() -> str:
    """Return a new token for :class:`TokenLogin`: 128 random bits."""
    return secrets.token_urlsafe(16)


class TokenLogin:
    """With ``noauth``: whoever has the token that the service printed when it started.

    :param token: of this process.
    :param everywhere: whether such a user works in all projects; otherwise he names one.
    """

    hint = "The service printed it when it started."

    def __init__(self, token: str, *, everywhere: bool) -> None:
        self._token = token.encode("ascii")
        self._everywhere = everywhere
        project = () if everywhere else (Field("project", "Project"),)
        self.fields = (Field("token", "Token", "password"), *project)

    def user(self, given: Mapping[str, str]) -> User:
        """See :class:`Login`."""
        project = "" if self._everywhere else given["project"]
        same = hmac.compare_digest(given["token"].strip().encode("utf-8"), self._token)
        if not same or not naming.is_name(project) or ":" in project or not (project or self._everywhere):
            raise Refused
        return User(f"{OPERATOR}:{project or OPERATOR}", OPERATOR, project)


class KeystoneLogin:
    """With ``keystone``: name and password, for a project.  Keystone makes a token of them, which is kept.

    :param conf: the configuration (oslo.config), with ``[keystone_authtoken]`` registered.
    """

    hint = "The name and password of your cloud."

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._group: Any = conf[GROUP]
        self._url = self._group.www_authenticate_uri or self._group.auth_url
        self.fields = (
            Field("name", "User", autocomplete="username"),
            Field("password", "Password", "password", autocomplete="current-password"),
            Field("user_domain", "Domain of the user", value="Default"),
            Field("project", "Project"),
            Field("project_domain", "Domain of the project", value="Default"),
        )

    def user(self, given: Mapping[str, str]) -> User:
        """See :class:`Login`."""
        from keystoneauth1 import exceptions, loading
        from keystoneauth1.identity import v3

        group = self._group
        session = loading.session.Session().load_from_options(
            insecure=group.insecure,
            cacert=group.cafile,
            cert=group.certfile,
            key=group.keyfile,
            timeout=group.http_connect_timeout,
        )
        asked = v3.Password(
            auth_url=self._url,
            username=given["name"],
            password=given["password"],
            user_domain_name=given["user_domain"],
            project_name=given["project"],
            project_domain_name=given["project_domain"],
            include_catalog=False,
        )
        try:
            token = str(asked.get_token(session))
        except (exceptions.Unauthorized, exceptions.BadRequest, exceptions.NotFound) as error:
            raise Refused from error
        except exceptions.ClientException as error:
            raise errors.ServiceUnavailable("The identity service is temporarily unavailable.") from error
        return User(token, given["name"], given["project"])


class Attempts:
    """Limits how often somebody may fail to log in.  Thread-safe.

    :param most: failures of an address within ``seconds``.
    :param timer: returns the seconds of a clock.
    """

    #: Most addresses that are remembered.
    MAX_ADDRESSES = 4096

    def __init__(
        self, most: int = 10, seconds: float = 60, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._seconds = seconds
        self._timer = timer
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, list[float]] = OrderedDict()

    def begin(self, address: str) -> bool:
        """Count an attempt before it is looked at; returns False if there were too many."""
        moment = self._timer()
        with self._lock:
            there = [one for one in self._failed.pop(address, ()) if one > moment - self._seconds]
            self._failed[address] = there
            if len(self._failed) > self.MAX_ADDRESSES:
                self._failed.popitem(last=False)
            if len(there) >= self._most:
                return False
            there.append(moment)
            return True

    def succeeded(self, address: str) -> None:
        """Forget the attempts of an address."""
        with self._lock:
            self._failed.pop(address, None)
