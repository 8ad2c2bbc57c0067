"""``backupfw complete``: scripts that let a shell complete commands, options and their values.

The scripts are data: what the parsers say when the scripts are written, so that no key starts Python.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from cliff import complete
from cliff.app import App

from backupfw.cmd import base

#: Names of option values that are files or directories.
_FILES = ("FILE", "DIR", "PATH")


@dataclass(frozen=True)
class Option:
    """An option of a command.

    :ivar names: how it is spelt, e.g. ``-f`` and ``--format``.
    :ivar about: a line of help.
    :ivar value: whether a value follows it.
    :ivar choices: what the value may be, as far as that is known.
    :ivar files: whether the value is a file or directory.
    """

    names: tuple[str, ...]
    about: str
    value: bool
    choices: tuple[str, ...]
    files: bool


@dataclass(frozen=True)
class Word:
    """A command, or the first word of several commands.

    :ivar before: the words before it, each with a blank in front of it.
    :ivar name: the word.
    :ivar about: a line of help.
    :ivar options: the command's options; none of a first word.
    """

    before: str
    name: str
    about: str
    options: tuple[Option, ...] = ()

    @property
    def path(self) -> str:
        """All words up to this one, each with a blank in front of it."""
        return f"{self.before} {self.name}"


class Complete(base.Command):
    """Print a script that lets bash, zsh or fish complete this command.

    For bash: source <(backupfw complete), e.g. in ~/.bashrc.  For zsh: as a file _backupfw in a directory of
    $fpath.  For fish: as ~/.config/fish/completions/backupfw.fish.
    """

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        parser.add_argument(
            "--shell", choices=sorted(SCRIPTS), default="bash", help="which shell (default: %(default)s)"
        )

    def take_action(self, parsed_args: argparse.Namespace) -> None:
        """Print the script."""
        for line in SCRIPTS[parsed_args.shell](words(self.app)):
            self.app.stdout.write(f"{line}\n")


def words(app: App) -> list[Word]:
    """Return all commands, and the first words that several of them share."""
    # cliff's way to a parser's options; argparse has no public one.
    actions_of = complete.CompleteCommand(app, argparse.Namespace()).get_actions
    found: list[Word] = []
    groups: dict[str, list[str]] = {}
    for name, point in sorted(app.command_manager):
        group, _blank, rest = name.rpartition(" ")
        try:
            about = _line(inspect.getdoc(point.load()))
            options = tuple(map(_option, actions_of(name.split())))
        except Exception:  # noqa: BLE001, S112  (what cannot be loaded cannot be run)
            continue
        if group:
            groups.setdefault(group, []).append(rest)
        found.append(Word(f" {group}" if group else "", rest, about, options))
    found += [Word("", group, ", ".join(rest)) for group, rest in groups.items()]
    # The words of every command may follow ``help``.
    return found + [Word(f" help{word.before}", word.name, word.about) for word in found]


def _option(action: argparse.Action) -> Option:
    return Option(
        tuple(action.option_strings),
        _line(action.help),
        action.nargs != 0,
        tuple(map(str, action.choices or ())),
        action.metavar in _FILES,
    )


def _line(text: str | None) -> str:
    """Return the first clause of a help text, without what means something to a shell."""
    clause = (text or "").partition("\n")[0].partition(";")[0].partition(" (")[0]
    return clause.replace("'", "").rstrip(".")


def _offered(found: Sequence[Word]) -> dict[str, list[Word]]:
    """Return the words that may come next, by the words before them."""
    offered: dict[str, list[Word]] = {}
    for word in sorted(found, key=lambda each: each.path):
        offered.setdefault(word.before, []).append(word)
    return offered


def _where(found: Iterable[Word]) -> str:
    """Return the pattern of all paths, for a ``case`` that finds out which words are there already."""
    return "|".join(sorted(shlex.quote(word.path) for word in found))


def _values(found: Iterable[Word], files: str, choices: Callable[[Option], str]) -> Iterator[str]:
    """Yield the branches of a ``case`` on a path and the option in front of the cursor.

    :param files: what offers files.
    :param choices: returns what offers an option's choices; it may be that there are none.
    """
    for word in found:
        for option in word.options:
            if option.value:
                pattern = "|".join(shlex.quote(f"{word.path}:{name}") for name in option.names)
                yield f"        {pattern}) {files if option.files else choices(option)}; return ;;"


def bash(found: Sequence[Word]) -> Iterator[str]:
    """Yield the lines of a script for bash; it needs no other."""
    yield "_backupfw() {"
    yield "    local at='' before=${COMP_WORDS[COMP_CWORD-1]} now=${COMP_WORDS[COMP_CWORD]} i"
    yield "    # '=' is a word of its own."
    yield "    [[ $now == = ]] && now=''"
    yield "    [[ $before == = ]] && before=${COMP_WORDS[COMP_CWORD-2]}"
    yield "    for ((i = 1; i < COMP_CWORD; i++)); do"
    yield '        case "$at ${COMP_WORDS[i]}" in'
    yield f'        {_where(found)}) at+=" ${{COMP_WORDS[i]}}" ;;'
    yield "        *) break ;;"
    yield "        esac"
    yield "    done"
    yield "    COMPREPLY=()"
    yield '    case "$at:$before" in'
    yield from _values(
        found,
        "compopt -o default",
        lambda one: f'COMPREPLY=($(compgen -W {shlex.quote(" ".join(one.choices))} -- "$now"))',
    )
    yield "    esac"
    yield '    case "$at:$now" in'
    # Branches for options come first: a word can be a command and the beginning of other commands.
    commands = [word for word in found if word.options]
    for word in commands:
        names = shlex.quote(" ".join(name for option in word.options for name in option.names))
        yield f'        {shlex.quote(f"{word.path}:-")}*) COMPREPLY=($(compgen -W {names} -- "$now")) ;;'
    for before, offered in _offered(found).items():
        names = shlex.quote(" ".join(word.name for word in offered))
        yield f'        {shlex.quote(f"{before}:")}*) COMPREPLY=($(compgen -W {names} -- "$now")) ;;'
    for word in commands:
        yield f"        {shlex.quote(f'{word.path}:')}*) compopt -o default ;;"
    yield "    esac"
    yield "}"
    yield "complete -F _backupfw backupfw"


def _described(name: str, about: str) -> str:
    """Return a name with what it is about, for zsh's ``_describe``."""
    return shlex.quote(f"{name.replace(':', chr(92) + ':')}:{about}")


def zsh(found: Sequence[Word]) -> Iterator[str]:
    """Yield the lines of a function for zsh."""
    yield "#compdef backupfw"
    yield "_backupfw() {"
    yield "    local at='' i"
    yield "    local -a offered"
    yield "    for ((i = 2; i < CURRENT; i++)); do"
    yield '        case "$at ${words[i]}" in'
    yield f'        {_where(found)}) at+=" ${{words[i]}}" ;;'
    yield "        *) break ;;"
    yield "        esac"
    yield "    done"
    yield "    local before=${words[CURRENT-1]}"
    yield "    # '--format=' and what follows is one word."
    yield "    if [[ ${words[CURRENT]} == --*=* ]]; then"
    yield "        before=${words[CURRENT]%%=*}"
    yield "        compset -P '*='"
    yield "    fi"
    yield '    case "$at:$before" in'
    yield from _values(
        found, "_files", lambda one: f"compadd -- {shlex.join(one.choices)}" if one.choices else ":"
    )
    yield "    esac"
    yield '    case "$at:${words[CURRENT]}" in'
    # Options first, as for bash.
    commands = [word for word in found if word.options]
    for word in commands:
        names = " ".join(_described(name, one.about) for one in word.options for name in one.names)
        yield f"        {shlex.quote(f'{word.path}:-')}*) offered=({names}); _describe -o option offered ;;"
    for before, offered in _offered(found).items():
        names = " ".join(_described(word.name, word.about) for word in offered)
        yield f"        {shlex.quote(f'{before}:')}*) offered=({names}); _describe command offered ;;"
    for word in commands:
        yield f"        {shlex.quote(f'{word.path}:')}*) _files ;;"
    yield "    esac"
    yield "}"
    yield "# Read by compinit it is the function's body; sourced, it says what it is for."
    yield 'if [[ $funcstack[1] == _backupfw ]]; then _backupfw "$@"; else compdef _backupfw backupfw; fi'


def fish(found: Sequence[Word]) -> Iterator[str]:
    """Yield the lines of a script for fish."""
    patterns = " ".join(sorted(f"'{word.path}'" for word in found))
    yield "function __backupfw_at"
    yield "    set -l at ''"
    yield "    for word in (commandline -opc)[2..]"
    yield '        switch "$at $word"'
    yield f"            case {patterns}"
    yield '                set at "$at $word"'
    yield "            case '*'"
    yield "                break"
    yield "        end"
    yield "    end"
    yield '    test "$at" = "$argv[1]"'
    yield "end"
    for before, offered in _offered(found).items():
        for word in offered:
            yield (
                f"complete -c backupfw -f -n \"__backupfw_at '{before}'\""
                f" -a {word.name} -d {shlex.quote(word.about)}"
            )
    for word in found:
        for option in word.options:
            spelt = " ".join(
                f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names
            )
            value = ""
            if option.files:
                value = " -r -F"
            elif option.value:
                value = f" -x -a '{' '.join(option.choices)}'"
            yield (
                f"complete -c backupfw -n \"__backupfw_at '{word.path}'\""
                f" {spelt}{value} -d {shlex.quote(option.about)}"
            )


SCRIPTS: dict[str, Callable[[Sequence[Word]], Iterator[str]]] = {"bash": bash, "fish": fish, "zsh": zsh}
