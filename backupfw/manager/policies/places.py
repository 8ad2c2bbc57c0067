"""Which places of a policy's backups are kept, and why: computed without a database.

A place is a store that has a backup whole: the backup's own, or one that has a copy.  The policy's rules keep
backups in their own stores; those of a copy, what its store has of them.  A backup stays as long as any of
its places is kept, and its places go one by one.  A copy without rules lives as long as its backup.

So to apply all of it again to what it kept changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backupfw.manager.policies import retention
from backupfw.manager.policies.retention import Taken
from backupfw.manager.policies.settings import Settings

#: Why a copy is kept that has no rules.
WITH_BACKUP = "as long as the backup"

#: Of each place of a backup why it is kept, or None: it goes; the own store first.
Verdict = Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Stored(Taken):
    """A backup as the rules see it, and where it is.

    :ivar own: its own store.
    :ivar copies: the stores that have a good copy of it.
    """

    own: str
    copies: frozenset[str] = frozenset()

    @property
    def stores(self) -> tuple[str, ...]:
        """All its places, its own first."""
        return (self.own, *sorted(self.copies))


@dataclass(frozen=True, slots=True)
class Step:
    """What retention does with a backup.

    :ivar backup: as it is before.
    :ivar leaves: the stores from which it goes; all of them: it is deleted.
    :ivar heir: the store whose copy becomes the backup's own, if it leaves its own; None: it stays there.
    """

    backup: Stored
    leaves: frozenset[str]
    heir: str | None = None

    @property
    def deletes(self) -> bool:
        """Whether the backup goes from everywhere."""
        return self.leaves == frozenset(self.backup.stores)

    def after(self) -> Stored | None:
        """Return the backup as it is then; None: it is gone."""
        if self.deletes:
            return None
        own = self.heir or self.backup.own
        return replace(self.backup, own=own, copies=self.backup.copies - self.leaves - {own})


def apply(settings: Settings, backups: Sequence[Stored]) -> dict[str, Verdict]:
    """Return what becomes of each place of each backup.

    :param backups: good ones, in any order.
    """
    zone = settings.schedule.zone
    own = retention.apply(settings.rules, zone, backups)
    beside = {
        store: retention.apply(rules, zone, [one for one in backups if store in one.stores])
        for store, rules in settings.copies.items()
        if settings.has_rules(store)
    }
    return {one.id: _places(one, own[one.id], beside) for one in backups}


def _places(
    backup: Stored, own: str | None, beside: Mapping[str, Mapping[str, str | None]]
) -> dict[str, str | None]:
    found = {store: beside[store][backup.id] if store in beside else None for store in backup.stores}
    # One that was made there, or is there alone by now, may be kept by either.
    found[backup.own] = own or found[backup.own]
    if any(found.values()):
        found |= dict.fromkeys((store for store in backup.copies if store not in beside), WITH_BACKUP)
    return found


def step(settings: Settings, backup: Stored, verdict: Verdict, locked: frozenset[str]) -> Step | None:
    """Return what retention does with a backup; None: nothing.

    :param verdict: of it.
    :param locked: the stores that keep it for now, whatever the rules say.
    """
    leaves = frozenset(store for store, why in verdict.items() if why is None) - locked
    rest = [store for store in backup.stores if store not in leaves]
    if rest:
        leaves -= {store for store in backup.copies if not settings.has_rules(store)}
    if not leaves:
        return None
    if not rest or backup.own not in leaves:
        return Step(backup, leaves)
    order = {store: number for number, store in enumerate(settings.copies)}
    heir = min(rest, key=lambda store: (verdict[store] is None, order.get(store, len(order)), store))
    return Step(backup, leaves, heir)
