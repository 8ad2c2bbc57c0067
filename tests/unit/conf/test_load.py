"""Loading a configuration: profile, files, plug-ins, and what is said of a wrong value."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from backupfw.conf import embedded, keys, load, stores
from backupfw.conf.load import Loaded
from backupfw.errors import ConfigError
from tests.unit.conf.plugins import PLUG_INS

Load = Callable[..., Loaded]

PLAIN = """
[DEFAULT]
state_dir = /srv/state
[database]
connection = postgresql://u:p@db/backupfw
[store:main]
driver = shelf
path = /srv/objects
"""


@pytest.fixture
def from_file(tmp_path: Path) -> Load:
    """Load a configuration from a file's text."""

    def loader(text: str, **more: Any) -> Loaded:
        path = tmp_path / "test.conf"
        path.write_text(text)
        return load.load(PLUG_INS, config_files=[str(path)], **more)

    return loader


def test_embedded_profile_needs_no_file(tmp_path: Path) -> None:
    loaded = load.load(PLUG_INS, state_dir=str(tmp_path))
    conf = loaded.conf
    assert loaded.embedded
    assert loaded.files == ()
    assert conf.database.connection == f"sqlite:///{tmp_path}/backupfw.sqlite"
    assert conf["store:main"].driver == "posix"
    assert conf["store:main"].path == f"{tmp_path}/store"
    assert conf["volumes:local"].volumes_dir == f"{tmp_path}/volumes"
    assert (conf.api.listen, conf.api.port, conf.api.noauth_roles) == ("127.0.0.1", 8776, ["admin"])
    assert (conf.backup.segment_size, conf.backup.block_size) == (256 << 20, 64 << 10)
    assert os.listdir(tmp_path) == [], "loading makes nothing"


def test_a_file_wins_over_the_profile(tmp_path: Path, from_file: Load) -> None:
    loaded = from_file(
        "[api]\nnoauth_roles = reader\n[store:main]\ntries = 2\n[backup]\nsegment_size = 4194304\n",
        state_dir=str(tmp_path),
    )
    assert loaded.embedded
    assert loaded.conf.api.noauth_roles == ["reader"]
    assert loaded.conf["store:main"].tries == 2
    assert loaded.conf["store:main"].path == f"{tmp_path}/store"
    assert loaded.conf.backup.segment_size == 4 << 20


def test_the_command_line_wins_over_a_file(tmp_path: Path, from_file: Load) -> None:
    loaded = from_file("[api]\nport = 1\n", state_dir=str(tmp_path), overrides=[("api", "port", "4242")])
    assert loaded.conf.api.port == 4242
    with pytest.raises(ConfigError, match=r"section \[api\], option port"):
        from_file("", state_dir=str(tmp_path), overrides=[("api", "port", "70000")])


def test_the_state_directorys_own_file_is_read(tmp_path: Path, from_file: Load) -> None:
    (tmp_path / embedded.CONFIG_FILE).write_text("[api]\nport = 7\n")
    assert load.load(PLUG_INS, state_dir=str(tmp_path)).conf.api.port == 7
    assert from_file("", state_dir=str(tmp_path)).conf.api.port == 8776, "a file that is given replaces it"


def test_embedded_there_are_no_quotas_unless_set(tmp_path: Path) -> None:
    (tmp_path / embedded.CONFIG_FILE).write_text("[quota]\nvolumes = 7\n")
    limits = load.load(PLUG_INS, state_dir=str(tmp_path)).conf.quota
    assert {name: limits[name] for name in limits} == {
        "backups": -1, "backup_gigabytes": -1, "volumes": 7, "gigabytes": -1, "snapshots": -1,
        "backup_policies": -1,
    }  # fmt: skip


def test_a_file_alone_is_no_embedded_profile(from_file: Load) -> None:
    loaded = from_file(PLAIN)
    assert not loaded.embedded
    assert loaded.conf.state_dir == "/srv/state"
    assert loaded.conf.api.noauth_roles == ["member"]


def test_the_systems_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = tmp_path / "backupfw.conf"
    monkeypatch.setattr(load, "SYSTEM_CONFIG", str(usual))
    monkeypatch.setattr(embedded, "default_state_dir", lambda: str(tmp_path / "state"))
    assert load.load(PLUG_INS).conf.state_dir == str(tmp_path / "state")
    usual.write_text(PLAIN)
    loaded = load.load(PLUG_INS)
    assert loaded.files == (str(usual),)
    assert not loaded.embedded


def test_two_configurations_do_not_mix(tmp_path: Path, from_file: Load) -> None:
    one = load.load(PLUG_INS, state_dir=str(tmp_path / "one")).conf
    other = from_file("[backup]\nstreams = 7\n", state_dir=str(tmp_path / "other")).conf
    assert (one.backup.streams, other.backup.streams) == (2, 7)


def test_each_enabled_store_has_the_options_of_its_driver(tmp_path: Path, from_file: Load) -> None:
    conf = from_file(
        "[DEFAULT]\nenabled_stores = main, offsite\ndefault_store = offsite\n"
        "[store:offsite]\ndriver = shelf\npath = /mnt/x\nboards = 2\n[store:later]\nanything = 1\n",
        state_dir=str(tmp_path),
    ).conf
    assert conf["store:offsite"].boards == 2
    assert conf["store:main"].boards == 3


RULES = """
[DEFAULT]
enabled_stores = main, offsite
placement_rules = gold, far
[store:offsite]
driver = shelf
path = /mnt/x
container = far-away
[placement:gold]
store = offsite
container = vault
projects = p1, p2
volume_types = gold
[placement:far]
store = offsite
availability_zones = az2
[placement:later]
anything = 1
"""


def test_each_placement_rule_has_its_section(tmp_path: Path, from_file: Load) -> None:
    loaded = from_file(RULES, state_dir=str(tmp_path))
    assert loaded.conf.placement_rules == ["gold", "far"]
    gold = loaded.conf["placement:gold"]
    assert (gold.store, gold.container) == ("offsite", "vault")
    assert (gold.projects, gold.availability_zones, gold.volume_types) == (["p1", "p2"], [], ["gold"])
    assert stores.default_container(loaded.conf, "offsite") == "far-away"
    assert stores.default_container(loaded.conf, "main") == "volumebackups"
    assert loaded.unused_sections == ("placement:later",)


WRONG_RULES = {
    "no section": ("_rules = gold, far", "_rules = gone", "placement:gone", "store"),
    "a rule twice": (
        "placement_rules = gold, far",
        "placement_rules = far, far",
        "DEFAULT",
        "placement_rules",
    ),
    "a rule's name": ("_rules = gold, far", "_rules = a/b", "DEFAULT", "placement_rules"),
    "no such store": ("store = offsite\ncontainer = vault", "store = tape", "placement:gold", "store"),
    "a container that is a path": ("= vault", "= a/b", "placement:gold", "container"),
    "a container the store cannot have": ("= vault", "= Vault", "placement:gold", "container"),
    "a copy in no store": ("= vault", "= vault\ncopies = tape", "placement:gold", "copies"),
    "a copy beside the backup": ("= vault", "= vault\ncopies = main, offsite", "placement:gold", "copies"),
    "a copy twice": ("= vault", "= vault\ncopies = main, main", "placement:gold", "copies"),
    "what fits everything": ("availability_zones = az2", "projects =", "placement:far", "projects"),
    "a misspelt criterion": ("volume_types = gold", "volume_type = gold", "placement:gold", "volume_type"),
    "a store's container": ("= far-away", "= Far", "store:offsite", "container"),
}


@pytest.mark.parametrize(("old", "new", "section", "option"), WRONG_RULES.values(), ids=WRONG_RULES.keys())
def test_a_wrong_rule_is_reported(
    tmp_path: Path, from_file: Load, old: str, new: str, section: str, option: str
) -> None:
    assert RULES.count(old) == 1
    with pytest.raises(ConfigError) as caught:
        from_file(RULES.replace(old, new), state_dir=str(tmp_path))
    assert f"section [{section}], option {option}" in str(caught.value)


def test_another_driver_for_main_gets_none_of_the_profiles_values(tmp_path: Path, from_file: Load) -> None:
    with pytest.raises(ConfigError, match=r"every such section has: tries"):
        from_file("[store:main]\ndriver = greedy\n", state_dir=str(tmp_path))


def test_unused_sections_are_reported(tmp_path: Path, from_file: Load) -> None:
    assert from_file("[backups]\nstreams = 3\n", state_dir=str(tmp_path)).unused_sections == ("backups",)


WRONG = {
    "a bound": ("[api]\nport = 99999", "[api]", "port", "0 to 65535"),
    "a choice": ("[api]\nauth_strategy = trust", "[api]", "auth_strategy", "one of noauth"),
    "an item of a list": ("[api]\nnoauth_roles = king", "[api]", "noauth_roles", "reader, member, admin"),
    "a size": ("[backup]\npack_size = many", "[backup]", "pack_size", "64 KiB to 128 MiB"),
    "a power of two": ("[backup]\nblock_size = 65537", "[backup]", "block_size", "power of two"),
    "a type": ("[DEFAULT]\ndebug = perhaps", "[DEFAULT]", "debug", "boolean"),
    "a driver's bound": ("[store:main]\nboards = 10", "[store:main]", "boards", "1 to 9"),
    "a layer's bound": ("[store:main]\ntries = 0", "[store:main]", "tries", "at least 1"),
    "a provider's bound": ("[volumes:local]\nwait = 0", "[volumes:local]", "wait", "at least 0.5"),
    "its bound in an old file": (
        "[volumes]\nwait = 0",
        "[volumes:local]",
        "wait",
        "section [volumes], option wait",
    ),
    "no such driver": ("[store:main]\ndriver = tape", "[store:main]", "driver", "installed: posix"),
    "no such provider": ("[volumes:local]\ndriver = san", "[volumes:local]", "driver", "installed: local"),
    "none in an old file": ("[volumes]\nprovider = san", "[volumes:local]", "driver", "installed: local"),
    "a back end without a driver": (
        "[volumes]\nenabled = local, fast",
        "[volumes:fast]",
        "driver",
        "[volumes] enabled",
    ),
    "a back end twice": ("[volumes]\nenabled = local, local", "[volumes]", "enabled", "named twice"),
    "a back end in another case": (
        "[volumes]\nenabled = fast, Fast\n[volumes:fast]\ndriver = local",
        "[volumes]",
        "enabled",
        "'fast' and 'Fast' differ only in case",
    ),
    "no back end": ("[volumes]\nenabled =", "[volumes]", "enabled", "at least one"),
    "a back end's bad name": ("[volumes]\nenabled = a@b", "[volumes]", "enabled", "like"),
    "a default that is not enabled": ("[volumes]\ndefault = fast", "[volumes]", "default", "one of local"),
    "an option of local's elsewhere": (
        "[volumes]\nenabled = fast\nwait = 1\n[volumes:fast]\ndriver = local",
        "[volumes]",
        "wait",
        "no such option",
    ),
    "a misspelt option": ("[backup]\nsegmnt_size = 1", "[backup]", "segmnt_size", "segment_size"),
    "a misspelt driver option": ("[store:main]\nboard = 1", "[store:main]", "board", "boards"),
    "no driver": ("[DEFAULT]\nenabled_stores = main,b", "[store:b]", "driver", "needs a value"),
    "no such default store": ("[DEFAULT]\ndefault_store = b", "[DEFAULT]", "default_store", "one of main"),
    "no store at all": ("[DEFAULT]\nenabled_stores =", "[DEFAULT]", "enabled_stores", "at least one"),
    "a store twice": ("[DEFAULT]\nenabled_stores = main,main", "[DEFAULT]", "enabled_stores", "twice"),
    "a store in another case": (
        "[DEFAULT]\nenabled_stores = main,Main",
        "[DEFAULT]",
        "enabled_stores",
        "'main' and 'Main' differ only in case",
    ),
    "a store's name": ("[DEFAULT]\nenabled_stores = a/b", "[DEFAULT]", "enabled_stores", "A-Za-z0-9"),
    "sizes that do not fit": (
        "[backup]\nsegment_size = 4096 MiB\nblock_size = 4 KiB",
        "[backup]",
        "segment_size",
        "",
    ),
    "a container": ("[backup]\ncontainer = ..", "[backup]", "container", "path"),
    "a container no store can have": ("[backup]\ncontainer = UPPER", "[store:main]", "container", "match"),
    "no URL": (
        "[api]\npublic_endpoint = here",
        "[api]",
        "public_endpoint",
        "missing; allowed: a URL with http",
    ),
    "another kind of URL": ("[api]\npublic_endpoint = ftp://h", "[api]", "public_endpoint", "http or https"),
    "no whole number": (
        "[backup]\nworkers = 1.5",
        "[backup]",
        "workers",
        ": '1.5' is not a whole number; allowed: ",
    ),
    "no number": (
        "[backup]\npoll_seconds = 1s",
        "[backup]",
        "poll_seconds",
        ": '1s' is not a number; allowed: ",
    ),
    "an empty connection": ("[database]\nconnection =", "[database]", "connection", "URL"),
}


@pytest.mark.parametrize(("text", "section", "option", "allowed"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_value_says_where_and_what_is_allowed(
    tmp_path: Path, from_file: Load, text: str, section: str, option: str, allowed: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file(text + "\n", state_dir=str(tmp_path))
    message = str(caught.value)
    assert f"section {section}, option {option}" in message
    assert allowed in message
    assert "\n" not in message


def test_a_required_option_is_missed(from_file: Load) -> None:
    with pytest.raises(ConfigError, match=r"section \[store:main\], option path: needs a value"):
        from_file(PLAIN.replace("path = /srv/objects", ""))


def test_a_database_is_missed(from_file: Load) -> None:
    with pytest.raises(ConfigError, match=r"\[database\], option connection: needs a value; .*--state-dir"):
        from_file(PLAIN.replace("connection = postgresql://u:p@db/backupfw", ""))


def test_a_secret_is_not_shown(tmp_path: Path, from_file: Load) -> None:
    with pytest.raises(ConfigError) as caught:
        from_file("[store:main]\npassword = hunter2\n", state_dir=str(tmp_path))
    assert "password" in str(caught.value)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("text", ["[api\n", "port = 1\n", "[api]\nport\n"])
def test_a_file_that_is_no_configuration(tmp_path: Path, from_file: Load, text: str) -> None:
    with pytest.raises(ConfigError, match=r"test\.conf"):
        from_file(text, state_dir=str(tmp_path))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing-here"):
        load.load(PLUG_INS, config_files=[str(tmp_path / "nothing-here.conf")])


@pytest.mark.parametrize("name", ["a$b", "a?b", "a#b", "a\nb", "a%20b"])
def test_a_state_directory_that_no_value_can_hold(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="state directory"):
        load.load(PLUG_INS, state_dir=str(tmp_path / name))


def test_the_state_directory_depends_on_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert embedded.default_state_dir() == "/var/lib/backupfw"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/.state")
    assert embedded.default_state_dir() == "/home/u/.state/backupfw"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert embedded.default_state_dir() == "/home/u/.local/state/backupfw"


def test_the_state_directorys_own_policy_counts(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    # It may come later.
    assert load.load(PLUG_INS, state_dir=str(tmp_path)).conf.oslo_policy.policy_file == str(path)
    (tmp_path / "backupfw.conf").write_text("[oslo_policy]\npolicy_file = mine.yaml\n")
    assert load.load(PLUG_INS, state_dir=str(tmp_path)).conf.oslo_policy.policy_file == "mine.yaml"


def test_one_enabled_store_is_the_default_store(tmp_path: Path) -> None:
    path = tmp_path / "backupfw.conf"
    path.write_text("[DEFAULT]\nenabled_stores = attic\n[store:attic]\ndriver = shelf\npath = /srv/attic\n")
    assert (
        load.load(PLUG_INS, config_files=[str(path)], state_dir=str(tmp_path)).conf.default_store == "attic"
    )


def test_the_files_of_a_served_state_directory_are_remembered(tmp_path: Path) -> None:
    """Wherever the directory is moved to, as far as they lie in it; what is named by hand comes first."""
    state, moved = tmp_path / "state", tmp_path / "moved"
    state.mkdir()
    own, other = state / "mine.conf", tmp_path / "other.conf"
    own.write_text("[DEFAULT]\nhost = mine\n")
    other.write_text("[DEFAULT]\nhost = other\n")
    embedded.remember(str(state), [str(own)], True)
    assert (state / embedded.SERVED_FILE).stat().st_mode & 0o077 == 0
    state.rename(moved)
    loaded = load.load(PLUG_INS, state_dir=str(moved))
    assert (loaded.conf.host, loaded.embedded) == ("mine", True)
    assert load.load(PLUG_INS, state_dir=str(moved), config_files=[str(other)]).conf.host == "other"
    assert load.load(PLUG_INS, state_dir=str(moved), remembered=False).files == ()
    embedded.remember(str(moved), [str(other)], True)
    assert load.load(PLUG_INS, state_dir=str(moved)).conf.host == "other"
    embedded.remember(str(moved), [], True)
    assert load.load(PLUG_INS, state_dir=str(moved)).files == ()
    (moved / embedded.SERVED_FILE).write_text("{}")
    with pytest.raises(ConfigError, match="remove it"):
        load.load(PLUG_INS, state_dir=str(moved))


def test_the_key_store_is_optional_but_for_the_embedded_profile(tmp_path: Path, from_file: Load) -> None:
    conf = load.load(PLUG_INS, state_dir=str(tmp_path)).conf
    assert (conf["keys"].driver, conf["keys"].directory) == ("file", f"{tmp_path}/keys")
    assert keys.is_set_up(conf)
    conf = from_file(PLAIN).conf
    assert not keys.is_set_up(conf)
    conf = from_file(f"{PLAIN}[keys]\ndriver = file\ndirectory = /srv/keys\n").conf
    assert keys.is_set_up(conf)
    assert conf["keys"].directory == "/srv/keys"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("driver = file", "section [keys], option directory: needs a value"),
        ("driver = attic", "section [keys], option driver: there is no key store 'attic'; installed: file"),
        ("driver = file\ndirectory = /k\ndirectry = /k", "section [keys], option directry: no such option"),
        ("directory = /k", "section [keys], option driver: needs a value"),
    ],
)
def test_what_is_said_of_a_wrong_key_store(from_file: Load, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(problem)):
        from_file(f"{PLAIN}[keys]\n{text}\n")
