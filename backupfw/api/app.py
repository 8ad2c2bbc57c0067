"""Puts the API together: one WSGI application, the same for the embedded server and any other WSGI server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from pecan.core import ExplicitPecan

from backupfw.api import enforcer, pipeline, policies, query
from backupfw.api.controllers.root import COLLECTIONS, RootController
from backupfw.api.hooks import AnswerHook, BodyHook, IdentityHook, PolicyHook
from backupfw.api.identity.noauth import NoAuth
from backupfw.api.pipeline import WsgiApp
from backupfw.api.request import Request, Response
from backupfw.api.site import Managers, Settings, Site
from backupfw.errors import ConfigError

__all__ = ["Maker", "Managers", "Settings", "make_app", "settings_of"]

#: Makes an application that is served beside the API, from what the API's controllers share and a function
#: that puts the identity layer before an application.
Maker = Callable[[Site, Callable[[WsgiApp], WsgiApp]], WsgiApp]

#: Writes answers.  Views make trees only, so there is no check for circular references, which costs a tenth
#: of the time.
_JSON = json.JSONEncoder(check_circular=False)


class _Pecan(ExplicitPecan):  # type: ignore[misc]
    """Pecan without thread-locals.  Every answer is JSON; an empty one keeps status 200 for clients."""

    def route(self, req: Request, node: RootController, path: str) -> tuple[Any, Any]:
        """Ask the root's ``_route`` at once: Pecan would inspect its signature for each request."""
        return node._route(path.split("/")[1:], req)  # type: ignore[no-any-return]

    def invoke_controller(
        self, controller: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], state: Any
    ) -> None:
        """Call a method and write what it returns.

        Pecan would inspect its signature for each request, and write ``null`` where there is no body.
        """
        result = controller(*args, **kwargs)
        if isinstance(result, Response):
            return
        state.response.body = b"" if result is None else _JSON.encode(result).encode("utf-8")
        state.response.content_type = "application/json"

    def _handle_empty_response_body(self, state: Any) -> None:
        pass


def settings_of(conf: Any) -> Settings:
    """Read the options that the API needs from the configuration (oslo.config).

    :raises ConfigError: a file that an option names is missing or malformed.
    """
    api = conf.api
    return Settings(
        max_limit=api.osapi_max_limit,
        max_body=api.max_request_body_size,
        public_endpoint=api.public_endpoint or None,
        trust_forwarded=api.enable_proxy_headers_parsing,
        auth_strategy=api.auth_strategy,
        noauth_roles=tuple(api.noauth_roles),
        availability_zone=conf.availability_zone,
        resource_filters=query.load_filters(api.resource_filters_file),
        **_identity_of(conf),
    )


def _identity_of(conf: Any) -> dict[str, Any]:
    if conf.api.auth_strategy != "keystone":
        return {}
    from backupfw.api.identity.keystone import Projects

    return {"knows_project": Projects(conf).known}


def check(conf: Any) -> None:
    """Check the options that only the API reads (oslo.config); open no connection.

    :raises ConfigError: an option is wrong.
    """
    settings = settings_of(conf)
    enforcer.FilePolicy(conf)
    pipeline.assemble(_nobody, conf, settings, COLLECTIONS)


def _nobody(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    raise NotImplementedError


def _with_identity(app: WsgiApp, settings: Settings, conf: Any, policy: policies.Policy) -> WsgiApp:
    if settings.auth_strategy == "noauth":
        return NoAuth(app, settings.noauth_roles, policy)
    if settings.auth_strategy == "keystone":
        # Its libraries are in the extra "keystone".
        from backupfw.api.identity.keystone import Keystone

        return Keystone(app, conf, policy)
    raise ConfigError(f"[api] auth_strategy: {settings.auth_strategy!r} is not one of: noauth, keystone")


def make_app(
    managers: Managers,
    conf: Any,
    policy: policies.Policy | None = None,
    healthy: Callable[[], bool] = lambda: True,
    beside: Mapping[str, Maker] = MappingProxyType({}),
) -> WsgiApp:
    """Make the WSGI application.

    :param managers: the use cases; they live longer than the application.
    :param conf: the configuration (oslo.config), or a :class:`Settings`.
    :param policy: who may do what; where None, what ``[oslo_policy]`` says.
    :param healthy: whether this process can be given work, for ``GET /healthcheck``.
    :param beside: what makes applications with layers of their own, by the first part of their paths.
    :return: a WSGI application, thread-safe, with no state outside ``managers``.
    :raises ConfigError: an option has a value that the API does not know, or a policy file is wrong.
    """
    settings = conf if isinstance(conf, Settings) else settings_of(conf)
    chosen = policy or (enforcer.defaults() if conf is settings else enforcer.FilePolicy(conf))
    site = Site(managers, chosen, settings)
    pecan_app = _Pecan(
        RootController(site),
        hooks=[IdentityHook(site), BodyHook(), PolicyHook(site), AnswerHook()],
        force_canonical=False,
        guess_content_type_from_ext=False,
        use_context_locals=False,
        request_cls=Request,
        response_cls=Response,
    )
    identify = partial(_with_identity, settings=settings, conf=conf, policy=chosen)
    others = {part: make(site, identify) for part, make in beside.items()}
    return pipeline.assemble(
        identify(pecan_app), None if conf is settings else conf, settings, COLLECTIONS, healthy, others
    )
