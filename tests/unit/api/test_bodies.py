"""Bodies: parsing, media types, formats, and the texts of refusals."""

from __future__ import annotations

from typing import Any

import pytest

from backupfw import naming
from backupfw.api import bodies, errors
from backupfw.api.schemas import backups, formats, types
from backupfw.api.schemas import volumes as volume_schemas
from backupfw.api.versions import V2

ID = "fd6a90f7-5e0f-4ce3-90fe-18a26c0be4ba"


@pytest.mark.parametrize("raw", [b"", b"  ", b"\r\n"])
def test_no_body_is_none(raw: bytes) -> None:
    assert bodies.parse(raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"nope",
        b"{'a': 1}",
        b"NaN",
        b'{"a": Infinity}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'"\xff"',
        # Half of a surrogate pair as it would be in UTF-8, and in UTF-16.
        b'{"a": "\xed\xa0\x80"}',
        '{"a": "\ud800"}'.encode("utf-16", "surrogatepass"),
        b"9" * 5000,
    ],
)
def test_a_body_that_is_not_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(errors.MalformedBody, match=r"^Malformed request body$"):
        bodies.parse(raw)


@pytest.mark.parametrize(
    ("raw", "field", "problem"),
    [
        (b'{"a": "\\ud800"}', "a", "it is not Unicode"),
        ('{"a": "\\ud800"}'.encode("utf-16"), "a", "it is not Unicode"),
        ('{"a": "\\u0000"}'.encode("utf-32"), "a", "it holds a NUL"),
        (b'{"\\u0000": 1}', r"\x00", "it holds a NUL"),
        (b'{"a": {"metadata": {"b": ["x", {"\\udfff": 1}]}}}', r"a.metadata.b.1.\udfff", "it is not Unicode"),
        (b'{"a": {"b": "x", "c": ["y", "z\\u0000"]}}', "a.c.1", "it holds a NUL"),
    ],
)
def test_a_text_that_no_database_stores_is_refused_by_its_field(raw: bytes, field: str, problem: str) -> None:
    with pytest.raises(errors.ValidationFailed) as refused:
        bodies.parse(raw)
    text = str(refused.value)
    assert text.startswith(f"Invalid input for field/attribute {field}. Value: ")
    assert text.endswith(problem)
    assert text.isascii()


def test_a_text_alone_has_no_field() -> None:
    with pytest.raises(errors.ValidationFailed, match=r"^Invalid input\. Value: '\\x00'\. it holds a NUL$"):
        bodies.parse(b'"\\u0000"')


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_every_encoding_of_unicode(encoding: str) -> None:
    assert bodies.parse('{"a": "ä\U0001f600"}'.encode(encoding)) == {"a": "ä\U0001f600"}


def test_what_is_nested_too_deep_to_be_shown_is_malformed() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.MalformedBody):
        bodies.validate({"backup": {"volume_id": ID, "name": deep}}, backups.create(V2))


def test_pairs_of_surrogates_are_text() -> None:
    assert bodies.parse(b'{"a": "\\ud83d\\ude00", "b": "\\\\u0000"}') == {"a": "\U0001f600", "b": "\\u0000"}


@pytest.mark.parametrize(
    "content_type",
    [
        "",
        "application/json",
        "application/json; charset=utf-8",
        "Application/JSON",
        "application/vnd.openstack.volume+json;version=2",
    ],
)
def test_media_types_of_json_pass(content_type: str) -> None:
    bodies.check_media_type(content_type)


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/xml", "application/x-www-form-urlencoded", ";"]
)
def test_other_media_types_are_refused(content_type: str) -> None:
    with pytest.raises(errors.UnsupportedMediaType, match=r"^Unsupported Content-Type$"):
        bodies.check_media_type(content_type)


def refusal(body: Any, schema: Any) -> str:
    with pytest.raises(errors.ValidationFailed) as caught:
        bodies.validate(body, schema)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (None, "None is not of type 'object'"),
        ([], "[] is not of type 'object'"),
        ({}, "'backup' is a required property"),
        ({"backup": {"volume_id": ID}, "x": 1}, "Additional properties are not allowed ('x' was unexpected)"),
        (
            {"backup": None},
            "Invalid input for field/attribute backup. Value: None. None is not of type 'object'",
        ),
        (
            {"backup": {}},
            "Invalid input for field/attribute backup. Value: {}. 'volume_id' is a required property",
        ),
        (
            {"backup": {"volume_id": "x"}},
            "Invalid input for field/attribute volume_id. Value: x. 'x' is not a 'uuid'",
        ),
        (
            {"backup": {"volume_id": ID, "description": "a\nb"}},
            (
                "Invalid input for field/attribute description. Value: a\nb. 'a\\nb' is not a 'printable'"
                " (printable characters only: no line breaks, nothing above U+FFFE)"
            ),
        ),
        (
            {"backup": {"volume_id": ID, "name": "a" * 256}},
            f"Invalid input for field/attribute name. Value: {'a' * 256}. '{'a' * 256}' is too long",
        ),
    ],
)
def test_a_refusal_has_the_text_that_clients_know(body: Any, text: str) -> None:
    assert refusal(body, backups.create(V2)) == text


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        *"10yntf",
        "true",
        "True",
        "TRUE",
        "false",
        "False",
        "FALSE",
        "on",
        "On",
        "ON",
        "off",
        "yes",
        "No",
    ],
)
def test_boolean_words_pass(value: object) -> None:
    bodies.validate({"backup": {"volume_id": ID, "force": value, "incremental": value}}, backups.create(V2))


@pytest.mark.parametrize("value", [1, 0, None, "", "tRue", "Y", "T", "2", "maybe", [], {}])
def test_what_is_no_boolean(value: object) -> None:
    assert "force" in refusal({"backup": {"volume_id": ID, "force": value}}, backups.create(V2))


@pytest.mark.parametrize("text", ["a\nb", "a\tb", "\u2028", "\U0001f600", "\uffff", "\x7f", "\u200b"])
def test_a_description_must_be_printable(text: str) -> None:
    assert "description" in refusal({"backup": {"volume_id": ID, "description": text}}, backups.create(V2))


@pytest.mark.parametrize("text", ["", " ", "ä ö ü", "日本語", "a" * 255, None])
def test_printable_descriptions_pass(text: str | None) -> None:
    bodies.validate({"backup": {"volume_id": ID, "description": text}}, backups.create(V2))


@pytest.mark.parametrize("text", [ID, ID.upper(), ID.replace("-", ""), "{" + ID + "}", "urn:uuid:" + ID])
def test_every_spelling_of_a_uuid_passes(text: str) -> None:
    bodies.validate(text, types.UUID)


@pytest.mark.parametrize("text", ["", "x", ID + "0", ID[:-1], ID + "\n", " " + ID])
def test_what_is_no_uuid(text: str) -> None:
    refusal(text, types.UUID)


@pytest.mark.parametrize("text", [ID, ID.upper()])
def test_an_id_in_a_path_may_have_capitals(text: str) -> None:
    assert formats.is_id(text)


@pytest.mark.parametrize("text", ["", "x", ID.replace("-", ""), ID + "\n", ID + ".json", "\u0661" + ID[1:]])
def test_what_is_no_id_in_a_path(text: str) -> None:
    assert not formats.is_id(text)


@pytest.mark.parametrize("key", ["a", "A-Z_:. /9", "k" * 255])
def test_metadata_keys_of_any_allowed_form_pass(key: str) -> None:
    bodies.validate({key: "v" * 255}, types.METADATA)


@pytest.mark.parametrize(
    "metadata",
    [{"": "v"}, {"k" * 256: "v"}, {"k\n": "v"}, {"ä": "v"}, {"k": "v" * 256}, {"k": 1}, {"k": None}, []],
)
def test_bad_metadata_is_refused(metadata: Any) -> None:
    refusal(metadata, types.METADATA)


def test_too_much_metadata_is_refused_before_it_is_looked_at_and_not_echoed() -> None:
    schema = types.wrapped("metadata", types.METADATA)
    # Each of them is wrong.
    pairs = {f"{number}\n": "" for number in range(naming.MAX_PAIRS + 1)}
    with pytest.raises(errors.ValidationFailed) as caught:
        bodies.validate({"metadata": pairs}, schema)
    assert str(caught.value).startswith("Invalid input for field/attribute metadata. Value: {'0\\n': '', ")
    assert len(str(caught.value)) < 2200
    most = {str(number): "" for number in range(naming.MAX_PAIRS)}
    bodies.validate({"metadata": most}, schema)
    # A refusal names what is wrong with a value, not all of it.
    with pytest.raises(errors.ValidationFailed) as caught:
        bodies.validate({"metadata": {f"\xe9{number}": "" for number in range(7000)}}, schema)
    assert len(str(caught.value)) < 2200
    assert "\xe90" in str(caught.value)


@pytest.mark.parametrize("status", ["available", "error", "AVAILABLE", "Error"])
def test_statuses_to_reset_to(status: str) -> None:
    bodies.validate({"os-reset_status": {"status": status}}, backups.reset_status(V2))


@pytest.mark.parametrize("status", ["", "creating", "deleting", "available ", None, 1])
def test_statuses_not_to_reset_to(status: object) -> None:
    refusal({"os-reset_status": {"status": status}}, backups.reset_status(V2))


def test_a_volume_body_may_hold_anything_else() -> None:
    body = {
        "volume": {"size": "1", "'backup_id": ID, "OS-SCH-HNT:scheduler_hints": None, "metadata": None},
        "OS-SCH-HNT:scheduler_hints": {},
    }
    bodies.validate(body, volume_schemas.create(V2))


@pytest.mark.parametrize("size", ["", "x", "-1", "1.5", "9" * 11, 1.5, True, []])
def test_what_is_no_size(size: object) -> None:
    refusal({"volume": {"size": size}}, volume_schemas.create(V2))
