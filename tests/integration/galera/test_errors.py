"""What nodes say of a transaction that cannot be: it is repeated, or its database is away."""

from __future__ import annotations

import pytest
from oslo_db.exception import DBConnectionError, DBDeadlock
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from backupfw.db.models import Base, Quota
from backupfw.db.session import Database
from tests.integration.faults.world import wait
from tests.servers.databases import Galera

pytestmark = pytest.mark.server


@pytest.fixture
def counted(nodes: list[Database]) -> list[Database]:
    """Both nodes, with a row to count in."""
    Base.metadata.create_all(nodes[0].engine)
    with nodes[0].write() as session:
        session.add(Quota(project_id="p", resource="r", hard_limit=0))
    return nodes


def add_one(session: Session) -> None:
    session.execute(update(Quota).values(hard_limit=Quota.hard_limit + 1))


def value(db: Database) -> int | None:
    with db.read() as session:
        return session.scalar(select(Quota.hard_limit))


def test_of_two_that_change_a_row_one_is_repeated(counted: list[Database]) -> None:
    """Neither waits for the other; the later commit is refused."""
    here, other = counted
    tries = []

    def work(session: Session) -> None:
        add_one(session)
        tries.append(1)
        if len(tries) == 1:
            here.run(add_one)

    other.run(work)
    assert len(tries) == 2
    assert value(here) == value(other) == 2


@pytest.mark.parametrize("decided", [True, False])
def test_a_node_outside_the_majority(cluster: Galera, counted: list[Database], decided: bool) -> None:
    """At the commit, at a statement and at the begin; whether that is known by then or only comes out."""
    here, cut = counted

    def cut_off_before_the_commit() -> None:
        with cut.write() as session:
            add_one(session)
            cluster.isolate(1, True)
            if decided:
                wait("the node to be outside", lambda: not cluster.is_ready(1))

    try:
        with pytest.raises((DBConnectionError, DBDeadlock)):
            cut_off_before_the_commit()
        with pytest.raises(DBConnectionError):
            value(cut)
        here.run(add_one)
    finally:
        cluster.isolate(1, False)
        wait("the node to be back", lambda: cluster.is_ready(1))
    cut.run(add_one)
    assert value(here) == value(cut) == 2
