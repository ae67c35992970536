"""How likely a reply is to name each choice: the beginnings that name one, and their probabilities."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence, Set
from math import exp, fsum, log
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import Text, Tokens
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.vocabulary import Vocabulary
from cerebrum_cli.decide.given_choices import GivenChoices
from cerebrum_cli.decide.prompts import spellings

LEAST = 1e-30  # share of a choice, so that a logarithm exists
# The position of the choice that each beginning of a reply names: tokens, or on some servers the text of a token.
Owners = Mapping[Any, int]
MOST_UNCLEAR = 0.01  # of the probability of choices, that of first tokens which several of them have


class Beginnings(NamedTuple):
    """The beginnings of replies that name a choice, and the choices of those with which several begin."""

    owners: Owners
    shared: Mapping[Any, Set[int]]

    def is_clear(self, logprobs: Mapping[Any, float]) -> bool:
        """Whether first tokens tell the choices apart.

        One that is a name and begins others, such as 1 and 10, is clear if the first tokens of these are there, too.
        """
        seen = {self.owners[beginning] for beginning in logprobs if beginning in self.owners}
        unclear, total = 0.0, 0.0
        for beginning, logprob in logprobs.items():
            if beginning in self.owners or beginning in self.shared:
                total += exp(logprob)
            if beginning in self.shared and not (beginning in self.owners and self.shared[beginning] <= seen):
                unclear += exp(logprob)
        return unclear <= MOST_UNCLEAR * total


def log_shares(owners: Owners, logprobs: Mapping[Any, float]) -> list[float]:
    """Logarithms of the probabilities of the choices, given that the reply names one of them.

    Tokens that begin the name of another choice count without it: "1" is not "10".
    """
    totals = [LEAST] * (1 + max(owners.values()))
    likeliest = max(logprobs.values())  # relative to which none is too small for a float
    shares = {beginning: exp(logprob - likeliest) for beginning, logprob in logprobs.items()}
    longer: dict[Any, list[float]] = defaultdict(list)  # shares of beginnings, by the shorter one that they extend
    for beginning, share in shares.items():
        longer[_extended(owners, beginning)].append(share)
    for beginning, share in shares.items():
        totals[owners[beginning]] += max(0.0, share - fsum(longer[beginning]))
    whole = fsum(totals)
    return [log(total / whole) for total in totals]


def _extended(owners: Owners, beginning: Any) -> Any:
    """The next shorter token sequence that a beginning extends; None if it extends none."""
    lengths = range(len(beginning) - 1, 0, -1) if isinstance(beginning, tuple) else ()
    return next((beginning[:length] for length in lengths if beginning[:length] in owners), None)


def average(readings: Sequence[Sequence[float]]) -> list[float]:
    """Probabilities of choices, from the logarithms of those of several orders; the same for any order of these."""
    means = [fsum(shares) / len(shares) for shares in zip(*readings, strict=True)]
    weights = [exp(mean) for mean in means]
    whole = fsum(weights)
    return [weight / whole for weight in weights]


class BeginningReader(ABC):
    """Finds the beginnings of replies that name a choice: they are as long as it takes to tell it from the others."""

    def __init__(self, choices: GivenChoices) -> None:
        self._choices = choices
        self._known: dict[int | None, Beginnings] = {}

    def find(self, prompt: Sequence[int]) -> Beginnings:
        """The beginnings of a reply to a prompt. Raises UsageError if a choice has no beginning of its own."""
        last = prompt[-1] if prompt else None
        if last not in self._known:
            self._known[last] = self._find(last)
        return self._known[last]

    def _find(self, last: int | None) -> Beginnings:
        names = self._choices.names
        replies = [(reply, position) for position, name in enumerate(names) for reply in self._replies(last, name)]
        meant: dict[Any, set[int]] = defaultdict(set)  # the choices that a reply may come to name after a beginning
        for reply, position in replies:
            for length in range(1, 1 + len(reply)):
                meant[reply[:length]].add(position)
        owners = {}
        for reply, position in replies:
            own = [reply[:length] for length in range(1, 1 + len(reply)) if meant[reply[:length]] == {position}]
            owners.update(dict.fromkeys(self._read(reply, own), position))
        for position in {*range(len(names))} - {*owners.values()}:
            problem = f"the beginning of a reply does not tell {names[position]!r} from another choice"
            raise UsageError(problem, self._choices.other_ways)
        shared = {key: meant[each] for each in meant if len(meant[each]) > 1 for key in self._read(each, ())}
        return Beginnings(owners, shared)

    @abstractmethod
    def _replies(self, last: int | None, name: str) -> set[Any]:
        """Replies with a name, in its spellings, after the last token of a prompt: tokens, or text."""

    @abstractmethod
    def _read(self, reply: Any, own: Sequence[Any]) -> Sequence[Any]:
        """The beginnings to read of a reply, of which its `own` lead to no other choice."""


class TokenReader(BeginningReader):
    """Finds token sequences; or first tokens with `first_only`, since servers report no others."""

    def __init__(self, choices: GivenChoices, vocabulary: Vocabulary, first_only: bool) -> None:
        super().__init__(choices)
        self._vocabulary = vocabulary
        self._first_only = first_only

    def _replies(self, last: int | None, name: str) -> set[Any]:
        before = Tokens(() if last is None else (last,))
        skipped = len(self._vocabulary.tokenize((before,)))
        may_have_space = last is None or self._ends_word(last)
        texts = [text for text in spellings(name) if may_have_space or not text.startswith(" ")]
        return {self._vocabulary.tokenize((before, Text(text)))[skipped:] for text in texts}

    def _ends_word(self, token: int) -> bool:
        """Whether a space may follow a token: neither a control token nor white space."""
        piece = self._vocabulary.piece(token)  # empty for a control token
        return bool(piece) and not piece[-1:].isspace()

    def _read(self, reply: Any, own: Sequence[Any]) -> Sequence[Any]:
        """The shortest of its own; without any, all of it begins another one."""
        shortest = own[0] if own else reply
        if self._first_only:
            return shortest if len(shortest) == 1 else ()
        return (shortest,)


class TextReader(BeginningReader):
    """Finds texts of first tokens, which are all that servers of chat completions report."""

    def _replies(self, last: int | None, name: str) -> set[Any]:  # noqa: ARG002
        return set(spellings(name))

    def _read(self, reply: Any, own: Sequence[Any]) -> Sequence[Any]:
        return own or (reply,)
