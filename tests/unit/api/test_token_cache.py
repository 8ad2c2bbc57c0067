"""Validated tokens in memory: how long they stay, and how many."""

from __future__ import annotations

from backupfw.api.identity.keystone import TokenCache


def test_a_value_stays_for_its_time() -> None:
    now = [1000.0]
    cache = TokenCache(timer=lambda: now[0])
    assert cache.get("a") is None
    cache.set("a", b"1", time=5)
    now[0] += 4.9
    assert cache.get("a") == b"1"
    now[0] += 0.1
    assert cache.get("a") is None
    # -1 is how operators switch the cache off.
    cache.set("b", b"2", time=-1)
    assert cache.get("b") is None


def test_the_least_recently_used_go_first() -> None:
    cache = TokenCache(size=2)
    for key in ("a", "b"):
        cache.set(key, key.encode(), time=60)
    assert cache.get("a") == b"a"
    cache.set("c", b"c", time=60)
    assert cache.get("b") is None
    assert cache.get("a") == b"a"
    assert cache.get("c") == b"c"
