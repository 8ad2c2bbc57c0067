"""How lists and records are printed, and commands that other distributions bring."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from sqlalchemy import select

from backupfw.cmd import backup, base, database, main
from backupfw.db import models
from tests.files import files_below
from tests.unit.cmd.conftest import Run, load_conf

COMMANDS = {name: point.load() for name, point in sorted(main.App().command_manager)}
#: The commands that neither list nor show anything: they print an id, a sentence or a text for one use.
PLAIN = {
    *("api", "serve", "worker", "help", "complete", "lifecycle", "quota set"),
    *("backup cancel", "backup copy", "backup create", "backup delete", "backup import", "backup repair"),
    *("backup restore", "cinder convert", "cinder export"),
    *("keys destroy", "keys rewrap", "keys rotate", "snapshot create", "snapshot delete"),
    *(f"policy {verb}" for verb in ("create", "delete", "pause", "resume", "run", "set")),
    *("volume adopt", "volume attach", "volume create", "volume delete", "volume detach", "volume extend"),
    *("task drop", "volume forget", "volume set"),
}
#: What a list must be given.
ARGUMENTS = {
    "backup verify": ["--older-than", "1"],
    "restore-test": ["--older-than", "1"],
    "cinder scan": ["--store", "main"],
    "db purge": ["--before", "2026-01-31"],
    "quota show": ["demo"],
    "volume check": ["local"],
}
#: They need more than an empty service; their own tests read their records.
NOT_HERE = (
    "catalogue rebuild",
    "policy preview",
    "policy runs",
    "store check",
    "store undelete",
    "volume adoptable",
)
LISTS = [
    (*name.split(), *ARGUMENTS.get(name, ()))
    for name, command in COMMANDS.items()
    # What a check says of free space is another thing each time, and the back end 'local' does not list what
    # can be adopted; they have tests of their own.
    if issubclass(command, base.Lister) and name not in NOT_HERE
]


def test_whatever_lists_or_shows_has_formats() -> None:
    formatted = {
        name for name, command in COMMANDS.items() if issubclass(command, base.Lister | base.ShowOne)
    }
    assert formatted == COMMANDS.keys() - PLAIN


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_that_there_is_not_is_wrong_usage(run: Run, name: str) -> None:
    done = run(*name.split(), "--no-such-option", at_state=False)
    assert (done.status, done.out) == (2, "")
    assert "error: " in done.err


@pytest.mark.parametrize("words", LISTS, ids=" ".join)
def test_every_list_comes_as_records_as_rows_and_as_text(run: Run, words: tuple[str, ...]) -> None:
    assert run("db", "sync").status == 0
    done = {name: run(*words, "--format", name) for name in ("json", "csv", "text")}
    assert {name: (one.status, one.err) for name, one in done.items()} == dict.fromkeys(done, (0, ""))
    assert len(json.loads(done["json"].out)) == len(list(csv.DictReader(io.StringIO(done["csv"].out))))


@pytest.mark.parametrize("words", [("store", "list"), ("quota", "show", "demo")], ids=" ".join)
def test_a_list_comes_in_every_format(run: Run, words: tuple[str, ...]) -> None:
    """What is made of records and rows is the same for every list."""
    assert run("db", "sync").status == 0
    done = {name: run(*words, "-f", name) for name in ("json", "yaml", "csv", "table", "value", "text")}
    assert {name: (one.status, one.err) for name, one in done.items()} == dict.fromkeys(done, (0, ""))
    records = json.loads(done["json"].out)
    assert records
    assert yaml.safe_load(done["yaml"].out) == records
    assert len(list(csv.DictReader(io.StringIO(done["csv"].out)))) == len(records)
    assert len(done["value"].out.splitlines()) == len(records)
    assert run(*words, "-f", "xml").status == 2


def test_a_list_of_backups(run: Run, backup_id: str) -> None:
    (one,) = json.loads(run("backup", "list", "-f", "json").out)
    assert tuple(one) == backup.List.columns
    assert one == json.loads(run("backup", "list", "--json").out)
    assert (one["id"], one["damaged_objects"], one["verified_at"]) == (backup_id, 0, None)
    # A column alone, for a loop of a shell.
    assert run("backup", "list", "-f", "value", "-c", "id").out == f"{backup_id}\n"
    assert run("backup", "list", "-c", "id", "-c", "Volume ID").out.splitlines() == [
        f"{'id':<36}  volume_id",
        f"{backup_id}  {one['volume_id']}",
    ]
    header, row = run("backup", "list", "-f", "csv", "-c", "id", "-c", "status").out.splitlines()
    assert (header, row) == ('"id","status"', f'"{backup_id}","available"')
    table = run("backup", "list", "-f", "table", "-c", "status").out
    assert [line.strip("| ") for line in table.splitlines()[1::2]] == ["status", "available"]


def test_a_name_does_not_command_the_terminal(run: Run, state: Path, backup_id: str) -> None:
    """Earlier releases took such names, and manifests may hold them."""
    name = "a\x1b[2J\x9bb"
    with database.opened(load_conf(state)) as db, db.write() as session:
        session.get_one(models.Backup, backup_id).display_name = name
        session.scalars(select(models.Volume)).one().display_name = name
    for words in (("backup", "list", "-f", "table"), ("backup", "list", "-c", "name"), ("volume", "list")):
        out = run(*words).out
        assert r"a\x1b[2J\x9bb" in out
        assert not set(out) & {"\x1b", "\x9b"}, words
    for words in (("backup", "list"), ("backup", "show", backup_id)):
        (one,) = [json.loads(run(*words, "-f", "json").out)]
        found = (one[0] if isinstance(one, list) else one)["name"]
        assert found == name


@pytest.mark.parametrize("noun", ["backup", "store"])
def test_a_terminal_gets_a_table_and_a_script_the_text_that_it_reads(
    run: Run, backup_id: str, monkeypatch: pytest.MonkeyPatch, noun: str
) -> None:
    text = run(noun, "list").out
    assert text == run(noun, "list", "-f", "text").out
    assert (f"{backup_id} of volume " if noun == "backup" else "posix   backupfw-posix") in text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = run(noun, "list").out
    assert table.startswith("+--")
    if noun == "backup":
        columns = [word.strip() for word in table.splitlines()[1].strip("|").split("|")]
        assert columns == list(backup.List.short)
        # Two ids and a project do not fit beside each other on a terminal.
        assert max(map(len, table.splitlines())) <= 120
        assert "verified_result" in run(noun, "list", "--long").out
        assert "verified_result" in run(noun, "list", "-f", "csv").out
    assert run(noun, "list", "-f", "text").out == text
    # A report stays one.
    assert run("audit").out == "nothing wrong\n"


@pytest.mark.usefixtures("few_objects")
def test_checks_are_records_and_the_status_says_whether_all_hold(run: Run, state: Path) -> None:
    state.mkdir()
    conf = state / "backupfw.conf"
    conf.write_text("[DEFAULT]\nenabled_stores = main\n[store:main]\ndriver = memory\n")
    found = json.loads(run("store", "check", "main", "-f", "json").out)
    assert {
        "guarantee": "G3",
        "title": "deleting a missing object succeeds",
        "result": "ok",
        "detail": "",
    } in found
    assert found[-1] == {"guarantee": "all", "title": "store main", "result": "ok", "detail": ""}
    assert run("config", "check", "-f", "value", "-c", "check", "-c", "subject").out.splitlines() == [
        f"configuration {conf}",
        "store main driver memory",
        "volume back end local driver local",
        "key store driver file",
    ]
    assert run("db", "sync").status == 0
    checks = json.loads(run("config", "check", "--connect", "-f", "json").out)
    assert list(dict.fromkeys(one["check"] for one in checks)) == [
        "configuration",
        "store main",
        "volume back end local",
        "key store",
        "database",
    ]
    ends = [one for one in checks if one["subject"].startswith("all")]
    assert ends == [
        {"check": "store main", "subject": "all store main", "result": "ok", "detail": ""},
        {"check": "volume back end local", "subject": "all", "result": "ok", "detail": ""},
        {"check": "key store", "subject": "all", "result": "ok", "detail": ""},
    ]
    conf.write_text(
        "[DEFAULT]\nenabled_stores = far\ndefault_store = far\n[store:far]\ndriver = s3\nretry_tries = 1\n"
        "endpoint = http://127.0.0.1:9\nregion = r\naccess_key_id = a\nsecret_access_key = b\n"
    )
    for words in (("store", "check", "far"), ("config", "check", "--connect")):
        done = run(*words, "-f", "json")
        assert done.status == 1
        results = [one["result"] for one in json.loads(done.out)]
        assert "failed" in results


def test_the_databases_version_and_a_purge_have_formats(run: Run) -> None:
    version = json.loads(run("db", "sync", "-f", "json").out)["version"]
    assert run("db", "sync").out == run("db", "version").out == f"{version}\n"
    assert json.loads(run("db", "version", "-f", "json").out) == {"version": version}
    assert json.loads(run("db", "check", "-f", "json").out) == [{"result": "ok", "version": version}]
    purged = json.loads(run("db", "purge", "--before", "2026-01-31", "-f", "json").out)
    assert {"resource": "backups", "rows": 0} in purged


def test_a_volumes_path_has_formats(run: Run) -> None:
    volume = run("volume", "create", "--size", "1").out.strip()
    path = run("volume", "path", volume).out.strip()
    assert Path(path).stat().st_size == 1 << 30
    assert json.loads(run("volume", "path", volume, "-f", "json").out) == {"path": path}


def test_a_record_of_a_backup(run: Run, backup_id: str) -> None:
    shown = json.loads(run("backup", "show", backup_id).out)
    assert list(shown) == sorted(shown)
    # By the same words as a volume's record and the lists, and the API.
    assert {"name", "description"} <= shown.keys()
    assert not {"display_name", "display_description", "deleted"} & shown.keys()
    assert yaml.safe_load(run("backup", "show", backup_id, "-f", "yaml").out) == shown
    (row,) = csv.DictReader(io.StringIO(run("backup", "show", backup_id, "-f", "csv").out))
    assert row["id"] == backup_id
    # What has parts is JSON in a cell.
    assert json.loads(row["holdings"]) == shown["holdings"]
    assert run("backup", "show", backup_id, "-f", "value", "-c", "status").out == "available\n"
    assert f"| {backup_id}" in run("backup", "show", backup_id, "-f", "table").out


@pytest.mark.parametrize("option", ["--column", "--sort-column"])
def test_a_column_that_there_is_not_is_wrong_usage(run: Run, option: str) -> None:
    assert run("db", "sync").status == 0
    done = run("backup", "list", option, "id", option, "colour")
    assert (done.status, done.out) == (2, "")
    assert "there is no column 'colour'; columns: id, name, project_id" in done.err


def test_findings_are_records_and_the_status_says_that_there_are_some(
    run: Run, state: Path, backup_id: str
) -> None:
    for file in files_below(state / "store", "p0*"):
        file.unlink()
    done = run("audit", "-f", "json")
    assert done.status == 1
    assert {one["check"] for one in json.loads(done.out)} == {"store"}
    assert json.loads(done.out) == json.loads(run("audit", "--json").out)["findings"]


@pytest.mark.parametrize("words", [("backup",), ("backup", "--format", "json"), ("backup", "lst")])
def test_a_command_of_a_group_is_needed(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, at_state=False)
    assert (done.status, done.out) == (2, "")
    assert "'backup' needs one of: " in done.err
    assert {"list,", "show,", "verify"} <= set(done.err.split())


@pytest.mark.parametrize("words", [("backup", "--help"), ("backup", "-h"), ("help", "backup")])
def test_the_commands_of_a_group_are_listed(run: Run, words: tuple[str, ...]) -> None:
    done = run(*words, at_state=False)
    assert (done.status, done.err) == (0, "")
    assert "\n    backup verify " in done.out
    assert "\n    volume" not in done.out


def test_help_on_a_command(run: Run) -> None:
    done = run("help", "backup", "list", at_state=False)
    assert (done.status, done.out) == (0, run("backup", "list", "--help", at_state=False).out)
    assert "--damaged" in done.out
    assert "--state-dir" in done.out


@pytest.mark.parametrize("word", ["backups", "bakcup list", "verison"])
def test_a_misspelt_command_is_wrong_usage(run: Run, word: str) -> None:
    done = run(*word.split(), at_state=False)
    assert (done.status, done.out) == (2, "")
    assert f"there is no command '{word}'" in done.err


def test_words_are_not_abbreviated(run: Run) -> None:
    """What cliff would take for a command may become another one's beginning."""
    assert run("back", "list", at_state=False).status == 2
    assert run("backup", "list", "--dam").status == 2


def test_a_command_leaves_logging_to_the_configuration(run: Run) -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    assert run("db", "sync").status == 0
    assert (root.level, root.handlers) == before


#: A command of a distribution of somebody else's, one that is broken, and one that has our own's name.
PLUG_IN = """
from cliff.command import Command
from backupfw.cmd import base

class Eject(base.Command):
    "Take a tape out."
    def take_action(self, parsed_args):
        print("tape is out")
        return 3

class Bare(Command):
    "Made with cliff alone."
    def take_action(self, parsed_args):
        raise RuntimeError("no tape")
"""
POINTS = """
[backupfw.command]
tape_eject = tape:Eject
tape_bare = tape:Bare
tape_broken = tape:Nothing
lifecycle = tape:Eject
"""


@pytest.fixture
def plugged(tmp_path: Path) -> dict[str, str]:
    """The environment of a process that finds such a distribution."""
    (tmp_path / "tape.py").write_text(PLUG_IN)
    (tmp_path / "tape-1.dist-info").mkdir()
    (tmp_path / "tape-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tape\nVersion: 1\n")
    (tmp_path / "tape-1.dist-info" / "entry_points.txt").write_text(POINTS)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def test_a_distribution_brings_commands_and_takes_none_away(plugged: dict[str, str]) -> None:
    def command(*words: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [sys.executable, "-m", "backupfw.cmd.main", *words], env=plugged, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr

    assert command("tape", "eject") == (3, "tape is out\n", "")
    status, _out, err = command("tape", "bare")
    assert (status, err) == (1, "backupfw: internal error: RuntimeError: no tape (--debug shows where)\n")
    status, _out, err = command("tape", "broken")
    assert (status, len(err.splitlines())) == (1, 1)
    status, out, _err = command("--help")
    assert status == 0
    assert "tape eject        Take a tape out." in out
    assert "tape broken       cannot be loaded:" in out
    assert command("lifecycle")[1].count("stateDiagram-v2") == 4
