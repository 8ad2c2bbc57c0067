"""``openstack volume backup policy …``, against the service's own policies."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.functional.cloud import NOBODY, Cloud

from .conftest import Run


@pytest.fixture
def policy(run: Run) -> Run:
    """Type a command on policies; it must succeed unless the test says otherwise."""
    return lambda *words, status=0: _expect(run("volume", "backup", "policy", *words), status)


def _expect(done: Any, status: int) -> Any:
    assert done.status == status, done.err
    return done


def seen(cloud: Cloud) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        cloud.client().at("3.0").get("/backup-policies/detail").json["backup_policies"]
    )
    return found


@pytest.mark.parametrize("run", ["3"], indirect=True)
class TestPolicies:
    """In version 3, which alone has them."""

    @pytest.mark.parametrize("name", ["", ".", "..", "detail", "a/../b", "%2e"])
    def test_a_name_that_leads_elsewhere_is_no_policy(self, cloud: Cloud, policy: Any, name: str) -> None:
        """E.g. of a variable that is not set: neither the only policy nor a KeyError."""
        policy("create", "nightly", "--cron", "@daily", "--all-volumes")
        for words in (("show",), ("delete",), ("pause",)):
            failed = policy(*words, name, status=1)
            assert f"No backup policy found for {name}" in failed.err
        assert [one["enabled"] for one in seen(cloud)] == [True]

    def test_from_creation_to_deletion(self, cloud: Cloud, policy: Any) -> None:
        volume = cloud.volume(name="disk")
        words = (
            "--cron",
            "30 2 * * *",
            "--timezone",
            "Europe/Berlin",
            "--volume",
            "disk",
            "--keep-daily",
            "7",
        )
        made = policy("create", "nightly", *words, "--no-incremental", "-f", "json").json
        (there,) = seen(cloud)
        assert made == {name: value for name, value in there.items() if name != "links"}
        assert there["selection"] == {"volume_ids": [volume]}
        assert (there["retention"]["daily"], there["backup"]["incremental"]) == (7, False)

        # A part is replaced as a whole, so what is not named is sent again.
        policy(
            "set", "nightly", "--cron", "@weekly", "--keep-weekly", "4", "--name", "weekly", "--all-volumes"
        )
        (there,) = seen(cloud)
        assert (there["name"], there["selection"]) == ("weekly", {"all": True})
        assert there["schedule"] == {**made["schedule"], "cron": there["schedule"]["cron"]}
        assert there["schedule"]["cron"] != made["schedule"]["cron"]
        assert (there["retention"]["daily"], there["retention"]["weekly"]) == (7, 4)
        assert there["backup"] == made["backup"]
        policy("set", "weekly")
        assert seen(cloud) == [there]
        policy("set", "weekly", "--copy-to", "offsite,weekly=8,min-keep=2")
        (copy,) = seen(cloud)[0]["copy_to"]
        assert (copy["store"], copy["retention"]["weekly"], copy["retention"]["min_keep"]) == (
            "offsite",
            8,
            2,
        )
        assert "offsite,weekly=8,min_keep=2" in policy("show", "weekly").out
        assert "copy_to" in policy("set", "weekly", "--copy-to", "attic", status=1).err
        policy("set", "weekly", "--no-copies")
        assert seen(cloud)[0]["copy_to"] == []

        policy("pause", there["id"])
        assert policy("show", "weekly", "-f", "json").json["enabled"] is False
        policy("resume", "weekly")
        assert "cron='" in policy("show", there["id"]).out
        (row,) = policy("list", "-f", "json").json
        assert (row["ID"], row["Enabled"], row["Timezone"]) == (there["id"], True, "Europe/Berlin")
        policy("delete", "weekly")
        assert seen(cloud) == []
        assert policy("list", "-f", "json").json == []

    def test_the_commands_that_freeze(self, cloud: Cloud, policy: Any) -> None:
        words = ("--cron", "@daily", "--all-volumes", "--quiesce")
        assert "there are guest-agent, database." in policy("create", "p", *words, "rm", status=1).err
        policy("create", "p", *words, "guest-agent")
        (there,) = seen(cloud)
        assert there["backup"]["quiesce"] == "guest-agent"
        policy("set", "p", "--full-every", "3")
        (there,) = seen(cloud)
        assert (there["backup"]["quiesce"], there["backup"]["full_every"]) == ("guest-agent", 3)
        policy("set", "p", "--no-quiesce")
        (there,) = seen(cloud)
        assert (there["backup"]["quiesce"], there["backup"]["full_every"]) == (None, 3)

    def test_runs_and_preview(self, cloud: Cloud, policy: Any) -> None:
        volume = cloud.volume(metadata={"keep": "me"})
        cloud.volume()
        policy("create", "by name/and more", "--cron", "@daily", "--volume-property", "keep=me")
        (begun,) = policy("run", "by name/and more", "-f", "json").json
        assert (begun["Volume ID"], begun["Status"]) == (volume, "waiting")
        (listed,) = policy(
            "runs", "by name/and more", "--status", "waiting", "--volume", volume, "-f", "json"
        ).json
        assert listed == begun
        assert policy("runs", "by name/and more", "--status", "ok", "-f", "json").json == []
        day = datetime.now(UTC).date() + timedelta(days=30)
        then, later = (f"{day + timedelta(days=days)}T00:00:00.000000" for days in (1, 2))
        words = ("preview", "by name/and more", "--at", f"{day}T12:00:00", "--days", "3", "--volume", volume)
        shown = policy(*words, "-f", "json").json
        assert shown["next_runs"][0] == then
        assert (shown["volumes"][0]["volume_id"], shown["volumes_total"]) == (volume, 1)
        text = policy(*words).out
        assert later in text
        assert f"volume {volume}, " in text

    def test_what_is_refused(self, cloud: Cloud, policy: Any) -> None:
        assert "No backup policy found for nobody" in policy("show", "nobody", status=1).err
        bad = ("create", "bad", "--cron", "every day", "--all-volumes")
        done = policy(*bad, status=1)
        assert done.err.strip().endswith("(HTTP 400)")
        assert "cron" in done.err
        assert "required: --cron" in policy("create", "bad", "--all-volumes", status=2).err
        assert "--volume" in policy("create", "bad", "--cron", "@daily", status=2).err
        for _ in range(2):
            policy("create", "twin", "--cron", "@daily", "--all-volumes")
        done = policy("delete", "twin", NOBODY, seen(cloud)[0]["id"], status=1)
        assert done.err.splitlines() == [
            "More than one backup policy found for twin",
            f"No backup policy found for {NOBODY}",
            "2 of 3 backup policies not deleted.",
        ]
        assert len(seen(cloud)) == 1


@pytest.mark.parametrize("run", ["2"], indirect=True)
def test_version_2_has_none(run: Run) -> None:
    assert run("volume", "backup", "policy", "list").status != 0
