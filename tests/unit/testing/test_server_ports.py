"""Ports of servers: nobody else gets one between the choice and the start."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.servers import ports


def test_no_process_gets_what_another_one_has(monkeypatch: pytest.MonkeyPatch) -> None:
    few = sorted(ports.free_port() for _ in range(5))
    # All that the other process may choose from are these, and one more.
    one = next(
        port for port in random.sample(ports._ports(), 1000) if port not in few and ports._is_free(port)
    )
    code = f"from tests.servers import ports; ports._ports = lambda: {[*few, one]}; print(ports.free_port())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(done.stdout) == one
    monkeypatch.setattr(ports, "_ports", lambda: few)
    with pytest.raises(RuntimeError, match="no port"):
        ports.free_port()


def test_the_system_picks_none_of_them() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if first < ports._FIRST + 1000:
        pytest.skip("declared: this system leaves no others")
    assert not first <= ports.free_port() <= last
