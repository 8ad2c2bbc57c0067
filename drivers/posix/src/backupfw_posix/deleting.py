"""Deleting many objects: each directory is visited once, and empty ones go.

An empty directory is removed by ``rmdir``, which the kernel refuses when a put has just come first; a
put that finds its directory gone makes it again.  So neither needs a lock on the other.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress

from backupfw_posix.directories import READ, STEP, descend
from backupfw_posix.names import location

#: A directory below the container's, by its names from there.
Path = tuple[bytes, ...]


def delete_objects(
    container: int, keys: Sequence[str], forget: Callable[[Path], None], fsync: bool, *, plain: bool = False
) -> dict[str, OSError]:
    """Delete the keys and every directory that is empty then.

    :param container: descriptor of the container's directory.
    :param forget: called with each directory before it is removed.
    :param fsync: return only when the deletes are durable.
    :param plain: names on disk are the parts of keys.
    :returns: the keys that remain, each with its error.
    """
    by_directory: defaultdict[Path, list[tuple[str, bytes]]] = defaultdict(list)
    for key in keys:
        path, name = location(key, plain=plain)
        by_directory[path].append((key, name))
    errors: dict[str, OSError] = {}
    for path, objects in by_directory.items():
        try:
            with descend(container, path) as directory:
                for key, name in objects:
                    try:
                        os.unlink(name, dir_fd=directory)
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        errors[key] = error
        except FileNotFoundError:
            continue
        except OSError as error:
            errors.update((key, error) for key, _ in objects)
    changed = _prune(container, set(by_directory), forget)
    if fsync:
        for path in changed:
            try:
                with suppress(FileNotFoundError), descend(container, path, READ) as directory:
                    os.fsync(directory)
            except OSError as error:
                # These are gone but may come back with a crash: the caller has to delete them again.
                errors.update((key, error) for key, _ in by_directory.get(path, ()))
    return errors


def _prune(container: int, paths: set[Path], forget: Callable[[Path], None]) -> set[Path]:
    """Remove empty directories, deepest first, and those that this makes empty.

    :returns: the directories that remain and from which something was removed.
    """
    remaining: set[Path] = set()
    depth = max(map(len, paths), default=0)
    while depth:
        for path in [path for path in paths if len(path) == depth]:
            forget(path)
            try:
                with descend(container, path[:-1], STEP) as parent:
                    os.rmdir(path[-1], dir_fd=parent)
            except FileNotFoundError:
                # Somebody else was first, and makes that durable.
                continue
            except OSError:
                # Not empty, or not removable: an empty directory is no object, so nothing is lost.
                remaining.add(path)
            else:
                paths.add(path[:-1])
        depth -= 1
    if () in paths:
        remaining.add(())
    return remaining
