"""Reads a request's JSON body and checks it against a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jsonschema

from backupfw import naming
from backupfw.api import errors
from backupfw.api.schemas import formats

#: Content types of JSON bodies.  A body without a type counts as JSON.
JSON_TYPES = frozenset({"application/json", "application/vnd.openstack.volume+json"})

#: A body without a match holds no text that is refused.  What matches: escapes of control characters and of
#: halves of surrogate pairs, and the control characters that JSON allows without an escape.
_SUSPICIOUS = re.compile(r"\\(?:u00[0189][0-9a-fA-F]|u007[fF]|u[dD][89a-fA-F]|b|f)|[\x7f-\x9f]")

Schema = Mapping[str, Any]

#: How much of a refused value an answer shows, characters.
_MAX_SHOWN = 1000


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


#: The place of a part of a body: its parent's place, and its key or index there; None for the body itself.
_Place = tuple["_Place", str | int] | None


def _texts(value: Any) -> Iterator[tuple[_Place, str]]:
    """Yield every text of a parsed body with its place; keys are texts, too."""
    waiting: list[tuple[_Place, Any]] = [(None, value)]
    while waiting:
        place, item = waiting.pop()
        if isinstance(item, str):
            yield place, item
        elif isinstance(item, list):
            waiting.extend(((place, number), one) for number, one in enumerate(item))
        elif isinstance(item, dict):
            for key, one in item.items():
                yield (place, key), key
                waiting.append(((place, key), one))


def _check_texts(value: Any) -> None:
    for place, part in _texts(value):
        if (problem := naming.input_problem(part)) is None:
            continue
        names: list[str] = []
        while place is not None:
            place, name = place
            names.append(str(name))
        # The key itself may hold the refused character, so the field is shown as ASCII.
        field = ascii(".".join(reversed(names)))[1:-1]
        raise errors.ValidationFailed(
            f"Invalid input for field/attribute {field}. Value: {part!a}. {problem}"
            if field
            else f"Invalid input. Value: {part!a}. {problem}"
        )


def parse(raw: bytes) -> Any:
    """Parse a JSON body; an empty one is None.

    :raises MalformedBody: the body is not JSON, is not in a Unicode encoding, or is nested too deep.
    :raises ValidationFailed: :func:`naming.input_problem` refuses a text; the message names its field.
    """
    if not raw.strip():
        return None
    try:
        # json.loads could decode the bytes itself, but then accepts encoded halves of surrogate pairs.
        text = raw.decode(json.detect_encoding(raw))
        value = json.loads(text.removeprefix("\ufeff"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise errors.MalformedBody from error
    if _SUSPICIOUS.search(text):
        _check_texts(value)
    return value


def check_media_type(content_type: str) -> None:
    """Check the content type of a body.

    :raises UnsupportedMediaType: it is not JSON.
    """
    if content_type and content_type.split(";")[0].strip().lower() not in JSON_TYPES:
        raise errors.UnsupportedMediaType


def validate(body: Any, schema: Schema) -> None:
    """Check a body against a draft 4 schema.

    :raises ValidationFailed: the body does not match; the message has field, value and reason.
    :raises MalformedBody: the value is nested too deep to be written into a message.
    """
    try:
        error = next(_errors(body, schema), None)
        message = None if error is None else _refusal(error)
    except RecursionError as too_deep:
        # To write a value into the message needs more stack than to parse it.
        raise errors.MalformedBody from too_deep
    if message is not None:
        raise errors.ValidationFailed(message)


def problems(body: Any, schema: Schema) -> Mapping[tuple[str | int, ...], str]:
    """Return everything that is wrong with a body, by the place of the value: for the fields of a form."""
    return {tuple(error.absolute_path): _message(error) for error in _errors(body, schema)}


def _errors(body: Any, schema: Schema) -> Iterator[jsonschema.ValidationError]:
    validator = jsonschema.Draft4Validator(schema, format_checker=formats.CHECKER)
    found: Iterator[jsonschema.ValidationError] = validator.iter_errors(body)
    return found


def _message(error: jsonschema.ValidationError) -> str:
    # It names all keys that it refuses.
    message = _short(error.message)
    if error.validator == "format" and error.validator_value in formats.HINTS:
        message += f" ({formats.HINTS[error.validator_value]})"
    return message


def _refusal(error: jsonschema.ValidationError) -> str:
    message = _message(error)
    if not error.path:
        return message
    return f"Invalid input for field/attribute {error.path[-1]}. Value: {_short(error.instance)}. {message}"


def _short(value: object) -> str:
    """Return a value of a request as an answer shows it: with its beginning, where it is long."""
    text = str(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."
