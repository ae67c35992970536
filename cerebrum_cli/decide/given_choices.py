"""The choices of a decision: yes and no, names with descriptions, or the numbers of a score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import permutations
from pathlib import Path
from string import ascii_uppercase
from typing import NamedTuple, TypeAlias

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.files import exists, read_text
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts, truncate, well_formed

MOST = 100
HOW = "separate choices by commas, or name an existing file with one on each line"
MANY = 20  # with more choices, fewer orders
MAX_BYTES = 1_000_000  # of a file with choices
SHOWN = 60  # characters of a name in an error
VOTES = "votes: --votes 8"  # what helps where no probability can be read
Order: TypeAlias = tuple[int, ...]  # positions of the choices, in the order in which a prompt lists them
_QUOTED = r'\s*"[^"]*"\s*'
# A name, and perhaps its description; either may be in quotes as a whole.
_ITEM = re.compile(rf"(?P<name>{_QUOTED}(?=[=,]|$)|[^=,]*)(?:=(?P<description>{_QUOTED}(?=,|$)|[^,]*))?(?:,|$)")
_RANGE = re.compile(r"(-?\d{1,9})\.\.(-?\d{1,9})")


class Choice(NamedTuple):
    """A possible answer, and what it means if the name alone does not say that."""

    name: str
    description: str = ""


@frozen
class GivenChoices:
    """Two to a hundred choices, in the order in which they were given; those of a score are whole numbers."""

    items: tuple[Choice, ...]
    is_score: bool = False

    @property
    def names(self) -> Texts:
        return tuple(choice.name for choice in self.items)

    @property
    def orders(self) -> Sequence[Order]:
        """The orders in which prompts list the choices, so that no place of a list favors a choice.

        With two or three choices these are all. With more they are four, in which the places of a choice are spread
        over the list, and with many, whose lists are most of a prompt, the given one and its reverse. Choices given in
        the reverse order are listed in the same orders.
        """
        count = len(self.items)
        if self.is_score:
            return [tuple(range(count))]
        if count <= 3:
            return list(permutations(range(count)))
        given = tuple(range(count))
        if count > MANY:
            return [given, given[::-1]]
        half = count // 2
        middle = range(half, count - half)  # the one between the halves of an odd number
        turned = [*range(half // 2, half), *range(half // 2)]
        mirrored = [count - 1 - place for place in reversed(turned)]
        swapped = (*turned, *middle, *mirrored)
        return [given, given[::-1], swapped, swapped[::-1]]

    @property
    def is_yes_or_no(self) -> bool:
        return {(choice.name.casefold(), choice.description) for choice in self.items} == {("yes", ""), ("no", "")}

    @property
    def may_have_letters(self) -> bool:
        return not self.is_score and len(self.items) <= len(ascii_uppercase)

    @property
    def other_ways(self) -> str:
        """What to do if beginnings of replies do not tell these choices apart."""
        if self.is_score:
            return f"score with fewer numbers, or take {VOTES}"
        return f"give them names that begin with different words, add --letters, or take {VOTES}"

    def find(self, name: str) -> int:
        """The position of a choice by its name, written in any case. Raises KeyError."""
        exact = {each: position for position, each in reversed([*enumerate(self.names)])}
        folded = {each.casefold(): position for each, position in reversed(exact.items())}
        written = name.strip()
        return exact[written] if written in exact else folded[written.casefold()]


YES_OR_NO = GivenChoices((Choice("yes"), Choice("no")))


def choices_of(items: Iterable[Choice], how: str = f"give 2 to {MOST}") -> GivenChoices:
    """Choices that can be told apart, with names without spaces around them. Raises UsageError, which says `how`."""
    found = tuple(choice._replace(name=well_formed(choice.name).strip()) for choice in items)
    if len(found) == 1:
        problem = f"there is only one choice, {truncate(found[0].name, SHOWN)!r}"
        raise UsageError(problem, how)
    if not 2 <= len(found) <= MOST:
        raise UsageError(f"there are {len(found)} choices", f"give 2 to {MOST}")
    if not all(choice.name for choice in found):
        raise UsageError("a choice has no name", "write --choices A,B,C")
    [(name, count)] = Counter(choice.name.casefold() for choice in found).most_common(1)
    if count > 1:
        raise UsageError(f"the choice {truncate(name, SHOWN)!r} is given {count} times", "give each once")
    return GivenChoices(found)


def parse_choices(value: str) -> GivenChoices:
    """The value of `--choices`: names, each perhaps with `=description`, or a file. Raises UsageError."""
    path = Path(value)
    if value and exists(path):
        lines = (line.strip().partition("\t") for line in read_text(path, MAX_BYTES).split("\n"))
        return choices_of((Choice(name, description.strip()) for name, _, description in lines if name), HOW)
    if well_formed(value) != value:
        raise UsageError("--choices is not UTF-8 text", "convert it to UTF-8")
    items = (item for item in _ITEM.finditer(value) if item[0] not in ("", ","))
    found = (Choice(_unquoted(item["name"]), _unquoted(item["description"] or "")) for item in items)
    return choices_of(found, HOW)


def _unquoted(text: str) -> str:
    text = text.strip()
    is_quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1].strip() if is_quoted else text


def parse_score(value: str) -> GivenChoices:
    """The value of `--score`: the least and the largest number. Raises UsageError."""
    match = _RANGE.fullmatch(value.strip())
    least, largest = map(int, match.groups()) if match else (0, 0)
    return score_choices(least, largest, value)


def score_choices(least: int, largest: int, value: str = "") -> GivenChoices:
    """The whole numbers of a range, which may be written as a `value`. Raises UsageError for too few or too many."""
    if not 1 <= largest - least < MOST:
        written = value or f"{least}..{largest}"
        raise UsageError.invalid("--score", written, f"A..B, such as 1..5, with 2 to {MOST} numbers")
    return GivenChoices(tuple(Choice(str(number)) for number in range(least, largest + 1)), is_score=True)
