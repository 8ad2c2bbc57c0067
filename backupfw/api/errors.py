"""Errors that only a request can have.  Errors of the rules come from :mod:`backupfw.errors`."""

from __future__ import annotations


class RequestError(Exception):
    """Base: something is wrong with the request as such; ``str(error)`` is fit for the user."""


class BadRequest(RequestError):
    """A parameter, path or header is not what it must be."""


class MalformedUrl(BadRequest):
    """The project in the path is not the one of the caller."""

    def __init__(self) -> None:
        super().__init__("Malformed request url")


class MalformedBody(BadRequest):
    """The body is not a JSON object, or an action has not exactly one key."""

    def __init__(self) -> None:
        super().__init__("Malformed request body")


class ValidationFailed(BadRequest):
    """The body is not as its schema says."""


class Unauthorized(RequestError):
    """Nobody can be made out from the request's credentials."""


class WrongScope(RequestError):
    """The caller's token is valid, but for nothing that is here."""

    def __init__(self) -> None:
        super().__init__("The token is scoped to neither a project nor the system.")


class UnknownRoute(RequestError):
    """No such path, or not with this method."""

    def __init__(self) -> None:
        super().__init__("The resource could not be found.")


class UnsupportedVersion(RequestError):
    """A version that is not served.  ``lowest`` and ``highest`` are what is."""

    def __init__(self, wanted: str, lowest: str, highest: str) -> None:
        super().__init__(
            f"Version {wanted} is not supported by the API. Minimum is {lowest} and maximum is {highest}."
        )


class OverQuota(RequestError):
    """A quota is used up; said without a name before the text."""


class BodyTooLarge(RequestError):
    """The body is longer than ``[api] max_request_body_size``."""

    def __init__(self) -> None:
        super().__init__("Request is too large.")


class UnsupportedMediaType(RequestError):
    """The body's content type is not JSON."""

    def __init__(self) -> None:
        super().__init__("Unsupported Content-Type")
