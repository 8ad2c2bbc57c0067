"""Check every value of a loaded configuration, so that a wrong one is reported before anything runs."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from oslo_config import cfg, types

from backupfw.conf import named
from backupfw.conf.types import Size
from backupfw.errors import ConfigError

Sections = Mapping[str, Sequence[cfg.Opt]]

#: What Python says of a text that is no number, and what a user reads instead.
_NO_NUMBER = (
    (re.compile(r"^invalid literal for int\(\) with base 10: (.*)$"), r"\1 is not a whole number"),
    (re.compile(r"^could not convert string to float: (.*)$"), r"\1 is not a number"),
)


def merge(listed: Iterable[tuple[str, Sequence[cfg.Opt]]]) -> dict[str, tuple[cfg.Opt, ...]]:
    """Join ``(section, options)`` pairs into one mapping."""
    sections: dict[str, tuple[cfg.Opt, ...]] = {}
    for section, opts in listed:
        sections[section] = (*sections.get(section, ()), *opts)
    return sections


def allowed(opt: cfg.Opt) -> str:
    """Return a text with the allowed values of an option."""
    return _allowed(opt.type)


def _allowed(kind: Any) -> str:
    if isinstance(kind, types.List):
        return f"a list, each {_allowed(kind.item_type)}"
    choices = getattr(kind, "choices", None)
    if choices:
        return "one of " + ", ".join(str(choice) for choice in choices)
    if isinstance(kind, Size):
        return repr(kind)
    if isinstance(kind, types.URI):
        return "a URL" + (f" with {' or '.join(kind.schemes)}" if kind.schemes else "")
    name = str(getattr(kind, "type_name", "value")).removesuffix(" value")
    low, high = getattr(kind, "min", None), getattr(kind, "max", None)
    if low is not None and high is not None:
        return f"{name} from {low} to {high}"
    if low is not None:
        return f"{name} of at least {low}"
    if high is not None:
        return f"{name} of at most {high}"
    regex = getattr(kind, "regex", None)
    return f"{name} like {regex.pattern}" if regex is not None else name


def words(error: object) -> str:
    """Return the text of an error, without the objects that some errors append and without Python's terms."""
    while isinstance(error, BaseException) and error.args:
        error = error.args[0]
    text = str(error)
    for pattern, plain in _NO_NUMBER:
        text = pattern.sub(plain, text)
    return text


def check_values(conf: cfg.ConfigOpts, sections: Sections) -> None:
    """Read every option once.

    :raises ConfigError: a value's type, bound or choice is wrong, or a required one is missing.
    """
    for section, opts in sections.items():
        values = conf if section == "DEFAULT" else conf[section]
        for opt in opts:
            where = f"section [{section}], option {opt.dest}"
            for old in opt.deprecated_opts:
                if old.group == section.partition(":")[0] != section:
                    where += f" (in older files: section [{old.group}], option {old.name})"
            try:
                value = getattr(values, opt.dest)
            except (ValueError, cfg.Error) as error:
                # oslo.config wraps the type's own text, which names the error.
                reason = error.__context__ if isinstance(error.__context__, ValueError) else error
                shown = "" if opt.secret else f"{words(reason)}; "
                raise ConfigError(f"{where}: {shown}allowed: {allowed(opt)}") from (
                    None if opt.secret else error
                )
            if opt.required and value is None:
                raise ConfigError(f"{where}: needs a value; allowed: {allowed(opt)}")


def _known(sections: Sections) -> dict[str, set[str]]:
    """Return the names that each section can hold, older ones of options of other sections, too."""
    known: dict[str, set[str]] = {section: set() for section in sections}
    for section, opts in sections.items():
        for opt in opts:
            old = ((one.group or section, one.name or opt.name) for one in opt.deprecated_opts)
            for place, name in ((section, opt.name), *old):
                known.setdefault(place, set()).update((name, name.replace("-", "_")))
    return known


def check_names(files: Iterable[str], sections: Sections) -> list[str]:
    """Compare the names in configuration files with the registered ones.

    With a misspelt option the default would apply without a warning, so it is an error.  A section that is
    not ours may belong to a library or to a store that is not enabled.

    :returns: sections that nothing reads.
    :raises ConfigError: a section of ours holds an option that does not exist.
    """
    unused: list[str] = []
    names = _known(sections)
    for path in files:
        parsed: dict[str, dict[str, Any]] = {}
        cfg.ConfigParser(path, parsed).parse()
        for section, options in parsed.items():
            if section not in sections:
                unused.append(section)
                continue
            known = names[section] | ({"config_file", "config_dir"} if section == "DEFAULT" else set())
            for option in options:
                if option not in known:
                    near = difflib.get_close_matches(option, known, 1)
                    hint = f"; did you mean {near[0]}?" if near else ""
                    raise ConfigError(f"section [{section}], option {option}: no such option{hint}")
    return unused


def check_together(conf: cfg.ConfigOpts) -> None:
    """Check values against each other.

    :raises ConfigError: two values contradict each other, or one that is needed is missing.
    """
    stores = ("DEFAULT", "enabled_stores", "default_store")
    named.check_enabled(conf.enabled_stores, conf.default_store, stores, "store")
    backends = ("volumes", "enabled", "default")
    named.check_enabled(conf.volumes.enabled, conf.volumes.default, backends, "volume back end")
    if not conf.database.connection:
        raise ConfigError(
            "section [database], option connection: needs a value; allowed: a database URL such as"
            " postgresql+psycopg2://user:password@host/backupfw; or give --state-dir, which brings its own"
        )
    block, segment, pack = conf.backup.block_size, conf.backup.segment_size, conf.backup.pack_size
    if segment % block or segment // block > 65536:
        raise ConfigError(
            "section [backup], option segment_size: not a multiple of block_size, or more than 65536 blocks;"
            f" allowed with block_size = {block}: multiples of it up to {min(block * 65536, 1 << 32)}"
        )
    if pack < block:
        raise ConfigError(
            f"section [backup], option pack_size: smaller than a block; allowed: at least {block}"
        )
