"""Errors of the request itself.  The use cases raise those of :mod:`backupfw.errors`."""

from __future__ import annotations


class RequestError(Exception):
    """Base of the errors; ``str(error)`` is what the user reads."""


class BadRequest(RequestError):
    """A parameter, path or header is malformed or not allowed."""


class MalformedUrl(BadRequest):
    """The project in the path is not the caller's."""

    def __init__(self) -> None:
        super().__init__("Malformed request url")


class MalformedBody(BadRequest):
    """The body is not JSON, or an action's body does not have exactly one key."""

    def __init__(self) -> None:
        super().__init__("Malformed request body")


class ValidationFailed(BadRequest):
    """The body does not match its schema."""


class Unauthorized(RequestError):
    """The request's credentials identify no user."""


class WrongScope(RequestError):
    """The caller's token is valid, but neither for a project nor for the system."""

    def __init__(self) -> None:
        super().__init__("The token is scoped to neither a project nor the system.")


class UnknownRoute(RequestError):
    """The API does not have this path, or not with this method."""

    def __init__(self) -> None:
        super().__init__("The resource could not be found.")


class UnsupportedVersion(RequestError):
    """The version is not served; ``lowest`` to ``highest`` are."""

    def __init__(self, wanted: str, lowest: str, highest: str) -> None:
        super().__init__(
            f"Version {wanted} is not supported by the API. Minimum is {lowest} and maximum is {highest}."
        )


class OverQuota(RequestError):
    """A quota is used up; the message has no name before its text."""


class BodyTooLarge(RequestError):
    """The body is longer than ``[api] max_request_body_size``."""

    def __init__(self) -> None:
        super().__init__("Request is too large.")


class UnsupportedMediaType(RequestError):
    """The body's content type is not JSON."""

    def __init__(self) -> None:
        super().__init__("Unsupported Content-Type")
