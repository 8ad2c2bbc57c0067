"""The sample policy is what the rules say today, and oslo.policy's tools work on them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import yaml

from backupfw.api import policies
from tests.architecture.checkout import ROOT

SAMPLE = ROOT / "etc" / "backupfw" / "policy.yaml.sample"


def tool(name: str, *arguments: str | Path, status: int = 0) -> str:
    done = subprocess.run(
        [Path(sys.executable).with_name(f"oslopolicy-{name}"), *arguments],
        capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout


def configured(folder: Path, text: str) -> Path:
    """Write a configuration with a policy; returns its file."""
    (folder / "policy.yaml").write_text(text)
    (folder / "backupfw.conf").write_text(f"[oslo_policy]\npolicy_file = {folder / 'policy.yaml'}\n")
    return folder / "backupfw.conf"


def test_the_sample_is_up_to_date(tmp_path: Path) -> None:
    made = tmp_path / "made"
    tool("sample-generator", "--namespace", "backupfw", "--output-file", made)
    assert SAMPLE.read_text() == made.read_text(), "run 'make genpolicy'"
    # Everything in it is a comment: as a policy file it changes nothing.
    assert yaml.safe_load(SAMPLE.read_text()) is None
    for rule in policies.RULES:
        assert f'#"{rule}": ' in SAMPLE.read_text()


def test_the_generator_shows_what_is_in_force(tmp_path: Path) -> None:
    config = configured(tmp_path, '"backup:create": "role:operator"\n')
    shown = tool("policy-generator", "--namespace", "backupfw", "--config-file", config)
    effective = yaml.safe_load(shown.replace('#"', '"')) or {}
    assert effective["backup:create"] == "role:operator"
    assert effective["backup:get"] == policies.RULES["backup:get"].level.value


def test_redundant_rules_are_listed(tmp_path: Path) -> None:
    default = policies.RULES["backup:get"].level.value
    config = configured(tmp_path, f'"backup:get": "{default}"\n"backup:create": "role:operator"\n')
    shown = tool("list-redundant", "--namespace", "backupfw", "--config-file", config)
    assert [line.split(":")[1].strip('" ') for line in shown.splitlines()] == ["get"]


def test_the_validator_finds_what_is_wrong(tmp_path: Path) -> None:
    good = configured(tmp_path, '"backup:create": "role:operator"\n')
    tool("validator", "--namespace", "backupfw", "--config-file", good)
    bad = configured(tmp_path, '"backup:gte": "role:operator"\n')
    said = tool("validator", "--namespace", "backupfw", "--config-file", bad, status=1)
    assert "backup:gte" in said


def test_the_checker_answers_for_a_token(tmp_path: Path) -> None:
    effective = tmp_path / "effective.yaml"
    config = configured(tmp_path, "")
    shown = tool("policy-generator", "--namespace", "backupfw", "--config-file", config)
    effective.write_text(shown.replace('#"', '"'))
    token = {"user": {"id": "u"}, "project": {"id": "p"}, "roles": [{"name": "reader"}]}
    (tmp_path / "access.json").write_text(json.dumps({"token": token}))
    arguments = ("--policy", effective, "--access", tmp_path / "access.json", "--rule")
    assert "passed: backup:get" in tool("checker", *arguments, "backup:get")
    assert "failed: backup:create" in tool("checker", *arguments, "backup:create")
