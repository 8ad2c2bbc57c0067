"""The console in a real browser, on a real service: what WebTest cannot see.

It also makes the pictures of the documentation, if ``BACKUPFW_PICTURES`` names a directory for them.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.integration.service import Service
from tests.servers import browser as browsers
from tests.waiting import PATIENCE

if lacks := browsers.missing():
    pytest.skip(f"not installed: {', '.join(lacks)}", allow_module_level=True)

pytestmark = pytest.mark.server

PAGES = ("health", "now", "volumes", "policies", "stores", "messages")
AXE = (Path(__file__).parent / "axe-4.14.1.min.js").read_text()


class Desk:
    """A served instance, with a browser to look at it.

    :ivar said: what the pages complained of.
    """

    def __init__(self, service: Service, browser: Any) -> None:
        self.service = service
        self.browser = browser
        self.base = f"http://127.0.0.1:{service.port}/console"
        self.token = service.console_token()
        self.said: list[str] = []

    @contextmanager
    def page(self, **options: Any) -> Iterator[Any]:
        """Yield a page of somebody who is logged in."""
        context = self.browser.new_context(viewport={"width": 1100, "height": 700}, **options)
        context.set_default_timeout(PATIENCE * 1000)
        page = context.new_page()
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(self.base)
        page.get_by_label("Token").fill(self.token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Health", exact=True).wait_for()
        yield page
        context.close()
        assert self.said == []

    def picture(self, page: Any, name: str) -> None:
        """Keep a picture of a page, if pictures are wanted."""
        place = os.environ.get("BACKUPFW_PICTURES")
        if place:
            page.screenshot(path=Path(place) / f"console-{name}.png", full_page=True)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A service with two volumes, and a browser."""
    options = {"backup": {"poll_seconds": "0.2"}, "store:main": {"price_per_gib_month": "0.02"}}
    service = Service(tmp_path_factory.mktemp("console") / "state", options).start()
    try:
        with browsers.browser() as browser:
            yield Desk(service, browser)
    finally:
        service.stop()


@pytest.fixture(scope="module")
def volumes(desk: Desk) -> dict[str, str]:
    """Two volumes, by name; one has a name that would be markup."""
    client = desk.service.client()
    return {name: client.create_volume(name=name) for name in ("mail", '<b onclick="x">web')}


def _violations(page: Any) -> list[str]:
    """Return what axe finds wrong with a page."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run()")
    return [
        f"{one['id']}: {node['html'][:200]} {node['failureSummary']}"
        for one in found["violations"]
        for node in one["nodes"]
    ]


def test_a_backup_and_its_restore_are_clicked_through(desk: Desk, volumes: dict[str, str]) -> None:
    """On a real service, from the list of volumes to the bytes of the restored one."""
    client = desk.service.client()
    source = client.volume_path(volumes["mail"])
    data = os.urandom(3 << 20)
    with open(source, "r+b") as file:
        file.write(data)
    with desk.page() as page:
        page.get_by_role("link", name="Volumes").click()
        page.get_by_role("link", name="mail").click()
        for name in ("monday", "tuesday"):
            page.get_by_label("Name of the backup").fill(name)
            page.get_by_role("button", name="Back up").click()
            page.get_by_role("rowheader", name=name).wait_for()
            (made,) = (
                one["id"] for one in client.expect(200, "GET", "/backups")["backups"] if one["name"] == name
            )
            client.wait_status("backup", made, "available")
            page.reload()
        assert page.get_by_role("img", name="Time line of 2 backups").is_visible()
        page.get_by_role("button", name="Verify tuesday").click()
        progress = f"/backups/{made}/progress"
        idle = {"phase": "idle"}
        client.wait(
            "the verification",
            lambda: idle.items() <= client.expect(200, "GET", progress)["progress"].items(),
        )
        page.reload()
        row = page.get_by_role("row", name="tuesday")
        assert row.locator("td").nth(3).get_by_text("ok", exact=True).is_visible()
        assert "incremental" in row.inner_text()
        desk.picture(page, "volume")
        row.get_by_role("link", name="Restore tuesday").click()
        page.get_by_label("Its name").fill("mail as it was")
        page.get_by_role("button", name="Restore").click()
        page.get_by_role("heading", name="mail as it was").wait_for()
        restored = page.url.rpartition("/")[2]
        client.wait_status("volume", restored, "available")
        with open(client.volume_path(restored), "rb") as file:
            assert file.read(len(data)) == data
        page.get_by_role("link", name="Volumes").click()
        page.get_by_role("link", name="mail", exact=True).click()
        page.get_by_role("link", name="Delete monday").click()
        page.get_by_role("button", name="Delete it").click()
        client.wait_status("backup", made, "available")
        page.get_by_role("rowheader", name="tuesday").wait_for()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_every_page(desk: Desk, volumes: dict[str, str], scheme: str) -> None:
    # The pages' own policy would let in no script of a test.
    with desk.page(color_scheme=scheme, bypass_csp=True) as page:
        for name in (*PAGES, "messages/done", "policies/new", f"volumes/{volumes['mail']}"):
            page.goto(f"{desk.base}/{name}")
            assert _violations(page) == [], name
            if scheme == "light" and name in ("health", "volumes"):
                desk.picture(page, name)
            elif (name, scheme) == ("messages/done", "dark"):
                desk.picture(page, "messages")
        for link in ("Restore", "Delete"):
            page.get_by_role("link", name=link).first.click()
            assert _violations(page) == [], link
            page.go_back()


def test_a_month_of_a_store_is_drawn(desk: Desk) -> None:
    """A month that others have recorded in the place of the service."""
    now = datetime.now(UTC)
    rows = [
        (project, f"{then:%Y-%m-%d}", part, size >> 22, size, f"{then:%Y-%m-%d %H:%M:%S.%f}")
        for ago in range(31)
        for then in [now - timedelta(days=ago)]
        for project, part in (("", 42), ("demo", 21), ("shop", 14), ("mail", 7))
        for size in [(190 - 5 * ago + 15 * (6 - ago % 7)) * part << 25]
    ]
    with sqlite3.connect(desk.service.state / "backupfw.sqlite", timeout=PATIENCE) as database:
        database.executemany(
            "INSERT OR REPLACE INTO store_usage"
            " (store, project_id, day, backups, objects, bytes, recorded_at)"
            " VALUES ('main', ?, ?, ?, ?, ?, ?)",
            rows,
        )
    database.close()
    with desk.page(bypass_csp=True) as page:
        page.goto(f"{desk.base}/stores")
        assert page.get_by_role("img", name="Bytes in main from").is_visible()
        assert page.get_by_role("rowheader", name="shop").is_visible()
        assert _violations(page) == []
        desk.picture(page, "stores")


def test_a_policy_is_made_and_edited(desk: Desk, volumes: dict[str, str]) -> None:
    """The form says what is wrong, and keeps what was filled in."""
    with desk.page(bypass_csp=True) as page:
        page.get_by_role("link", name="Volumes").click()
        page.get_by_role("link", name="mail", exact=True).click()
        page.get_by_role("link", name="Let a policy back it up").click()
        page.get_by_label("Name", exact=True).fill("nightly")
        page.get_by_label("Schedule").fill("61 2 * * *")
        page.get_by_label("Time zone").fill("Europe/Berlin")
        page.get_by_role("button", name="Make it").click()
        page.get_by_text("cannot be understood").wait_for()
        assert _violations(page) == []
        # That the form is refused is no error of the page.
        assert all("400" in said for said in desk.said), desk.said
        desk.said.clear()
        page.get_by_label("Schedule").fill("30 2 * * *")
        page.get_by_role("button", name="Make it").click()
        page.get_by_role("heading", name="nightly").wait_for()
        page.get_by_role("link", name="Edit").click()
        page.get_by_label("Of days").fill("3")
        page.get_by_role("button", name="Change it").click()
        page.get_by_text("3 daily, 4 weekly").wait_for()
        assert "project demo" in page.inner_text("main")
        page.get_by_role("button", name="Run now").click()
        for _ in range(100):
            page.reload()
            if page.get_by_role("row", name="mail").get_by_text("ok", exact=True).count():
                break
            page.wait_for_timeout(200)
        page.get_by_role("row", name="mail").get_by_text("ok", exact=True).wait_for()
        assert _violations(page) == []
        desk.picture(page, "policy")
        page.get_by_role("link", name="What is kept, and why").click()
        page.get_by_text("daily 1").wait_for()
        assert _violations(page) == []
        page.get_by_role("link", name="Back to the policy").click()
        page.get_by_role("link", name="Delete").click()
        page.get_by_role("button", name="Delete it").click()
        page.get_by_text("There is no backup policy").wait_for()


def test_without_javascript(desk: Desk, volumes: dict[str, str]) -> None:
    with desk.page(java_script_enabled=False) as page:
        page.get_by_role("link", name="Volumes").click()
        # A name that would be markup is text.
        page.get_by_role("link", name='<b onclick="x">web').click()
        page.get_by_role("button", name="Back up").click()
        page.get_by_role("row", name="full").wait_for()
        assert page.get_by_role("rowheader").count() == 1


def test_pages_fit_a_phone(desk: Desk, volumes: dict[str, str]) -> None:
    with desk.page() as page:
        page.set_viewport_size({"width": 360, "height": 700})
        for name in PAGES:
            page.goto(f"{desk.base}/{name}")
            assert page.evaluate("document.documentElement.scrollWidth") <= 360, name


def test_the_keyboard_is_enough(desk: Desk, volumes: dict[str, str]) -> None:
    """The first stop leads past the menu, and each stop is visible."""
    with desk.page() as page:
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
        page.keyboard.press("Enter")
        assert page.url.endswith("#content")
        page.goto(f"{desk.base}/now")
        seen = []
        for _ in range(len(PAGES) + 2):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.textContent.trim()"))
            box = page.evaluate("JSON.stringify(document.activeElement.getBoundingClientRect())")
            assert '"width":0' not in box
        assert seen[-1] == "Log out"


def test_a_backup_is_made_by_the_keyboard_alone(desk: Desk, volumes: dict[str, str]) -> None:
    with desk.page() as page:
        page.goto(f"{desk.base}/volumes/{volumes['mail']}")

        def reach(label: str) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                focus = "e => e.ariaLabel || e.textContent.trim()"
                if page.evaluate(f"({focus})(document.activeElement)") == label:
                    return
            raise AssertionError(f"Tab does not lead to {label}")

        reach("Name of the backup")
        page.keyboard.type("by keys")
        reach("Back up")
        page.keyboard.press("Enter")
        page.get_by_role("rowheader", name="by keys").wait_for()
        reach("Keep by keys")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="Keep no longer by keys").wait_for()


def test_a_page_that_refreshes_itself_leads_to_the_login_when_the_session_ends(desk: Desk) -> None:
    with desk.page() as page:
        page.goto(f"{desk.base}/now")
        other = page.context.new_page()
        other.goto(f"{desk.base}/health")
        other.get_by_role("button", name="Log out").click()
        other.get_by_role("heading", name="Log in").wait_for()
        # Nothing runs, so it asks after 15 s.
        page.get_by_role("heading", name="Log in").wait_for(timeout=30_000)
        page.get_by_label("Token").fill(desk.token)
        page.get_by_role("button", name="Log in").click()
        page.get_by_role("heading", name="Now", exact=True).wait_for()


def test_what_changes_is_shown_without_a_click(desk: Desk, volumes: dict[str, str]) -> None:
    client = desk.service.client()
    # A worker that is being drained begins nothing.
    host = {"host": client.expect(200, "GET", "/os-services")["services"][0]["host"]}
    client.expect(200, "PUT", "/os-services/freeze", host)
    with desk.page() as page:
        page.goto(f"{desk.base}/now")
        page.evaluate("window.stayed = true")
        # While nothing runs, that is asked every 15 s.
        with page.expect_response(lambda answer: answer.url.endswith("/now"), timeout=30_000) as refreshed:
            made = client.backup(volumes["mail"], wait=False, name="nightly")
        assert refreshed.value.request.headers["hx-request"] == "true"
        page.get_by_text("waiting-for-worker").wait_for()
        assert page.evaluate("window.stayed"), "the page itself was not loaded again"
        desk.picture(page, "now")
        page.get_by_role("link", name="Cancel").click()
        page.get_by_role("button", name="Cancel it").click()
        page.get_by_text("Nothing runs").wait_for()
        assert client.status("backup", made) == "error"
    client.expect(200, "PUT", "/os-services/thaw", host)
