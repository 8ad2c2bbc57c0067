"""The policy: oslo.policy's enforcer, with the defaults of :mod:`policies` and the operator's file.

oslo.policy itself looks at the file in every call and changes its rules one by one, so that a call beside
it may find a rule missing.  Here a changed file is read into a new enforcer, which takes the old one's
place when it is whole; a file that became wrong, or vanished, leaves the old one in force.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

from oslo_config import cfg
from oslo_log import log
from oslo_policy import opts, policy

from backupfw.api import policies
from backupfw.context import RequestContext
from backupfw.errors import ConfigError

LOG = log.getLogger(__name__)

#: How often the files are looked at, seconds.
LOOK_SECONDS = 1.0
#: How often it is told that a file is gone, seconds.
TELL_SECONDS = 60.0
#: How many decisions are remembered.
MAX_DECISIONS = 8192

#: Somebody of whom everything is known that a check can ask for.
_SOMEBODY = RequestContext("project", "user", ["role"], system_scope="all", service_roles=["service"])

#: Kinds of checks whose answer follows from what they are asked; the others may ask somebody else.
_PURE = frozenset(
    type(policy.RuleDefault("kind", text).check) for text in ("@", "!", "role:r", "rule:r", "user_id:u")
)


def list_rules() -> list[policy.RuleDefault]:
    """Return the defaults (entry point ``oslo.policy.policies``)."""
    rules: list[policy.RuleDefault] = [
        policy.RuleDefault(name, check, description=text) for name, check, text in policies.BASE_RULES
    ]
    for rule in policies.RULES.values():
        operations: Any = [
            dict(zip(("method", "path"), operation.split(" ", 1), strict=True))
            for operation in rule.operations
        ]
        scopes = ["project"] if rule.needs_project else ["project", "system"]
        rules.append(
            policy.DocumentedRuleDefault(
                rule.name, rule.level.value, rule.text, operations, scope_types=scopes
            )
        )
    return rules


def register(enforcer: policy.Enforcer) -> policy.Enforcer:
    """Give an enforcer the defaults; returns it."""
    enforcer.register_defaults(list_rules())
    return enforcer


def _named(conf: cfg.ConfigOpts) -> bool:
    """Whether the operator says where the policy file is."""
    found = conf.get_location("policy_file", "oslo_policy")
    return found is not None and bool(found.location.is_user_controlled)


def _file(conf: cfg.ConfigOpts) -> str | None:
    """Return the policy file that counts, if one is there."""
    name: str = conf.oslo_policy.policy_file
    found: str | None = conf.find_file(name)
    if found is None and not _named(conf):
        # A state directory without one: it may be beside the configuration.
        found = conf.find_file(os.path.basename(name))
    return found


def _files(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield the policy files that are there, in the order they count."""
    section = conf.oslo_policy
    path = _file(conf)
    if path:
        yield path
    for name in section.policy_dirs:
        folder = conf.find_file(name)
        if folder:
            with os.scandir(folder) as entries:
                names = sorted(item.path for item in entries if item.is_file() and item.name[0] != ".")
            yield from names


def _look(conf: cfg.ConfigOpts) -> tuple[tuple[str, int, int, int], ...]:
    """Return what tells one state of the files from another."""
    try:
        found = [(path, os.stat(path)) for path in _files(conf)]
    except OSError:
        # Gone between the two looks, or unreadable: loading says what is wrong.
        return ()
    return tuple((path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in found)


def _wrong(conf: cfg.ConfigOpts, what: object) -> ConfigError:
    name = conf.oslo_policy.policy_file
    return ConfigError(f"section [oslo_policy], option policy_file: {name}: {what}")


def _load(conf: cfg.ConfigOpts) -> policy.Enforcer:
    """Read the files.

    :raises ConfigError: one is missing though the configuration names it, or holds what is no rule.
    """
    try:
        found = list(_files(conf))
    except OSError as error:
        raise _wrong(conf, error) from error
    for path in found:
        _check_text(conf, path)
    file = _file(conf)
    if file is None and _named(conf):
        raise _wrong(conf, "no such file")
    enforcer = register(policy.Enforcer(conf, policy_file=file))
    try:
        enforcer.load_rules(force_reload=True)
        enforcer.check_rules(raise_on_violation=True)
    except policy.InvalidDefinitionError as error:
        raise _wrong(conf, f"{error} (they refer to rules that are not there, or to themselves)") from error
    except (OSError, ValueError, cfg.Error) as error:
        raise _wrong(conf, error) from error
    # It shall not look at the files by itself.
    enforcer.use_conf = False
    for name, rule in enforcer.file_rules.items():
        # What cannot be understood becomes "never", with a line in the log.
        if str(enforcer.rules[name]) == "!" and rule.check_str.strip() != "!":
            raise _wrong(conf, f"rule {name!r}: {rule.check_str!r} cannot be understood")
        _ask_once(conf, enforcer, name)
    unknown = sorted(set(enforcer.file_rules) - set(enforcer.registered_rules) - _referred(enforcer))
    if unknown:
        LOG.warning("Rules of the policy file that nothing asks: %s", ", ".join(unknown))
    return enforcer


def _check_text(conf: cfg.ConfigOpts, path: str) -> None:
    try:
        with open(path, encoding="utf-8") as file:
            rules = policy.parse_file_contents(file.read())
    except (OSError, ValueError) as error:
        raise _wrong(conf, f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(rules, Mapping) or not all(
        isinstance(name, str) and isinstance(check, str) for name, check in rules.items()
    ):
        raise _wrong(conf, f"{path}: not a mapping of rule names to checks")


def _parts(check: Any) -> Iterator[Any]:
    """Yield the leaves of a check."""
    inner = getattr(check, "rules", None) or getattr(check, "rule", None)
    if inner is None:
        yield check
        return
    for part in inner if isinstance(inner, list) else [inner]:
        yield from _parts(part)


def _ask_once(conf: cfg.ConfigOpts, enforcer: policy.Enforcer, name: str) -> None:
    """Ask each leaf of a rule: some are taken for checks, but fail whenever they are asked.

    :raises ConfigError: one failed.
    """
    for leaf in _parts(enforcer.rules[name]):
        if type(leaf) not in _PURE or isinstance(leaf, policy.RuleCheck):
            continue
        try:
            leaf(_target(_SOMEBODY.project_id), _credentials(_SOMEBODY), enforcer, name)
        except Exception as error:
            raise _wrong(conf, f"rule {name!r}: '{leaf}' cannot be asked: {error}") from error


def _referred(enforcer: policy.Enforcer) -> set[str]:
    return {
        leaf.match
        for check in enforcer.rules.values()
        for leaf in _parts(check)
        if isinstance(leaf, policy.RuleCheck)
    }


class _Loaded:
    """One state of the files, and what it decided so far."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        # Looked at before it is read: what changes meanwhile is seen the next time.
        self.state = _look(conf)
        self._enforcer = _load(conf)
        self._pure = all(
            type(leaf) in _PURE for check in self._enforcer.rules.values() for leaf in _parts(check)
        )
        self._decisions: dict[tuple[object, ...], bool] = {}

    def decide(self, rule: str, context: RequestContext, project_id: str) -> bool:
        """Ask the enforcer, or remember what it said to the same question."""
        key = (
            rule,
            project_id,
            context.project_id,
            context.user_id,
            tuple(context.roles),
            context.system_scope,
            tuple(context.service_roles),
        )
        known = self._decisions.get(key)
        if known is not None:
            return known
        decision = bool(self._enforcer.enforce(rule, _target(project_id), _credentials(context)))
        if self._pure:
            if len(self._decisions) >= MAX_DECISIONS:
                self._decisions.clear()
            self._decisions[key] = decision
        return decision


def _target(project_id: str) -> dict[str, Any]:
    # What belongs to no project shall match no project of a caller, and nobody's lack of one.
    return {"project_id": project_id} if project_id else {}


def _credentials(context: RequestContext) -> dict[str, Any]:
    roles = set(context.roles).union(*(policies.IMPLIED.get(role, ()) for role in context.roles))
    credentials: dict[str, Any] = {
        "roles": sorted(roles),
        "user_id": context.user_id,
        "service_roles": context.service_roles,
    }
    if context.project_id:
        credentials["project_id"] = context.project_id
    if context.system_scope:
        credentials["system_scope"] = context.system_scope
    return credentials


class FilePolicy:
    """The policy of a configuration.  Thread-safe.

    :param conf: the configuration (oslo.config), with ``[oslo_policy]`` registered.
    :raises ConfigError: a policy file is wrong.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        self._lock = threading.Lock()
        self._loaded = _Loaded(conf)
        self._seen = self._loaded.state
        self._tell_at = 0.0
        self._look_at = time.monotonic() + LOOK_SECONDS

    def allows(self, context: RequestContext, rule: str, project_id: str) -> bool:
        """Whether the caller may do what ``rule`` names to something of that project."""
        if policies.RULES[rule].needs_project and not context.project_id:
            return False
        return self._current().decide(rule, context, project_id)

    def is_admin(self, context: RequestContext) -> bool:
        """Whether the caller sees every project's resources; the context's own answer does not count."""
        return self._current().decide(policies.IS_ADMIN, context, context.project_id)

    def _current(self) -> _Loaded:
        if time.monotonic() >= self._look_at and self._lock.acquire(blocking=False):
            try:
                self._look_at = time.monotonic() + LOOK_SECONDS
                self._refresh()
            finally:
                self._lock.release()
        return self._loaded

    def _refresh(self) -> None:
        state = _look(self._conf)
        # Whoever removes a file by mistake must not give rights away with it.
        gone = [path for path, *_ in self._loaded.state if not os.path.exists(path)]
        if gone:
            if state != self._seen or time.monotonic() >= self._tell_at:
                LOG.error(
                    "The policy stays as it was, but its file is gone, put it back: %s",
                    ", ".join(gone),
                )
                self._tell_at = time.monotonic() + TELL_SECONDS
            self._seen = state
            return
        if state == self._seen:
            return
        self._seen = state
        try:
            self._loaded = _Loaded(self._conf)
        except ConfigError as error:
            LOG.error("The policy stays as it was: %s", error)
        else:
            LOG.info("The policy was read again")


def defaults() -> FilePolicy:
    """Return the policy of an installation without a policy file."""
    conf = cfg.ConfigOpts()
    for section, options in opts.list_opts():
        conf.register_opts(options, section)
    conf.set_default("policy_file", os.devnull, "oslo_policy")
    conf.set_default("policy_dirs", [], "oslo_policy")
    conf(args=[], default_config_files=[], default_config_dirs=[])
    return FilePolicy(conf)
