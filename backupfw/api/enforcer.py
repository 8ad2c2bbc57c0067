"""The policy: oslo.policy's enforcer, with the defaults of :mod:`policies` and the operator's file.

oslo.policy itself checks the file in every call and changes its rules one by one, so another thread may find
a rule missing.  Here a changed file is read into a new enforcer, which replaces the old one when it is
complete.  If the file is wrong or missing, the old enforcer stays.
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

#: Seconds between two checks whether a file has changed.
LOOK_SECONDS = 1.0
#: Seconds between two log lines that a file is missing.
TELL_SECONDS = 60.0
#: Most decisions that are remembered.
MAX_DECISIONS = 8192

#: A caller with every attribute that a check can ask for.
_SOMEBODY = RequestContext("project", "user", ["role"], system_scope="all", service_roles=["service"])

#: Kinds of checks that decide by rule, caller and target alone; others may ask a server.
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
    """Register the defaults with an enforcer; return it."""
    enforcer.register_defaults(list_rules())
    return enforcer


def _named(conf: cfg.ConfigOpts) -> bool:
    """Whether the operator has set the policy file."""
    found = conf.get_location("policy_file", "oslo_policy")
    return found is not None and bool(found.location.is_user_controlled)


def _file(conf: cfg.ConfigOpts) -> str | None:
    """Return the policy file that counts, if one is there."""
    name: str = conf.oslo_policy.policy_file
    found: str | None = conf.find_file(name)
    if found is None and not _named(conf):
        # The state directory has none: look beside the configuration.
        found = conf.find_file(os.path.basename(name))
    return found


def _files(conf: cfg.ConfigOpts) -> Iterator[str]:
    """Yield the existing policy files; a later one overrides an earlier one."""
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
    """Return the state of the files; it differs when one of them has changed."""
    try:
        found = [(path, os.stat(path)) for path in _files(conf)]
    except OSError:
        # A file vanished meanwhile, or is unreadable: loading reports it.
        return ()
    return tuple((path, stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in found)


def _wrong(conf: cfg.ConfigOpts, what: object) -> ConfigError:
    name = conf.oslo_policy.policy_file
    return ConfigError(f"section [oslo_policy], option policy_file: {name}: {what}")


def _load(conf: cfg.ConfigOpts) -> policy.Enforcer:
    """Read the files.

    :raises ConfigError: a file is wrong, or is missing although the configuration names it.
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
    # The enforcer must not read the files again by itself.
    enforcer.use_conf = False
    for name, rule in enforcer.file_rules.items():
        # oslo.policy turns a rule that it cannot parse into "never", with a line in the log.
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
    """Evaluate each leaf of a rule once: some can be parsed, but always fail.

    :raises ConfigError: a leaf failed.
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
    """The policy of one state of the files, with its decisions so far."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        # Taken before the files are read: a change meanwhile is noticed at the next check.
        self.state = _look(conf)
        self._enforcer = _load(conf)
        self._pure = all(
            type(leaf) in _PURE for check in self._enforcer.rules.values() for leaf in _parts(check)
        )
        self._decisions: dict[tuple[object, ...], bool] = {}

    def decide(self, rule: str, context: RequestContext, project_id: str) -> bool:
        """Return the enforcer's decision, from memory if it was asked the same before."""
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
    # A target without a project must not match a caller without a project.
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
    """The policy of the configured files.  Thread-safe.

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
        """Whether a rule allows the caller an operation on a resource of a project."""
        if policies.RULES[rule].needs_project and not context.project_id:
            return False
        return self._current().decide(rule, context, project_id)

    def is_admin(self, context: RequestContext) -> bool:
        """Whether the caller sees the resources of every project; ``context.is_admin`` is not used."""
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
        # A file that is removed by mistake must not give anybody more rights.
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
