"""What users are told never names a host, a path, an endpoint or a credential."""

from __future__ import annotations

import errno

import pytest
from oslo_db.exception import DBConnectionError, DBDeadlock, DBError

from backupfw import errors
from backupfw.chunkstore import errors as store_errors
from backupfw.keys import errors as key_errors
from backupfw.manager.messages import Detail
from backupfw.worker.reasons import MAX_LENGTH, may_pass, message_detail, user_reason

SECRETS = ("10.0.0.7", "/var/lib", "AKIA123", "https://", "host7")
TEXT = "cannot reach https://10.0.0.7:443/ as AKIA123 from host7, see /var/lib/x"


def every_store_error() -> list[BaseException]:
    kinds = [kind for kind in vars(store_errors).values() if isinstance(kind, type)]
    found: list[BaseException] = []
    for kind in kinds:
        if issubclass(kind, store_errors.DeleteFailed):
            found.append(kind({"k": store_errors.Unavailable(TEXT)}))
        elif issubclass(kind, store_errors.ChunkStoreError):
            found.append(kind(TEXT))
    return found


@pytest.mark.parametrize(
    "error",
    [
        *every_store_error(),
        key_errors.KeyStoreError(TEXT),
        key_errors.KeyStoreUnavailable(TEXT),
        key_errors.ProjectKeyMissing("key-7", TEXT),
        key_errors.UnwrapRefused("key-7"),
        errors.TargetError(TEXT),
        errors.SourceMoved(TEXT),
        errors.JournalLost(TEXT),
        errors.Damaged("main", "box", "a/b", TEXT),
        errors.UnsupportedFormat(f"object {TEXT} has format version 7"),
        errors.ConfigError(TEXT),
        OSError(errno.EIO, TEXT, "/var/lib/x"),
        OSError(errno.ENOSPC, TEXT, "/var/lib/x"),
        OSError(TEXT),
        RuntimeError(TEXT),
        KeyError(TEXT),
    ],
    ids=lambda error: type(error).__name__,
)
def test_no_secret_gets_out(error: BaseException) -> None:
    reason = user_reason(error, "req-1")
    assert reason
    assert len(reason) <= MAX_LENGTH
    assert not [secret for secret in SECRETS if secret in reason]


def test_what_the_store_says_for_users_is_reported() -> None:
    error = store_errors.ChunkStoreError(TEXT, for_user="The clocks differ too much.")
    assert user_reason(error, "req-1") == "The clocks differ too much."
    assert user_reason(store_errors.DeleteFailed({"k": error}), "req-1") == "The clocks differ too much."


def test_only_a_key_store_that_does_not_answer_may_pass() -> None:
    assert may_pass(key_errors.KeyStoreUnavailable(TEXT))
    for error in (
        key_errors.KeyStoreError(TEXT),
        key_errors.ProjectKeyMissing("k"),
        key_errors.UnwrapRefused("k"),
    ):
        assert not may_pass(error)
    assert may_pass(key_errors.KeyStoreError(TEXT, temporary=True))


def test_only_what_all_objects_share_is_the_reason() -> None:
    locked = store_errors.Retained(TEXT)
    assert "lock or retention" in user_reason(store_errors.DeleteFailed({"a": locked, "b": locked}), None)
    mixed = store_errors.DeleteFailed({"a": locked, "b": store_errors.Unavailable(TEXT)})
    assert user_reason(mixed, None) == "Some objects could not be deleted from the store."


def test_reasons_fit_their_column() -> None:
    assert len(user_reason(errors.Damaged("s", "c", "k" * 1000, "gone"), None)) == MAX_LENGTH


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (store_errors.Unavailable("x"), True),
        (store_errors.Unavailable("x", temporary=False), False),
        # Full is full for the next call, but somebody may make room.
        (store_errors.NoSpace("x"), True),
        (store_errors.NoSpace("x", temporary=False), True),
        (store_errors.DeleteFailed({"k": store_errors.PermissionDenied("x")}), True),
        (store_errors.IntegrityError("x"), False),
        (store_errors.IntegrityError("x", temporary=True), True),
        (store_errors.PermissionDenied("x"), False),
        (store_errors.PermissionDenied("x", temporary=True), True),
        (store_errors.InvalidName("x"), False),
        (errors.TargetError("x"), True),
        (OSError(errno.EIO, "x"), True),
        (errors.JournalLost("x"), True),
        (errors.DatabaseUnwritable("x"), True),
        (errors.ServiceUnavailable("x"), False),
        (DBConnectionError(), True),
        (DBDeadlock(), True),
        (DBError(), False),
        (errors.Damaged("s", "c", "k", "x"), False),
        (errors.InvalidInput("x"), False),
        (ValueError("x"), False),
    ],
)
def test_what_is_tried_again(error: BaseException, again: bool) -> None:
    assert may_pass(error) is again


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (errors.TargetError("x"), Detail.ATTACH),
        (errors.VolumeNotFound("x"), Detail.VOLUME_STATE),
        (errors.SnapshotNotFound("x"), Detail.VOLUME_STATE),
        (errors.SourceMoved("x"), Detail.DEVICE),
        (errors.SourceUnreadable("x"), Detail.DEVICE),
        (OSError(errno.EIO, "x"), Detail.DEVICE),
        (store_errors.Unavailable("x"), None),
        (errors.Damaged("s", "c", "k", "x"), None),
        (errors.InvalidInput("x"), None),
        (ValueError("x"), None),
    ],
)
def test_what_a_message_says(error: BaseException, detail: Detail | None) -> None:
    assert message_detail(error) is detail
