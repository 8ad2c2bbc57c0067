"""The worker's stores follow a configuration that is read again."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from backupfw.chunkstore.base import ChunkStore
from backupfw.chunkstore.layers.limit import LimitLayer, Limits
from backupfw.chunkstore.layers.stack import layers_of
from backupfw.chunkstore.loader import open_store
from backupfw.cmd.configure import plug_ins
from backupfw.conf import load
from backupfw.conf.load import reread
from backupfw.worker import stores as module
from backupfw.worker.stores import Stores

TEXT = """
[DEFAULT]
enabled_stores = main, other
[store:main]
driver = memory
max_bytes_per_second = {speed}
[store:other]
driver = memory
max_concurrency = {calls}
"""


def limits_of(stores: Stores, name: str) -> Limits:
    (limit,) = [
        layer for layer in layers_of(stores.container(name, "c").store) if isinstance(layer, LimitLayer)
    ]
    return limit.limits


def test_open_stores_get_their_new_limits(tmp_path: Path) -> None:
    path = tmp_path / "test.conf"

    def loaded() -> load.Loaded:
        return load.load(plug_ins(), state_dir=str(tmp_path), config_files=[str(path)])

    path.write_text(TEXT.format(speed=1000, calls=1))
    conf = loaded().conf
    stores = Stores(conf)
    conf.register_mutate_hook(lambda *_: stores.set_limits())
    main = stores.container("main", "c").store
    assert limits_of(stores, "main") == Limits(0, 1000, 0)
    path.write_text(TEXT.format(speed=2000, calls=5))
    assert reread(conf, loaded) == ("store:main.max_bytes_per_second", "store:other.max_concurrency")
    assert stores.container("main", "c").store is main
    assert limits_of(stores, "main") == Limits(0, 2000, 0)
    # One that is opened later has them as well.
    assert limits_of(stores, "other") == Limits(5, 0, 0)
    stores.close()


def test_one_that_hangs_while_it_is_opened_holds_no_reading_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "test.conf"
    reached, go_on = threading.Event(), threading.Event()

    def open_slowly(*words: Any, **named: Any) -> ChunkStore:
        opened = open_store(*words, **named)
        reached.set()
        assert go_on.wait(30)
        return opened

    def loaded() -> load.Loaded:
        return load.load(plug_ins(), state_dir=str(tmp_path), config_files=[str(path)])

    monkeypatch.setattr(module, "open_store", open_slowly)
    path.write_text(TEXT.format(speed=1000, calls=1))
    conf = loaded().conf
    stores = Stores(conf)
    conf.register_mutate_hook(lambda *_: stores.set_limits())
    with ThreadPoolExecutor(2) as pool:
        opening = pool.submit(stores.container, "main", "c")
        assert reached.wait(30)
        path.write_text(TEXT.format(speed=2000, calls=1))
        reading = pool.submit(reread, conf, loaded)
        try:
            assert reading.result(10) == ("store:main.max_bytes_per_second",)
        finally:
            go_on.set()
        opening.result(30)
    # It was opened with the old ones.
    assert limits_of(stores, "main") == Limits(0, 2000, 0)
    stores.close()
