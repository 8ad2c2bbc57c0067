"""The leash of a running task."""

from __future__ import annotations

import pytest

from backupfw.errors import TaskCancelled, TaskLost
from backupfw.worker.control import TaskControl, boot_time


def test_a_passed_deadline_ends_the_attempt() -> None:
    control = TaskControl(boot_time() - 1)
    with pytest.raises(TaskLost):
        control.may_write()
    control.extend(boot_time() + 60)
    control.may_write()


def test_a_cancelled_task_that_is_lost_counts_as_lost() -> None:
    control = TaskControl(boot_time() + 60)
    control.check()
    control.cancel()
    with pytest.raises(TaskCancelled):
        control.check()
    control.lose()
    with pytest.raises(TaskLost):
        control.check()


def test_a_users_cancellation_is_no_shutdown() -> None:
    control = TaskControl(boot_time() + 60)
    control.cancel()
    control.shutdown()
    assert not control.for_shutdown
    other = TaskControl(boot_time() + 60)
    other.shutdown()
    other.shutdown()
    assert other.for_shutdown
    other.lose()
    assert not other.for_shutdown
