"""Export records: round trips, forms that clients know, and hostile input."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backupfw import naming
from backupfw.errors import InvalidInput
from backupfw.manager import records, rows
from backupfw.manager.records import MAX_CHARACTERS, decode, encode, same_service

POSIX = "cinder.backup.drivers.posix.PosixBackupDriver"
#: As an existing service wrote it; nothing of it was made here.
FOREIGN: dict[str, Any] = {
    "driver_info": {},
    "id": "3ecbf0a7-dd78-416b-8874-fa2be9db3b37",
    "user_id": "f24ae777aee24696ab1bf65319fdc8e3",
    "project_id": "9e08b5df144c4245b163f6032e33907d",
    "volume_id": "fd6a90f7-5e0f-4ce3-90fe-18a26c0be4ba",
    "host": "peer",
    "availability_zone": "nova",
    "container": "3e/cb/3ecbf0a7-dd78-416b-8874-fa2be9db3b37",
    "parent_id": None,
    "status": "available",
    "fail_reason": None,
    "size": 1,
    "display_name": "bk-02e096",
    "display_description": "first backup",
    "service_metadata": "volume_fd6a90f7-5e0f-4ce3-90fe-18a26c0be4ba_20261123161356"
    "_backup_3ecbf0a7-dd78-416b-8874-fa2be9db3b37",
    "service": POSIX,
    "object_count": 1,
    "temp_volume_id": None,
    "temp_snapshot_id": None,
    "num_dependent_backups": 1,
    "snapshot_id": None,
    "data_timestamp": "2026-11-23T16:13:55Z",
    "restore_volume_id": "de2211ac-1d64-49c7-8c34-142b7c11b7c0",
    "metadata": {},
    "encryption_key_id": None,
    "created_at": "2026-11-23T16:13:55Z",
    "updated_at": "2026-11-23T16:16:23Z",
    "deleted_at": None,
    "deleted": False,
}

texts = st.text(st.characters(exclude_categories=("Cc", "Cs")), max_size=255)
times = st.datetimes().map(lambda moment: moment.replace(microsecond=0))
uuids = st.uuids().map(str)
backups = st.builds(
    rows.Backup,
    id=uuids,
    user_id=st.none() | texts,
    project_id=texts,
    volume_id=uuids,
    snapshot_id=st.none() | uuids,
    host=st.none() | texts,
    availability_zone=st.none() | texts,
    container=st.none() | texts,
    store=st.none() | texts,
    service=st.none() | texts,
    parent_id=st.none() | uuids,
    status=texts,
    fail_reason=st.none() | texts,
    size=st.integers(1, (1 << 31) - 1),
    display_name=st.none() | texts,
    display_description=st.none() | texts,
    service_metadata=st.none() | texts,
    object_count=st.integers(0, (1 << 63) - 1),
    temp_volume_id=st.none(),
    temp_snapshot_id=st.none(),
    restore_volume_id=st.none() | uuids,
    encryption_key_id=st.none() | uuids,
    data_timestamp=st.none() | times,
    created_at=times,
    updated_at=st.none() | times,
    metadata=st.dictionaries(texts.filter(bool), texts, max_size=5),
    volume_record=st.none()
    | st.builds(
        records.volume_record, st.none() | texts, st.booleans(), st.dictionaries(texts, texts, max_size=2)
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def pack(value: Any) -> str:
    return base64.b64encode(json.dumps(value).encode()).decode()


def unpack(text: str) -> Any:
    return json.loads(base64.b64decode(text))


def a_backup(**changes: Any) -> rows.Backup:
    values: dict[str, Any] = dict.fromkeys(rows.Backup.__dataclass_fields__)
    values.update(
        id=FOREIGN["id"], project_id="blue", volume_id=FOREIGN["volume_id"], status="available", size=3,
        is_incremental=True, completed=True, object_count=7, stored_bytes=1, referenced_bytes=1,
        progress_done=1, progress_total=1, created_at=datetime(2026, 11, 23, 16, 13, 55, 987654),
        data_timestamp=datetime(2026, 11, 23, 16, 13, 55, 987654), deleted=False, store="main",
        service=POSIX, num_dependent_backups=2, metadata={"tier": "gold"},
    )  # fmt: skip
    return rows.Backup(**{**values, **changes})


key_ids = st.none() | st.text("0123456789abcdef", min_size=32, max_size=32)


@given(backups, key_ids, key_ids.filter(bool))
def test_what_is_exported_can_be_imported(backup: rows.Backup, key_id: str | None, mac_id: str) -> None:
    record = decode(encode(backup, key_id, mac_id))
    assert (record.key_id, record.mac_id) == (key_id, mac_id if key_id else None)
    for name in set(records.Record.__dataclass_fields__) - {"key_id", "mac_id"}:
        assert getattr(record, name) == getattr(backup, name), name


def test_a_record_has_exactly_the_known_fields_in_their_forms() -> None:
    record = unpack(encode(a_backup()))
    assert list(record) == list(FOREIGN)
    assert record["created_at"] == "2026-11-23T16:13:55Z"
    assert record["data_timestamp"] == "2026-11-23T16:13:55Z"
    assert record["updated_at"] is None
    assert record["deleted"] is False
    assert record["num_dependent_backups"] == 2
    assert record["metadata"] == {"tier": "gold"}
    assert record["driver_info"] == {"store": "main"}


def test_a_record_says_what_the_volume_was() -> None:
    kept = records.volume_record("gold", True, {"image_name": "cirros"})
    info = unpack(encode(a_backup(volume_record=kept)))["driver_info"]
    assert info == {
        "store": "main",
        "volume": {"volume_type": "gold", "bootable": True, "image_metadata": {"image_name": "cirros"}},
    }


def test_a_record_says_how_the_data_is_encrypted_and_is_else_the_same() -> None:
    text = encode(a_backup(), "d" * 32, "a" * 32)
    record = decode(text)
    assert (record.store, record.key_id, record.mac_id) == ("main", "d" * 32, "a" * 32)
    info = unpack(text)["driver_info"]
    assert info.pop("encryption") == {"data_key": "d" * 32, "mac": "a" * 32}
    # Without it, every byte is what it was.
    assert pack({**unpack(text), "driver_info": info}) == encode(a_backup())


@pytest.mark.parametrize(
    ("encryption", "part"),
    [
        (7, ""), ({}, ""), ({"data_key": "d" * 32}, ""), ({"data_key": None, "mac": None}, ".data_key"),
        ({"data_key": "D" * 32, "mac": "a" * 32}, ".data_key"),
        ({"data_key": "d" * 32, "mac": "a" * 33}, ".mac"),
    ],
)  # fmt: skip
def test_a_wrong_encryption_is_named(encryption: Any, part: str) -> None:
    with pytest.raises(InvalidInput, match=rf"invalid driver_info\.encryption{part}\."):
        decode(pack({**FOREIGN, "driver_info": {"encryption": encryption}}))


def test_driver_info_is_empty_without_a_store() -> None:
    assert unpack(encode(a_backup(store=None)))["driver_info"] == {}


def test_a_record_of_an_existing_service_is_read() -> None:
    record = decode(pack(FOREIGN))
    assert record.id == FOREIGN["id"]
    assert record.size == 1
    assert record.container == FOREIGN["container"]
    assert record.service_metadata == FOREIGN["service_metadata"]
    assert record.data_timestamp == datetime(2026, 11, 23, 16, 13, 55)
    assert record.store is None


def test_another_id_re_encoded_with_plain_json_is_read() -> None:
    # What the published export/import test does.
    record = unpack(encode(a_backup()))
    record.update({"id": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"})
    assert decode(pack(record)).id == "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee"


def test_id_and_size_are_enough() -> None:
    assert decode(pack({"id": FOREIGN["id"], "size": 4})) == records.Record(id=FOREIGN["id"], size=4)


def test_ids_are_lower_case() -> None:
    assert decode(pack({"id": FOREIGN["id"].upper(), "size": 4})).id == FOREIGN["id"]


def test_both_alphabets_and_line_breaks_are_read() -> None:
    fields = {"id": FOREIGN["id"], "size": 1, "display_name": "ÿ?>~ÿ?>~"}
    data = json.dumps(fields, ensure_ascii=False).encode()
    wrapped = base64.encodebytes(data).decode()
    safe = base64.urlsafe_b64encode(data).decode()
    assert "\n" in wrapped
    assert set(safe) & set("-_")
    assert decode(wrapped) == decode(safe)
    assert decode(safe).display_name == "ÿ?>~ÿ?>~"


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T16:13:55", datetime(2026, 11, 23, 16, 13, 55)),
        ("2026-11-23T16:13:55.25Z", datetime(2026, 11, 23, 16, 13, 55, 250000)),
        ("2026-11-23 16:13:55.123456", datetime(2026, 11, 23, 16, 13, 55, 123456)),
        ("2026-11-23T16:13:55+02:00", datetime(2026, 11, 23, 14, 13, 55)),
    ],
)
def test_times_of_other_services_are_read(text: str, moment: datetime) -> None:
    assert decode(pack({**FOREIGN, "created_at": text})).created_at == moment


@pytest.mark.parametrize(
    "text",
    ["", "A", "AAAA=", "a b!c=", "ä", "\ud800", "e30=" * (MAX_CHARACTERS // 4) + "e30="],
    ids=["empty", "short", "padding", "alphabet", "letters", "surrogate", "huge"],
)
def test_what_is_no_base64_cannot_be_decoded_or_parsed(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^Can't (de)?(code|parse) backup record\.$"):
        decode(text)


def test_bytes_that_are_no_text_cannot_be_decoded() -> None:
    with pytest.raises(InvalidInput, match=r"^Can't decode backup record\.$"):
        decode(base64.b64encode(b"\xff\xfe\x00").decode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"text"',
        "7",
        '{"id": NaN}',
        '{"size": Infinity}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"x": ' + "[" * 17 + "]" * 17 + "}",
        '{"size": 1' + "0" * 5000 + "}",
        '{"id": "\\',
        '"' + '\\"' * 500_000,
    ],
    ids=lambda text: text[:12],
)
def test_what_is_no_json_object_cannot_be_parsed(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^Can't parse backup record\.$"):
        decode(base64.b64encode(text.encode()).decode())


def test_brackets_in_texts_are_not_nesting() -> None:
    fields = {**FOREIGN, "display_description": '[{"\\' * 50}
    assert decode(pack(fields)).display_description == fields["display_description"]


@pytest.mark.parametrize(("name", "words"), [("id", "missing an id"), ("size", "missing size")])
@pytest.mark.parametrize("present", [True, False])
def test_needed_fields_are_named(name: str, words: str, present: bool) -> None:
    """In the words that clients' tests look for."""
    fields = {key: value for key, value in FOREIGN.items() if key != name}
    with pytest.raises(InvalidInput, match=f"^Provided backup record is {words}"):
        decode(pack({**fields, name: None} if present else fields))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("id", 7), ("id", ""), ("id", "../../etc/passwd"), ("id", "{" + FOREIGN["id"] + "}"),
        ("id", FOREIGN["id"].replace("-", "")), ("id", FOREIGN["id"] + "\n"),
        ("id", "٣" * 8 + FOREIGN["id"][8:]),
        ("size", "1"), ("size", True), ("size", 0), ("size", -1), ("size", 1.0), ("size", 1 << 31),
        ("volume_id", "x"), ("volume_id", []), ("snapshot_id", 1), ("parent_id", "none"),
        ("container", "x" * 256), ("container", 5), ("container", "a\nb"), ("container", "\ud800"),
        ("service_metadata", "x" * 1025), ("service_metadata", {}), ("service_metadata", "a\0b"),
        ("display_name", "x" * 256), ("display_name", "\0"), ("display_description", ["x"]),
        ("service", 1), ("user_id", {}), ("project_id", 3), ("availability_zone", "\x1b[0m"),
        ("object_count", -1), ("object_count", "4"), ("object_count", 1 << 63),
        ("encryption_key_id", "x" * 40),
        ("data_timestamp", "yesterday"), ("data_timestamp", 1_700_000_000),
        ("created_at", "2026-13-40T99:99:99Z"),
        ("created_at", "0001-01-01T00:00:00+23:59"), ("created_at", "2026-11-23"),
        ("metadata", []), ("metadata", {"a": 1}), ("metadata", {"": "x"}), ("metadata", {"a": "x" * 256}),
        ("metadata", {"k" * 256: "x"}), ("metadata", {"a": "\ud800"}), ("metadata", {"a\n": "x"}),
        ("driver_info", "x"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named(name: str, value: Any) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode(pack({**FOREIGN, name: value}))
    assert str(caught.value) == f"The backup record has an invalid {name}."


def test_too_much_metadata_is_refused_before_it_is_looked_at() -> None:
    """A check of every pair takes seconds where there are some hundred thousand."""
    # Each of them is wrong.
    pairs = {f"{number}\n": "" for number in range(naming.MAX_PAIRS + 1)}
    with pytest.raises(InvalidInput, match=r"^The backup record has more than 16384 pairs of metadata\.$"):
        decode(pack({**FOREIGN, "metadata": pairs}))
    most = {str(number): "" for number in range(naming.MAX_PAIRS)}
    assert decode(pack({**FOREIGN, "metadata": most})).metadata == most


def test_a_wrong_store_hint_is_named() -> None:
    with pytest.raises(InvalidInput, match=r"invalid driver_info\.store\."):
        decode(pack({**FOREIGN, "driver_info": {"store": 7}}))


@given(st.dictionaries(st.sampled_from([*FOREIGN, "more"]), json_values, max_size=6))
def test_no_values_do_more_than_be_refused(changes: dict[str, Any]) -> None:
    try:
        record = decode(pack({**FOREIGN, **changes}))
    except InvalidInput:
        return
    # What was let through can be written and read again.
    values = {name: getattr(record, name) for name in record.__dataclass_fields__}
    ids = [values.pop(name) for name in ("key_id", "mac_id")]
    again = replace(a_backup(), **{name: value for name, value in values.items() if value is not None})
    assert decode(encode(again, *ids)).id == record.id


@given(st.text() | st.binary().map(lambda data: base64.b64encode(data).decode()))
@example("=" * 5)
def test_no_text_does_more_than_be_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        decode(text)


@given(json_values)
def test_no_json_does_more_than_be_refused(value: Any) -> None:
    with pytest.raises(InvalidInput):
        decode(pack(value))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (POSIX, POSIX, True),
        ("cinder.backup.drivers.posix", POSIX, True),
        ("cinder.backup.drivers.gcs", "cinder.backup.drivers.gcs.GoogleBackupDriver", True),
        ("acme", "acme", True),
        ("cinder.backup.drivers", "cinder.backup.drivers.posix", False),
        ("cinder.backup.drivers", POSIX, False),
        ("cinder.backup.drivers.posix.", POSIX, False),
        ("cinder.backup.drivers.posix.Other", POSIX, False),
        ("cinder.backup.drivers.swift", POSIX, False),
        ("PosixBackupDriver", POSIX, False),
        ("", POSIX, False),
        ("", "", False),
        ("", ".Driver", False),
    ],
)
def test_services_are_matched_by_module_and_class(one: str, other: str, same: bool) -> None:
    assert same_service(one, other) is same
    assert same_service(other, one) is same
