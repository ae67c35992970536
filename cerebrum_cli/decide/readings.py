"""How likely a reply is to name each choice: the beginnings that name one, and their probabilities.

A beginning is a sequence of tokens. Servers report only first tokens: by their ids, or those of chat completions by
their texts, each of which may be any part of a name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from math import exp, fsum, log
from typing import Any, NamedTuple, TypeAlias

from cerebrum_cli.core.conversation import Text, Tokens
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.vocabulary import Vocabulary

LEAST = 1e-30  # share of a choice, so that a logarithm exists
MOST_UNCLEAR = 0.01  # of the probability of choices, that of first tokens which several of them have

Reply: TypeAlias = tuple[int, ...] | str  # a name as tokens or as text
Spelled: TypeAlias = Sequence[Collection[Reply]]  # the replies that give each choice
Owners: TypeAlias = Mapping[Any, int]  # the position of the choice that each beginning names


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

    def unnamed(self, names: Texts) -> str | None:
        """The first of the names of the choices without a beginning of its own."""
        named = {*self.owners.values()}
        return next((name for position, name in enumerate(names) if position not in named), None)


def sequences_of(spelled: Spelled) -> Beginnings:
    """The shortest token sequences that tell a choice from the others."""
    owners = {own[0]: position for position, own in own_beginnings(spelled, meanings(spelled))}
    return Beginnings(owners, {})


def first_tokens_of(spelled: Spelled) -> Beginnings:
    """The ids of the first tokens that tell a choice from the others."""
    meant = meanings(spelled)
    owners = {own[0][0]: position for position, own in own_beginnings(spelled, meant) if len(own[0]) == 1}
    shared = {reply[0]: choices for reply, choices in meant.items() if len(reply) == 1 and len(choices) > 1}
    return Beginnings(owners, shared)


def first_texts_of(spelled: Spelled) -> Beginnings:
    """The texts of any length that tell a choice from the others."""
    meant = meanings(spelled)
    owners = {text: position for position, own in own_beginnings(spelled, meant) for text in own}
    return Beginnings(owners, {text: choices for text, choices in meant.items() if len(choices) > 1})


def meanings(spelled: Spelled) -> Mapping[Reply, Set[int]]:
    """The choices that a reply may come to name after each beginning."""
    meant: dict[Reply, set[int]] = defaultdict(set)
    for position, replies in enumerate(spelled):
        for reply in replies:
            for length in range(1, 1 + len(reply)):
                meant[reply[:length]].add(position)
    return meant


def own_beginnings(spelled: Spelled, meant: Mapping[Reply, Set[int]]) -> Iterator[tuple[int, Sequence[Reply]]]:
    """Yield the position of a choice, and the beginnings of one of its replies that lead to no other choice.

    They begin with the shortest. If all of the reply begins another one, it is the only one.
    """
    for position, replies in enumerate(spelled):
        for reply in replies:
            lengths = (length for length in range(1, 1 + len(reply)) if meant[reply[:length]] == {position})
            yield position, [reply[:length] for length in lengths] or [reply]


def spellings(text: str) -> Texts:
    """How a reply may begin with a text: also with a space or a capital letter before the rest of it."""
    capitalized = text[:1].upper() + text[1:]
    return tuple(dict.fromkeys((text, f" {text}", capitalized, f" {capitalized}")))


def token_spellings(vocabulary: Vocabulary, text: str, last: int | None) -> Set[tuple[int, ...]]:
    """The spellings of a text as tokens after the `last` one of a prompt."""
    before = Tokens(() if last is None else (last,))
    skipped = len(vocabulary.tokenize((before,)))
    texts = [spelled for spelled in spellings(text) if may_have_space(vocabulary, last) or not spelled.startswith(" ")]
    return {vocabulary.tokenize((before, Text(spelled)))[skipped:] for spelled in texts}


def may_have_space(vocabulary: Vocabulary, last: int | None) -> bool:
    """Whether a space may follow a token: neither a control token nor white space."""
    if last is None:
        return True
    piece = vocabulary.piece(last)  # empty for a control token
    return bool(piece) and not piece[-1:].isspace()


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


def share_named(owners: Owners, logprobs: Mapping[Any, float]) -> float:
    """The share of replies that begin with a choice."""
    shares = [exp(logprob) for beginning, logprob in logprobs.items() if _extended(owners, beginning) is None]
    return min(1.0, fsum(shares))


def unlisted(owners: Owners, listed: Mapping[Any, float]) -> dict[Any, float]:
    """The largest log probability, by one of its beginnings, of each choice without a listed one.

    A token that is not listed is at most as likely as the least likely that is.
    """
    least = exp(min(listed.values()))
    rest = 1 - fsum(map(exp, listed.values()))
    found = {owners[beginning] for beginning in listed if beginning in owners}
    own: dict[int, list[Any]] = defaultdict(list)
    for beginning, position in owners.items():
        if position not in found:
            own[position].append(beginning)
    return {beginnings[0]: log(max(LEAST, min(least * len(beginnings), rest))) for beginnings in own.values()}


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
