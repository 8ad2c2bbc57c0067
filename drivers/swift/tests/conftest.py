"""Servers that several test modules share: they take their time to start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.keystone import Keystone, User, keystone
from tests.servers.swift import Swift, swift
from tests.servers.swift_accounts import publish

#: Of Keystone's tokens, seconds: renewed after 5 with the options' defaults.
TOKEN_LIFE = 20


@pytest.fixture(scope="session")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keystone]:
    """Keystone with short tokens."""
    with keystone(tmp_path_factory.mktemp("keystone"), token_life=TOKEN_LIFE) as identity:
        yield identity


@pytest.fixture(scope="session")
def keystone_cluster(identity: Keystone) -> Iterator[Swift]:
    """Swift behind that Keystone, in its catalogue, without bulk deletes."""
    with swift(identity, without=["bulk"]) as cluster:
        publish(cluster, identity)
        yield cluster


@pytest.fixture(scope="session")
def user(identity: Keystone) -> User:
    """Who owns the backups."""
    return identity.add_user("backup", "backups", "member")
