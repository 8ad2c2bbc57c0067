"""Whether a project's backup policies run: what Keystone says, remembered, and what if it does not answer."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from keystoneauth1 import exceptions as keystone_errors

from backupfw import errors
from backupfw.api.identity import keystone
from backupfw.api.identity.keystone import Projects


class Keystone:
    """What the service asks.

    :ivar said: by project, the status and the body; None: no answer.
    """

    def __init__(self) -> None:
        self.said: dict[str, tuple[int, Any] | None] = {}
        self.asked: list[str] = []

    def get(self, path: str, raise_exc: bool) -> Any:
        assert not raise_exc
        project = path.removeprefix("/projects/")
        self.asked.append(project)
        answer = self.said[project]
        if answer is None:
            raise keystone_errors.ConnectFailure("no route")
        return SimpleNamespace(status_code=answer[0], json=lambda: answer[1])


@pytest.fixture
def keystone_server(monkeypatch: pytest.MonkeyPatch) -> Keystone:
    server = Keystone()
    monkeypatch.setattr(Projects, "_connect", lambda _self: server)
    return server


def test_who_rests(keystone_server: Keystone) -> None:
    keystone_server.said = {
        "works": (200, {"project": {"id": "works", "enabled": True}}),
        "disabled": (200, {"project": {"id": "disabled", "enabled": False}}),
        "gone": (404, {}),
        "hidden": (403, {}),
    }
    projects = Projects(None)
    for _ in range(2):
        assert projects.pauses("works") is None
        assert projects.pauses("disabled") == "The project is disabled."
        assert projects.pauses("gone") == "The project does not exist any more."
        # The service's user may not ask: backups go on.
        assert projects.pauses("hidden") is None
    assert sorted(keystone_server.asked) == ["disabled", "gone", "hidden", "works"]
    assert [projects.known(name) for name in ("works", "disabled", "gone", "hidden")] == [
        True,
        True,
        False,
        True,
    ]


def test_a_keystone_that_does_not_answer_stops_no_backup(
    keystone_server: Keystone, monkeypatch: pytest.MonkeyPatch
) -> None:
    keystone_server.said = {"p": None, "q": None}
    projects = Projects(None)
    assert projects.pauses("p") is None
    # Each further project would wait as long for nothing.
    assert projects.pauses("q") is None
    assert keystone_server.asked == ["p"]
    with pytest.raises(errors.ServiceUnavailable):
        projects.known("p")
    # Later it is asked again, not believed to have said that.
    monkeypatch.setattr(keystone, "SILENT_SECONDS", 0.0)
    keystone_server.said = {"p": (200, {"project": {"enabled": False}})}
    assert projects.pauses("p") == "The project is disabled."
    assert keystone.REMEMBERED_SECONDS <= 600
