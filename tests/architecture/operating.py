"""What the pages for operators give to copy, taken out of their text."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from tests.architecture.checkout import ROOT

#: What operators read, besides the pages of drivers.
PAGES = [ROOT / "docs" / f"{name}.md" for name in ("operating", "protecting", "watching", "several-hosts")]
UNITS = ROOT / "etc" / "systemd"
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One block of code.

    :ivar language: what stands behind its fence: ``ini``, ``sql``, ``yaml``; empty for commands.
    """

    language: str
    text: str


class Section:
    """The blocks below one heading, up to the next one of any level.

    :param heading: the heading's text.
    """

    def __init__(self, heading: str) -> None:
        text = "".join(page.read_text() for page in PAGES)
        parts = re.split(r"^#+ (.*)$", text, flags=re.MULTILINE)
        found = [body for title, body in zip(parts[1::2], parts[2::2], strict=True) if title == heading]
        assert len(found) == 1, f"the pages for operators have {len(found)} sections named {heading!r}"
        self.blocks = [Block(*match) for match in _BLOCK.findall(found[0])]

    def only(self, language: str) -> str:
        """The text of the one block in this language."""
        (text,) = [block.text for block in self.blocks if block.language == language]
        return text

    def commands(self, program: str) -> list[list[str]]:
        """The words of each command line that begins with a program, in the order of the text."""
        lines = [line for block in self.blocks if not block.language for line in block.text.splitlines()]
        split = [shlex.split(line, comments=True) for line in lines]
        return [words for words in split if words and words[0] == program]


def unit_lines(text: str, name: str) -> list[str]:
    """The values that a unit's text gives to one setting, e.g. ``ExecStart``."""
    return re.findall(rf"^{name}=(.*)$", text, re.MULTILINE)


def replaced(text: str, values: Mapping[str, str]) -> str:
    """Put values in the place of an example's addresses and secrets; each of them must be there."""
    for example, value in values.items():
        assert example in text, f"the example does not say {example!r}"
        text = text.replace(example, value)
    return text


def substituted(text: str, values: Mapping[str, str]) -> str:
    """Like :func:`replaced`, for a part of an example that need not have all of them."""
    for example, value in values.items():
        text = text.replace(example, value)
    return text
