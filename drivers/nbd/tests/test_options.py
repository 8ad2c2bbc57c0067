"""The options, what the README tells of them, and what locations are."""

from __future__ import annotations

from pathlib import Path

import pytest
from backupfw_nbd.exports import NbdProvider
from backupfw_nbd.machines import QemuProvider
from backupfw_nbd.places import DiskPlace, ExportPlace

from backupfw.chunkstore.options import ConfigError, option_values
from backupfw.errors import InvalidInput
from backupfw.testing.readme import require_options_table

README = Path(__file__).parent.parent / "README.md"


def test_the_readme_lists_all_options() -> None:
    require_options_table(README, QemuProvider.options())
    text = README.read_text()
    assert [opt.name for opt in NbdProvider.options() if f"| `{opt.name}` |" not in text] == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scratch_dir", "not/absolute"),
        ("scratch_dir", "/nothing/is/here"),
        ("scratch_dir", "/" + "x" * 100),
        ("timeout", "0"),
    ],
)
def test_values_that_cannot_be(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name):
        QemuProvider(option_values(QemuProvider.options(), **{"scratch_dir": str(tmp_path), name: value}))


@pytest.mark.parametrize(
    "more", [{"tls_psk_file": "x"}, {"tls_psk_file": "/a", "tls_certificates": "/b"}, {"connections": "0"}]
)
def test_values_of_exports_that_cannot_be(more: dict[str, str]) -> None:
    with pytest.raises(ConfigError):
        NbdProvider(option_values(NbdProvider.options(), **more))


@pytest.mark.parametrize(
    "text",
    [
        "nbd://nas.example.org:10809/disk1",
        "nbd://nas.example.org:10810/",
        "nbds://[::1]:10809/a%20b",
        "nbd+unix:///disk?socket=/run/a.sock",
        "nbds+unix:///?socket=/run/a.sock",
    ],
)
def test_locations_are_kept_as_they_are(text: str) -> None:
    assert str(ExportPlace.parse(text)) == text


def test_a_location_has_one_form() -> None:
    assert str(ExportPlace.parse("nbd://NAS/x")) == "nbd://nas:10809/x"
    assert str(ExportPlace.parse("nbd+unix:///x?socket=/run/../a")) == "nbd+unix:///x?socket=/a"
    assert str(DiskPlace.parse("qemu+unix:///d?monitor=/a//b")) == "qemu+unix:///d?monitor=/a/b"


@pytest.mark.parametrize(
    "text",
    [
        "nbd://alice:secret@nas/x",
        "nbd://alice@nas/x",
        "nbds://nas/x?tls-psk-file=/etc/shadow",
        "nbd+unix:///x?socket=relative",
        "nbd+unix:///x",
        "nbd+unix://host/x?socket=/a",
        "nbd+unix:///x?socket=/" + "y" * 108,
        "nbd+ssh://nas/x",
        "nbd+vsock://1/x",
        "http://nas/x",
        "nbd:nas:10809",
        "nbd://nas:99999/x",
        "nbd:///x",
        "nbd://nas/x#y",
        "nbd://nas/\n",
        "nbd://nas/" + "x" * 300,
    ],
)
def test_what_is_no_location_is_refused_and_never_repeated(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        ExportPlace.parse(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "qemu+unix:///d",
        "qemu+unix:///?monitor=/a",
        "qemu+unix://h/d?monitor=/a",
        "qemu+unix:///d?monitor=a",
        "qemu+unix:///a/b?monitor=/a",
        "qemu+unix:///d?monitor=/a&x=1",
    ],
)
def test_what_is_no_disk_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        DiskPlace.parse(text)


def test_only_named_servers_are_used(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    servers = ["nas:10809", str(tmp_path / "in")]
    provider = NbdProvider(option_values(NbdProvider.options(), servers=servers, timeout="1"))
    (tmp_path / "in" / "out.sock").symlink_to("/run/elsewhere.sock")
    for text in (
        "nbd://nas:10810/x",
        "nbd://other/x",
        f"nbd+unix:///x?socket={tmp_path}/other.sock",
        f"nbd+unix:///x?socket={tmp_path}/in/out.sock",
    ):
        with pytest.raises(InvalidInput, match="option servers"):
            provider.adopt(text)
