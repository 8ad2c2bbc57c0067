"""How images, and what we keep in them, are named."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace

from backupfw.errors import InvalidInput

#: What every path of an image begins with.
SCHEME = "rbd:"
#: Images and snapshots that the service made for its own volumes and snapshots begin with this.
OWN = "backupfw-"

#: Longest name that is accepted, in characters; Ceph itself has no common bound.
_MAX_NAME = 255

# A Cinder takes what matches ``backup\.([a-z0-9\-]+?)\.snap\.(.+)`` for a snapshot that belongs to a backup,
# and removes it when the volume is deleted; any other snapshot would be in its way.
_POINT = re.compile(r"backup\.(?P<point>.+)\.snap\.\d+\.\d+\.backupfw\.(?P<volume>.+)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """An image or a snapshot of one; as text ``rbd:POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]``."""

    pool: str
    image: str
    namespace: str = ""
    snapshot: str | None = None

    def __str__(self) -> str:
        space = f"{self.namespace}/" if self.namespace else ""
        snapshot = "" if self.snapshot is None else f"@{self.snapshot}"
        return f"{SCHEME}{self.pool}/{space}{self.image}{snapshot}"

    @classmethod
    def parse(cls, text: str) -> Place:
        """Read the text.

        :raises InvalidInput: it is none.
        """
        if not text.startswith(SCHEME):
            raise InvalidInput(f"{text!r} is not the path of an image: {SCHEME}POOL/IMAGE is needed.")
        image, at, snapshot = text.removeprefix(SCHEME).partition("@")
        *parents, name = image.split("/")
        if len(parents) not in (1, 2):
            raise InvalidInput(f"{text!r} is not {SCHEME}POOL/IMAGE or {SCHEME}POOL/NAMESPACE/IMAGE.")
        for part in (*parents, name, *([snapshot] if at else [])):
            if problem := name_problem(part):
                raise InvalidInput(f"{text!r} has {problem}.")
        return cls(parents[0], name, parents[1] if len(parents) == 2 else "", snapshot if at else None)

    def at(self, snapshot: str | None) -> Place:
        """Return the place of a snapshot of the image; None: of the image itself."""
        return replace(self, snapshot=snapshot)


def name_problem(name: str) -> str | None:
    """Say what is wrong with a name of Ceph, in words that follow "it has"; None: nothing."""
    if not name:
        return "an empty name"
    if len(name) > _MAX_NAME:
        return f"a name of more than {_MAX_NAME} characters"
    if "/" in name or "@" in name or not name.isprintable():
        return f"the name {name!r}, with a character that no name can have"
    return None


def point_name(point_id: str, volume_id: str) -> str:
    """Return a name for the snapshot of a new point of a volume."""
    name = f"backup.{point_id}.snap.{time.time():.6f}.backupfw.{volume_id}"
    if problem := name_problem(name):
        raise InvalidInput(f"A point's snapshot would have {problem}.")
    return name


def same_point(name: str, other: str | None) -> bool:
    """Return whether two snapshots are of one point: each attempt gives its own another name."""
    one, two = _POINT.fullmatch(name), _POINT.fullmatch(other or "")
    return one is not None and two is not None and one.groupdict() == two.groupdict()


def point_of(name: str, volume_id: str) -> str | None:
    """Return which point of a volume a snapshot is; None: it is none of the volume's."""
    found = _POINT.fullmatch(name)
    return found["point"] if found is not None and found["volume"] == volume_id else None
