"""Wake-ups as messages, on the library's bus within one process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from oslo_config import cfg

from backupfw.conf import messaging
from backupfw.dispatch import messages
from backupfw.dispatch.messages import MessageDispatch
from backupfw.errors import ConfigError
from tests.waiting import PATIENCE


def make_conf(url: str, folder: Path) -> cfg.ConfigOpts:
    file = folder / "backupfw.conf"
    file.write_text(f"[DEFAULT]\ntransport_url = {url}\ncontrol_exchange = {folder.name}\n")
    conf = cfg.ConfigOpts()
    messaging.register_opts(conf)
    conf(args=[], project="backupfw", default_config_files=[str(file)], default_config_dirs=[])
    return conf


@contextmanager
def opened(conf: cfg.ConfigOpts, *, listens: bool) -> Iterator[MessageDispatch]:
    dispatch = MessageDispatch(conf, listens=listens)
    try:
        yield dispatch
    finally:
        dispatch.close()


def test_a_wake_up_reaches_every_worker(tmp_path: Path) -> None:
    conf = make_conf("fake:/", tmp_path)
    with opened(conf, listens=True) as first, opened(conf, listens=True) as second:
        # Each looks once when it has subscribed.
        assert first.wait(PATIENCE)
        assert second.wait(PATIENCE)
        with opened(conf, listens=False) as api:
            api.wake()
            assert first.wait(PATIENCE)
            assert second.wait(PATIENCE)
            first.nudge()
            assert first.wait(0)
            assert not second.wait(0.05)


def test_a_message_of_another_version_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    conf = make_conf("fake:/", tmp_path)
    with opened(conf, listens=True) as worker:
        assert worker.wait(PATIENCE)
        monkeypatch.setattr(messages, "VERSION", "2.0")
        with opened(conf, listens=False) as newer:
            newer.wake()
            assert newer.wait(0)
            monkeypatch.setattr(messages, "VERSION", "1.0")
            with opened(conf, listens=False) as same:
                same.wake()
                assert worker.wait(PATIENCE)
        assert not worker.wait(0.05)


@pytest.mark.parametrize("url", ["nonsense:/secret", "rabbit://user:secret@host:port/"])
def test_a_wrong_url_is_shown_without_its_password(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MessageDispatch(make_conf(url, tmp_path), listens=False)
    assert "transport_url" in str(caught.value)
    assert "secret" not in str(caught.value)
