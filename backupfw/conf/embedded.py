"""The embedded profile: the defaults of a service that runs in one process.

It applies when a state directory is given, or no configuration file.  This is the only place in core that
names a driver: the one of an installation without any configuration.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from oslo_config import cfg

from backupfw.conf import volumes
from backupfw.errors import ConfigError

#: Read from a state directory when no other file is given.
CONFIG_FILE = "backupfw.conf"

#: Written by ``serve``: with which other files it runs, for the other commands of its state directory.
SERVED_FILE = "served.json"

#: Who may do what, where a state directory has a file of that name.
POLICY_FILE = "policy.yaml"

#: Defaults of ``[store:NAME]``, by store.
STORES: Mapping[str, Mapping[str, Any]] = {"main": {"driver": "posix", "path": "$state_dir/store"}}

#: Defaults of ``[volumes:NAME]``, by back end.
BACKENDS: Mapping[str, Mapping[str, Any]] = {volumes.LOCAL: {"volumes_dir": "$state_dir/volumes"}}

#: Defaults of ``[keys]``.
KEYS: Mapping[str, Any] = {"driver": "file", "directory": "$state_dir/keys"}

# '$' starts a reference in oslo.config, '?' and '#' end the path of a database URL.
_BAD = "$?#%"


def default_state_dir() -> str:
    """Return the default state directory of this user.

    ``/var/lib/backupfw`` for root, else ``backupfw`` under ``XDG_STATE_HOME`` (``~/.local/state``).
    """
    if os.geteuid() == 0:
        return "/var/lib/backupfw"
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return str(Path(base).expanduser() / "backupfw")


def absolute(state_dir: str) -> str:
    """Return a state directory's absolute path.

    :raises ConfigError: it has a character that is not allowed in configuration values.
    """
    path = os.path.abspath(os.path.expanduser(state_dir))
    if any(char in _BAD or not char.isprintable() for char in path):
        raise ConfigError(f"state directory {path!r}: its path must not hold control characters or {_BAD}")
    return path


def remember(state_dir: str, files: Sequence[str], profile: bool) -> None:
    """Record in a state directory the files with which it is served; none: only its own file, if any.

    :param profile: whether the embedded profile applies.
    :raises ConfigError: it cannot be written.
    """
    note = Path(state_dir) / SERVED_FILE
    try:
        if not files:
            note.unlink(missing_ok=True)
            return
        # A file in the directory moves with it.
        paths = [
            os.path.relpath(path, state_dir) if Path(path).is_relative_to(state_dir) else path
            for path in map(os.path.abspath, files)
        ]
        text = json.dumps({"config_files": paths, "embedded": profile}) + "\n"
        if not note.exists() or note.read_text() != text:
            fresh = note.with_suffix(".new")
            fresh.unlink(missing_ok=True)
            fresh.touch(0o600)
            fresh.write_text(text)
            fresh.replace(note)
    except OSError as error:
        raise ConfigError(f"state directory {state_dir}: {note.name}: {error.strerror}") from error


def remembered(state_dir: str) -> tuple[tuple[str, ...], bool] | None:
    """Return what :func:`remember` recorded, files by absolute paths; None: nothing.

    :raises ConfigError: it cannot be read.
    """
    note = Path(state_dir) / SERVED_FILE
    try:
        value = json.loads(note.read_text())
        return tuple(os.path.join(state_dir, path) for path in value["config_files"]), bool(value["embedded"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError(f"{note}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{note}: not what 'backupfw serve' writes; remove it") from error


def apply(conf: cfg.ConfigOpts, state_dir: str) -> None:
    """Set the profile's defaults for core's own options; values in a file win.

    :param state_dir: absolute path; overrides the option of that name.
    """
    conf.set_override("state_dir", state_dir)
    conf.set_default("connection", "sqlite:///$state_dir/backupfw.sqlite", "database")
    conf.set_default("noauth_roles", ["admin"], "api")
    # The file may be made at any time; until then the policy file beside the configuration files counts.
    conf.set_default("policy_file", str(Path(state_dir) / POLICY_FILE), "oslo_policy")
    # No limits unless somebody sets one, in the file or through the API.
    for option in volumes.QUOTA:
        conf.set_default(option.name, -1, "quota")
    # There is only one host, and volumes must stay usable if its name changes.
    conf.set_default("shared", True, "volumes")
