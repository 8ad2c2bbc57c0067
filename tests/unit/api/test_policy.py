"""The policy: its defaults, the operator's file, and what happens when the file changes."""

from __future__ import annotations

import itertools
import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from oslo_config import cfg
from oslo_policy import policy as oslo

from backupfw.api import enforcer, policies
from backupfw.api.controllers.root import ROUTES
from backupfw.api.enforcer import FilePolicy
from backupfw.api.policies import Level
from backupfw.cmd.configure import plug_ins
from backupfw.conf import libraries, load
from backupfw.context import RequestContext
from backupfw.errors import ConfigError
from tests.architecture.checkout import ROOT

ROLES = ("reader", "member", "admin")


def caller(*roles: str, project: str = "blue", system: bool = False, **more: Any) -> RequestContext:
    return RequestContext(
        "" if system else project,
        "us",
        frozenset(roles),
        system_scope="all" if system else None,
        **more,
    )


def expected(level: Level, needs_project: bool, role: str, where: str) -> bool:
    """The defaults in other words: ``where`` is what the caller is scoped to."""
    if needs_project and where == "system":
        return False
    if role == "admin":
        return True
    if where == "system":
        # Members of the system read, as members read everywhere.
        return level in (Level.READER, Level.AUDITOR)
    if where == "other":
        return False
    return level is Level.READER or (level is Level.MEMBER and role == "member")


@pytest.mark.parametrize("rule", policies.RULES.values(), ids=lambda rule: rule.name)
def test_a_default_allows_exactly_its_level(rule: policies.Rule) -> None:
    chosen = DEFAULTS
    for role, where in itertools.product(ROLES, ("own", "other", "system")):
        context = caller(role, project="red" if where == "other" else "blue", system=where == "system")
        assert chosen.allows(context, rule.name, "blue") is expected(
            rule.level, rule.needs_project, role, where
        ), (role, where)
    assert not chosen.allows(caller(), rule.name, "blue")
    assert not chosen.allows(caller("other"), rule.name, "blue")


DEFAULTS = enforcer.defaults()


def test_who_sees_every_project() -> None:
    assert DEFAULTS.is_admin(caller("admin"))
    assert DEFAULTS.is_admin(caller("reader", system=True))
    assert not DEFAULTS.is_admin(caller("member"))
    assert not DEFAULTS.is_admin(caller("other", system=True))


def test_no_project_is_nobodys_own() -> None:
    nowhere = RequestContext("", "us", frozenset({"member"}))
    for rule in policies.RULES:
        assert not DEFAULTS.allows(nowhere, rule, "")


def test_every_rule_is_asked_and_every_question_has_a_rule() -> None:
    source = "".join(path.read_text() for path in (ROOT / "backupfw" / "api").rglob("*.py"))
    strings = re.findall(r'"([a-z_]+:[a-zA-Z_:-]+)"', source)
    for rule in policies.RULES:
        assert strings.count(rule) >= 2, rule
    asked = re.findall(r'(?:(?:enforce|allows)\([^")]*|rule=)"([a-z_]+:[a-zA-Z_:-]+)"', source)
    assert len(asked) > 30
    assert set(asked) <= set(policies.RULES)


def test_no_call_goes_without_a_rule() -> None:
    without = {
        name
        for route in ROUTES
        for name, rule in (
            [(f"{route.method} {route.template}", route.rule)]
            if not route.actions
            else [(name, one.rule) for name, one in route.actions.items()]
        )
        if rule is None
    }
    assert without == {
        # These ask it themselves: of the caller's own project, whatever the path names.
        "POST /backups/{backup_id}/import_record",
        "POST /os-volume-transfer/{transfer_id}/accept",
        "POST /volume-transfers/{transfer_id}/accept",
        # Everybody may know them.
        "GET /resource_filters",
    }


def test_the_rules_name_calls_that_are_served() -> None:
    shapes = set()
    for route in ROUTES:
        path = re.sub(r"\{[a-z_]+\}", "{}", route.template)
        shapes.add(f"{route.method} {path}")
        shapes |= {f"{route.method} {path} ({name})" for name in route.actions}
    for rule in policies.RULES.values():
        for operation in rule.operations:
            operation = operation.replace("/types/default", "/types/{}")
            assert re.sub(r"\{[a-z_]+\}", "{}", operation) in shapes, (rule.name, operation)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration's folder, looked at in every call."""
    monkeypatch.setattr(enforcer, "LOOK_SECONDS", 0)
    (tmp_path / "backupfw.conf").write_text("[DEFAULT]\n")
    return tmp_path


def policy_of(folder: Path, text: str | None = None, option: str | None = None) -> FilePolicy:
    if text is not None:
        (folder / "policy.yaml").write_text(text)
    conf = cfg.ConfigOpts()
    libraries.register_opts(conf)
    if option is not None:
        (folder / "backupfw.conf").write_text(f"[oslo_policy]\n{option}\n")
    conf(args=[], default_config_files=[str(folder / "backupfw.conf")], default_config_dirs=[])
    return FilePolicy(conf)


def test_the_file_beside_the_configuration_counts(folder: Path) -> None:
    chosen = policy_of(folder, '"backup:create": "role:operator"\n')
    assert chosen.allows(caller("operator"), "backup:create", "blue")
    assert not chosen.allows(caller("member"), "backup:create", "blue")
    assert chosen.allows(caller("member"), "backup:delete", "blue")


def test_the_file_may_be_elsewhere_and_in_parts(folder: Path) -> None:
    (folder / "mine.yaml").write_text('"admin_api": "role:cloud_admin"\n"backup:get": "!"\n')
    (folder / "policy.d").mkdir()
    (folder / "policy.d" / "1.yaml").write_text('"backup:get": "role:special"\n')
    chosen = policy_of(folder, option="policy_file = mine.yaml")
    assert chosen.is_admin(caller("cloud_admin"))
    assert not chosen.is_admin(caller("admin"))
    assert chosen.allows(caller("special"), "backup:get", "blue")
    assert not chosen.allows(caller("reader"), "backup:get", "blue")


def test_a_change_counts_without_a_restart(folder: Path) -> None:
    chosen = policy_of(folder)
    assert chosen.allows(caller("member"), "backup:create", "blue")
    (folder / "policy.yaml").write_text('"backup:create": "!"\n')
    assert not chosen.allows(caller("member"), "backup:create", "blue")
    (folder / "policy.yaml").write_text('"backup:create": "role:member "\n')
    assert chosen.allows(caller("member"), "backup:create", "another")


@pytest.mark.parametrize("name", ["policy.yaml", "policy.d/1.yaml"])
def test_a_file_that_vanished_gives_no_rights_away(
    folder: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (folder / "policy.d").mkdir()
    path = folder / name
    path.write_text('"backup:create": "!"\n')
    chosen = policy_of(folder)
    path.unlink()
    for _ in range(2):
        assert not chosen.allows(caller("member"), "backup:create", "blue")
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1
    assert str(path) in said[0]
    # Again and again, and whatever else comes meanwhile.
    monkeypatch.setattr(enforcer, "TELL_SECONDS", 0)
    (folder / "policy.d" / "2.yaml").write_text('"backup:get": "!"\n')
    for _ in range(2):
        assert not chosen.allows(caller("member"), "backup:create", "blue")
        assert chosen.allows(caller("member"), "backup:get", "blue")
    assert caplog.text.count("its file is gone") == 5
    path.write_text("")
    assert chosen.allows(caller("member"), "backup:create", "blue")
    assert not chosen.allows(caller("member"), "backup:get", "blue")


def test_a_file_that_comes_into_the_state_directory_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the embedded profile: the file's place is known before it is there."""
    monkeypatch.setattr(enforcer, "LOOK_SECONDS", 0)
    state, beside = tmp_path / "state", tmp_path / "etc"
    for folder in (state, beside):
        folder.mkdir()
    file = beside / "own.conf"
    file.write_text("")
    conf = load.load(plug_ins(), state_dir=str(state), config_files=[str(file)]).conf
    chosen = FilePolicy(conf)
    assert chosen.allows(caller("member"), "backup:create", "blue")
    (beside / "policy.yaml").write_text('"backup:create": "role:one"\n')
    assert not chosen.allows(caller("member"), "backup:create", "blue")
    (state / "policy.yaml").write_text('"backup:create": "role:two"\n')
    assert not chosen.allows(caller("one"), "backup:create", "blue")
    assert chosen.allows(caller("two"), "backup:create", "blue")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('"backup:get": "role:a or"\n', "rule 'backup:get': 'role:a or' cannot be understood"),
        ('"backup:get": "rule:missing"\n', "backup:get.* refer to rules that are not there"),
        ('"a": "rule:b"\n"b": "rule:a"\n', "refer to rules that are not there, or to themselves"),
        ("- backup:get\n", "not a mapping of rule names to checks"),
        ('"backup:get": [["role:a"]]\n', "not a mapping of rule names to checks"),
        ('"backup:get": "role:a\n', "policy.yaml: "),
        ("\x00", "policy.yaml: "),
        # What oslo.policy takes for a check, and fails of in every call that asks it.
        ('"backup:get": "project_id:%(project_id)i"\n', "rule 'backup:get': .* cannot be asked"),
        ('"backup:get": "role:%(project_id)d"\n', "rule 'backup:get': .* cannot be asked"),
        ('"backup:get": "role:a or class:x"\n', "rule 'backup:get': .* cannot be asked"),
        ('"ours": "not project_id.x:y"\n', "rule 'ours': .* cannot be asked"),
    ],
)
def test_a_wrong_policy_file_is_refused_and_a_running_policy_stays(
    folder: Path, caplog: pytest.LogCaptureFixture, text: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=r"section \[oslo_policy\], option policy_file: .*" + said):
        policy_of(folder, text)
    # A running service goes on with what it knew.
    chosen = policy_of(folder, '"backup:get": "role:special"\n')
    (folder / "policy.yaml").write_text(text)
    assert chosen.allows(caller("special"), "backup:get", "blue")
    assert "The policy stays as it was" in caplog.text
    (folder / "policy.yaml").write_text("")
    assert not chosen.allows(caller("special"), "backup:get", "blue")


def test_a_file_that_is_named_must_be_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"option policy_file: other.yaml: no such file"):
        policy_of(folder, option="policy_file = other.yaml")


def test_a_folder_that_is_none(folder: Path) -> None:
    (folder / "policy.d").write_text("")
    with pytest.raises(ConfigError, match=r"option policy_file: policy.yaml: .*policy.d"):
        policy_of(folder)


def test_rules_that_nothing_asks_are_reported(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        policy_of(folder, '"backup:gte": "!"\n"ours": "role:x"\n"backup:get": "rule:ours"\n')
    assert "nothing asks: backup:gte" in caplog.text


class _Moody(oslo.Check):
    """Says yes every other time, as a check that asks somebody else may."""

    def __call__(self, *_args: Any) -> bool:
        self.said = not getattr(self, "said", False)
        return self.said


def test_what_others_decide_is_not_remembered(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(oslo._checks.registered_checks, "moody", _Moody)
    chosen = policy_of(folder, '"backup:get": "moody:x"\n')
    assert [chosen.allows(caller("reader"), "backup:get", "blue") for _ in range(4)] == [True, False] * 2


def test_decisions_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enforcer, "MAX_DECISIONS", 8)
    chosen = enforcer.defaults()
    for number in range(50):
        assert chosen.allows(caller("member", project=str(number)), "backup:get", str(number))
    assert len(chosen._loaded._decisions) <= 8


def test_no_call_sees_half_of_a_new_file(folder: Path) -> None:
    texts = ('"backup:create": "role:member"\n', '"backup:create": "role:member "\n"backup:get": "!"\n')
    chosen = policy_of(folder, texts[0])
    wrong: list[str] = []
    done = threading.Event()

    def ask(again: Callable[[], bool]) -> None:
        number = 0
        while again():
            number += 1
            # Another user each time, so that nothing is remembered.
            context = RequestContext("blue", str(number), frozenset({"member"}))
            for rule in ("backup:create", "backup:delete", "volume:get"):
                if not chosen.allows(context, rule, "blue"):
                    wrong.append(rule)

    threads = [threading.Thread(target=ask, args=(lambda: not done.is_set(),)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(20):
            fresh = folder / "new"
            fresh.write_text(texts[number % 2])
            fresh.rename(folder / "policy.yaml")
            chosen.allows(caller("member"), "backup:create", "blue")
    finally:
        done.set()
        for thread in threads:
            thread.join(60)
    assert wrong == []
