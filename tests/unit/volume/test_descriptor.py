"""A descriptor closed under its users."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from backupfw.errors import TaskLost
from backupfw.volume.local.descriptor import Descriptor


def open_file(tmp_path: Path) -> int:
    return os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)


def is_open(fd: int) -> bool:
    return Path(f"/proc/self/fd/{fd}").exists()


def test_it_closes_when_the_last_user_leaves(tmp_path: Path) -> None:
    said: list[str] = []
    fd = open_file(tmp_path)
    descriptor = Descriptor(fd, before_close=lambda: said.append("closing"))
    with descriptor as one, descriptor as two:
        assert one == two == fd
        descriptor.close()
        assert is_open(fd)
        assert said == []
    assert said == ["closing"]
    assert not is_open(fd)
    descriptor.close()
    assert said == ["closing"]
    with pytest.raises(OSError, match="closed"), descriptor:
        pass


def test_revoking_waits_for_a_call_in_flight(tmp_path: Path) -> None:
    descriptor = Descriptor(open_file(tmp_path))
    entered, leave = threading.Event(), threading.Event()

    def use() -> None:
        with descriptor:
            entered.set()
            leave.wait(60)

    thread = threading.Thread(target=use)
    thread.start()
    assert entered.wait(60)
    assert not descriptor.revoke(0.01)
    with pytest.raises(TaskLost), descriptor:
        pass
    leave.set()
    assert descriptor.revoke(60)
    thread.join()
