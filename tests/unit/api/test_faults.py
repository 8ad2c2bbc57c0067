"""The table of faults: every error of the core has its line, and nothing leaks."""

from __future__ import annotations

import inspect
import json

import pytest
from oslo_db.exception import DBConnectionError, DBDeadlock

from backupfw import errors
from backupfw.api import errors as api_errors
from backupfw.api import faults


@pytest.mark.parametrize(
    ("error", "status", "key", "message"),
    [
        (errors.InvalidInput("x"), 400, "badRequest", "Invalid input received: x"),
        (errors.InvalidBackup("x"), 400, "badRequest", "Invalid backup: x"),
        (errors.InvalidVolume("x"), 400, "badRequest", "Invalid volume: x"),
        (errors.InvalidSnapshot("x"), 400, "badRequest", "Invalid snapshot: x"),
        (errors.Forbidden("r"), 403, "forbidden", "Policy doesn't allow r to be performed."),
        (errors.BackupNotFound("i"), 404, "itemNotFound", "Backup i could not be found."),
        (errors.MarkerNotFound("i"), 404, "itemNotFound", "Marker i could not be found."),
        (
            errors.OperationNotSupported("force delete."),
            405,
            "badMethod",
            "Operation not supported: force delete.",
        ),
        (errors.QuotaExceeded("backups", "m"), 413, "overLimit", "BackupLimitExceeded: m"),
        (
            errors.QuotaExceeded("backup_gigabytes", "m"),
            413,
            "overLimit",
            "VolumeBackupSizeExceedsAvailableQuota: m",
        ),
        (errors.QuotaExceeded("volumes", "m"), 413, "overLimit", "VolumeLimitExceeded: m"),
        (api_errors.OverQuota("m"), 413, "overLimit", "m"),
        (errors.ServiceUnavailable("m"), 503, "serviceUnavailable", "m"),
        (api_errors.MalformedUrl(), 400, "badRequest", "Malformed request url"),
        (api_errors.Unauthorized("m"), 401, "unauthorized", "m"),
        (api_errors.UnsupportedMediaType(), 415, "badMediaType", "Unsupported Content-Type"),
        (RuntimeError("secret"), 500, "computeFault", faults.UNEXPECTED),
        (errors.TargetError("secret"), 500, "computeFault", faults.UNEXPECTED),
    ],
)
def test_an_error_has_the_status_key_and_message_of_the_table(
    error: Exception, status: int, key: str, message: str
) -> None:
    response = faults.response_of(error, {})
    assert response.status_int == status
    body = json.loads(response.body)
    assert body[key]["code"] == status
    assert body[key]["message"] == message
    assert set(body) == {key}
    over = status == 413
    assert set(body[key]) == ({"code", "message", "retryAfter"} if over else {"code", "message"})
    assert response.headers.get("Retry-After") == ("0" if over else None)
    assert response.content_type == "application/json"


def test_a_prefix_is_not_said_twice() -> None:
    assert faults.fault_of(errors.InvalidBackup("Invalid backup: x")).message == "Invalid backup: x"


def test_long_messages_are_cut() -> None:
    message = faults.fault_of(errors.InvalidInput("x" * 10_000)).body()["badRequest"]["message"]
    assert len(message) == faults.MAX_MESSAGE + 1


def test_every_error_a_request_can_meet_has_a_line() -> None:
    engine_only = (errors.EngineError, errors.TaskStopped, errors.ConfigError)
    for _, cls in inspect.getmembers(errors, inspect.isclass):
        if cls.__module__ != errors.__name__ or cls is errors.BackupfwError or issubclass(cls, engine_only):
            continue
        assert any(base in faults.TABLE for base in cls.__mro__), cls


def test_the_trace_is_logged_with_the_request(caplog: pytest.LogCaptureFixture) -> None:
    faults.response_of(RuntimeError("why"), {faults.REQUEST_ID: "req-1", "REQUEST_METHOD": "GET"})
    (record,) = caplog.records
    assert "req-1" in record.getMessage()
    assert record.exc_info is not None
    caplog.clear()
    faults.response_of(errors.ServiceUnavailable("x"), {})
    assert not caplog.records


def test_a_database_that_is_away_is_503_and_says_nothing_of_it() -> None:
    fault = faults.fault_of(DBConnectionError(Exception("postgresql://tester:secret@db.example.org/app")))
    assert (fault.status, fault.key, fault.message) == (503, "serviceUnavailable", faults.DATABASE_AWAY)


@pytest.mark.parametrize(
    "error",
    [
        DBConnectionError(Exception("server closed")),
        DBDeadlock(Exception("server closed")),
        errors.DatabaseUnwritable("The service's database cannot be written: its disk is full."),
    ],
)
def test_the_databases_troubles_are_503_for_a_while_and_one_line(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    response = faults.response_of(error, {faults.REQUEST_ID: "req-1", "REQUEST_METHOD": "GET"})
    assert response.status_int == 503
    assert int(response.headers["Retry-After"]) > 0
    (record,) = caplog.records
    assert "req-1" in record.getMessage()
    assert "\n" not in record.getMessage()
    assert record.exc_info is None
