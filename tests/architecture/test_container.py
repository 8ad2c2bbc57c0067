"""The container recipes: what they name is there, and what they promise holds; no container is built."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from backupfw.cmd import configure
from backupfw.cmd.main import parse
from tests.architecture.checkout import ROOT, driver_projects, lines

CONFIGURATION = "/etc/backupfw/backupfw.conf"


def instructions() -> list[tuple[str, str]]:
    """The Containerfile's instructions with what they are given."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Containerfile").read_text(), flags=re.MULTILINE)
    found = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        word, _space, given = line.strip().partition(" ")
        if word:
            found.append((word, given.strip()))
    return found


def stages() -> list[dict[str, str]]:
    """Per stage the last value of each instruction."""
    found: list[dict[str, str]] = []
    for word, given in instructions():
        if word == "FROM":
            found.append({})
        found[-1][word] = given
    return found


def compose() -> dict[str, Any]:
    """The compose file; YAML resolves what services have in common."""
    found = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert isinstance(found, dict)
    return found


def own_services() -> dict[str, Any]:
    """The services that run our image."""
    return {name: one for name, one in compose()["services"].items() if one["image"] == "backupfw"}


def has_host(image: str) -> bool:
    """Whether an image's name begins with a registry's host."""
    first, slash, _rest = image.partition("/")
    return bool(slash) and (any(mark in first for mark in ".:") or first == "localhost")


def test_the_image_is_not_root_and_starts_a_command_that_is_there() -> None:
    last = stages()[-1]
    user, _colon, group = last["USER"].partition(":")
    assert int(user) > 0
    assert int(group) > 0
    assert f"--uid {user} " in last["RUN"]
    assert f"--gid {group} " in last["RUN"]
    init, dashes, command = json.loads(last["ENTRYPOINT"])
    assert (dashes, command) == ("--", "backupfw")
    assert f"install -y --no-install-recommends {init}" in last["RUN"]
    parse(json.loads(last["CMD"]))


def test_the_image_has_core_and_every_driver() -> None:
    run = stages()[0]["RUN"]
    assert all(f" drivers/{folder}" in run for folder in driver_projects())
    assert "-c constraints.txt" in run
    (extras,) = re.findall(r"\.\[([a-z,]+)\]", run)
    assert set(extras.split(",")) == {"keystone", "messaging", "mysql", "postgresql"}


def test_the_images_health_is_asked_where_it_listens() -> None:
    last = stages()[-1]
    assert f":{last['EXPOSE']}/healthcheck" in last["HEALTHCHECK"]


def test_no_image_names_a_registry() -> None:
    images = [given.split()[0] for word, given in instructions() if word == "FROM"]
    images += [service["image"] for service in compose()["services"].values()]
    assert len(images) >= 6
    assert [image for image in images if has_host(image)] == []


def test_what_the_image_is_made_of_is_not_left_out() -> None:
    left_out = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv*", ".servers"} <= left_out
    assert left_out.isdisjoint({"backupfw", "drivers", "etc", "setup.cfg", "constraints.txt", "README.md"})


def test_what_git_ignores_stays_out_of_the_build() -> None:
    left_out = [line.removeprefix("**/") for line in lines((ROOT / ".dockerignore").read_text())]
    ignored = [line.strip("/") for line in lines((ROOT / ".gitignore").read_text())]
    assert [name for name in ignored if not any(fnmatch(name, one) for one in left_out)] == []


def test_the_composed_commands_parse_and_depend_on_what_is_there() -> None:
    everything = compose()["services"]
    assert set(own_services()) == {"api", "sync", "worker"}
    for service in own_services().values():
        arguments = parse(service["command"])
        assert arguments.config_file == [CONFIGURATION]
        for name, wanted in service["depends_on"].items():
            if wanted["condition"] == "service_healthy":
                assert everything[name]["healthcheck"]["test"], name
            assert name in everything


def test_what_is_mounted_is_there() -> None:
    found = compose()
    for service in found["services"].values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert (ROOT / source).is_file() if source.startswith("./") else source in found["volumes"], mount


def test_only_this_host_reaches_it() -> None:
    for service in compose()["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


@pytest.mark.parametrize("name", ["api", "sync", "worker"])
def test_the_composed_configuration_loads_and_fits(name: str) -> None:
    arguments = parse(own_services()[name]["command"])
    arguments.config_file = [str(ROOT / "etc" / "container" / "backupfw.conf")]
    loaded = configure.load(arguments)
    assert loaded.unused_sections == ()
    conf = loaded.conf
    services = compose()["services"]
    assert conf.api.listen == "0.0.0.0"
    assert services["api"]["ports"] == [f"127.0.0.1:{conf.api.port}:{conf.api.port}"]
    assert f":{conf.metrics.port}/ready" in services["worker"]["healthcheck"]["test"][-1]
    database = services["database"]["environment"]
    assert conf.database.connection == (
        f"postgresql+psycopg2://{database['POSTGRES_USER']}:{database['POSTGRES_PASSWORD']}"
        f"@database:5432/{database['POSTGRES_DB']}"
    )
    bus = services["bus"]["environment"]
    assert conf.transport_url == (
        f"rabbit://{bus['RABBITMQ_DEFAULT_USER']}:{bus['RABBITMQ_DEFAULT_PASS']}@bus:5672/"
    )
    store = conf["store:main"]
    (identity,) = json.loads((ROOT / "etc" / "container" / "s3.json").read_text())["identities"]
    assert identity["credentials"] == [
        {"accessKey": store.access_key_id, "secretKey": store.secret_access_key}
    ]
    assert Path(conf["volumes:local"].volumes_dir).is_relative_to("/var/lib/backupfw")
