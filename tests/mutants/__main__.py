"""Changes code that must not be wrong in small ways, one at a time, and sees that a test fails for each.

    python -m tests.mutants [--again] [GROUP ...]

mutmut makes the mutants and runs the tests.  It knows one selection of tests only, so each group of modules
is a run of its own, in a directory of its own below ``.mutants``, with the tests that are about it.  A mutant
that no test notices is reported, unless ``survivors.toml`` says why none can; an entry there that names no
survivor is reported as well.  Both make the exit status 1.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = ROOT / ".mutants"
SURVIVORS = Path(__file__).with_name("survivors.toml")

#: What a run needs of the checkout besides what is mutated.
BESIDE = ("conftest.py", "tests", "docs", "drivers")

#: Words in the names of tests that take seconds: they are about servers, threads, memory or many tasks, and
#: would run once per mutant.
SLOW = ("mariadb", "postgresql", "memory_at", "sampler", "never_exceed", "many_workers", "of_many_tasks")

#: What mutmut calls a mutant that it did not come to: it was stopped.
UNJUDGED = "not checked"
#: What it calls those that no test noticed, as far as is known.  One that runs for ever is noticed.
UNNOTICED = ("survived", "no tests", "skipped", "suspicious", UNJUDGED)

CONFIGURATION = """
[tool.mutmut]
source_paths = ["backupfw"]
also_copy = ["conftest.py", "docs", "drivers"]
only_mutate = {mutate}
pytest_add_cli_args_test_selection = {tests}
pytest_add_cli_args = [
    "-p", "tests.mutants.fresh", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "not ({slow})",
]
# What a message says is for people; that it is raised is what tests see.
do_not_mutate_patterns = ['^\\s*raise ', '^\\s*LOG\\.', '^\\s*(f?"[^"]*"\\s*)+$']
"""


@dataclass(frozen=True)
class Group:
    """Modules, and the tests that are to notice a change of them."""

    mutate: tuple[str, ...]
    tests: tuple[str, ...]


def _manager(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/manager/test_{name}.py" for name in names)


def _engine(*names: str) -> tuple[str, ...]:
    return tuple(f"tests/unit/engine/test_{name}.py" for name in names)


GROUPS = {
    "lifecycle": Group(
        ("backupfw/manager/lineage/lifecycle.py",),
        _manager("lifecycle", "volume_rules", "snapshots"),
    ),
    "lineage": Group(
        ("backupfw/manager/lineage/manifests.py", "backupfw/manager/lineage/tree.py"),
        _manager("manifests", "lineage_of_copies", "lineage_tree"),
    ),
    "claims": Group(
        ("backupfw/manager/queue/claims.py",),
        _manager("claims", "tasks"),
    ),
    "fragmentation": Group(
        ("backupfw/engine/fragmentation.py",),
        _engine("rules"),
    ),
    "keys": Group(
        ("backupfw/engine/format/keys.py", "backupfw/engine/format/geometry.py"),
        _engine("keys", "geometry"),
    ),
    "maps": Group(
        (
            "backupfw/engine/format/binary.py",
            "backupfw/engine/format/pack.py",
            "backupfw/engine/format/segment_map.py",
        ),
        (*_engine("binary", "segment_map", "sealing"), "tests/format", "tests/fuzz/test_bounds.py"),
    ),
    "sealing": Group(
        ("backupfw/engine/format/sealing.py", "backupfw/engine/format/key_object.py"),
        _engine("sealing"),
    ),
    "manifests": Group(
        ("backupfw/engine/format/manifest.py", "backupfw/engine/format/entries.py"),
        (*_engine("manifest", "sealing"), "tests/format", "tests/fuzz/test_bounds.py"),
    ),
}


@dataclass(frozen=True)
class Mutant:
    """A function, the line that was changed, and what it became."""

    function: str
    was: str
    became: str


def listed() -> dict[Mutant, str]:
    """Return the mutants that no test can notice, each with the reason."""
    return {
        Mutant(entry["function"], entry["was"].strip(), became): entry["why"]
        for entry in tomllib.loads(SURVIVORS.read_text())["survivor"]
        for became in entry["became"]
    }


class Run:
    """One group's run of mutmut.

    :param place: a directory for the mutants.
    :param again: keep what an earlier run found noticed, unless the function or the selection of tests has
        changed; else everything is made anew, as mutmut would not see that a test was changed.
    """

    def __init__(self, group: Group, place: Path, *, again: bool = False) -> None:
        self._place = place
        if not (again and place.exists()):
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir(parents=True)
            for name in ("backupfw", *BESIDE):
                (place / name).symlink_to(ROOT / name)
            (place / "setup.cfg").symlink_to(ROOT / "setup.cfg")
        configuration = CONFIGURATION.format(
            mutate=list(group.mutate), tests=list(group.tests), slow=" or ".join(SLOW)
        )
        (place / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + configuration)

    def judge(self, children: int) -> dict[str, str]:
        """Run the tests for each mutant that none has noticed yet; return what became of each mutant."""
        # Its progress is one line that is written again and again: for a terminal.
        words, shown = ("run", "--max-children", str(children)), sys.stdout.isatty()
        earlier = dict(self.results()) if (self._place / "mutants").exists() else {}
        # It judges what it has no result for; what survived it judges if it is named.
        self.mutmut(*words, shown=shown)
        survivors = [
            name
            for name, result in self.results()
            if result in UNNOTICED and earlier.get(name, UNJUDGED) not in (UNJUDGED, "killed")
        ]
        if survivors:
            self.mutmut(*words, *survivors, shown=shown)
        return dict(self.results())

    def mutmut(self, *words: str, shown: bool = False) -> str:
        """Run mutmut; return what it wrote, unless it is shown."""
        done = subprocess.run(
            [sys.executable, "-m", "mutmut", *words],
            cwd=self._place,
            stdout=None if shown else subprocess.PIPE,
            text=True,
        )
        if done.returncode:
            sys.exit(f"mutmut {' '.join(words)} failed in {self._place}\n{done.stdout or ''}")
        return done.stdout or ""

    def results(self) -> Iterator[tuple[str, str]]:
        """Yield each mutant's name and what became of it."""
        for line in self.mutmut("results", "--all", "true").splitlines():
            name, _, result = line.strip().partition(": ")
            if result:
                yield name, result

    def mutant(self, name: str) -> Mutant:
        """Return what a mutant changed."""
        lines = self.mutmut("show", name).splitlines()
        removed = [line[1:].strip() for line in lines if re.match(r"-(?!--)", line)]
        added = [line[1:].strip() for line in lines if re.match(r"\+(?!\+\+)", line)]
        return Mutant(_function(name), "\n".join(removed), "\n".join(added))


def _function(name: str) -> str:
    """Return the dotted name of what a mutant was made of.

    :param name: ``module.x_function__mutmut_3`` or ``module.xǁClassǁmethod__mutmut_3``.
    """
    module, _, mangled = name.rpartition("__mutmut_")[0].rpartition(".")
    return f"{module}.{mangled[2:].replace('ǁ', '.')}"


def _run(
    name: str, group: Group, children: int, again: bool
) -> tuple[Counter[str], list[tuple[str, Mutant]]]:
    """Return how many mutants had each result, and those that no test noticed."""
    print(f"== {name}: {', '.join(group.mutate)}", flush=True)
    run = Run(group, PLACE / name, again=again)
    results = run.judge(children)
    unnoticed = [each for each, result in results.items() if result in UNNOTICED]
    return Counter(results.values()), [(each, run.mutant(each)) for each in unnoticed]


def main(words: Sequence[str]) -> int:
    """Run the groups; return 1 if a mutant lives that is not listed, or the list names one that does not."""
    parser = argparse.ArgumentParser(prog="tests.mutants")
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"all, or some of {', '.join(GROUPS)}")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1, help="how many run at once")
    parser.add_argument(
        "--again", action="store_true", help="judge only what no test noticed in the last run"
    )
    options = parser.parse_args(words)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"there is no group {', '.join(sorted(unknown))}")
    known = listed()
    wrong = 0
    for name in options.groups or GROUPS:
        counts, survivors = _run(name, GROUPS[name], options.children, options.again)
        print(
            f"{name}: {counts.total()} mutants: "
            + ", ".join(f"{n} {what}" for what, n in counts.most_common())
        )
        new = [(each, mutant) for each, mutant in survivors if mutant not in known]
        for each, mutant in new:
            print(f"\nno test notices {each}\n[[survivor]]\nfunction = {mutant.function!r}")
            print(f"was = {mutant.was!r}\nbecame = [{mutant.became!r}]\nwhy = ''")
        modules = {entry.function for entry in known if is_of(entry, GROUPS[name])}
        lives = {mutant for _, mutant in survivors}
        stale = [entry for entry in known if entry.function in modules and entry not in lives]
        for entry in stale:
            print(f"\nlisted, but noticed or not made any more: {entry}")
        wrong += len(new) + len(stale)
        print(f"{name}: {len(survivors) - len(new)} survivors are explained, {len(new)} are not", flush=True)
    return int(wrong > 0)


def is_of(mutant: Mutant, group: Group) -> bool:
    """Say whether a mutant is of one of the group's modules."""
    path = mutant.function.replace(".", "/")
    return any(path.startswith(each.removesuffix(".py")) for each in group.mutate)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
