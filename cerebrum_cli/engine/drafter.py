"""Guess the next tokens of a reply by looking up earlier text: the prompt, the reply itself, and other samples.

A lookup follows one place in earlier text. Each token that is sampled shows whether the text there continued in the
same way, drafted or not, so acceptance is learned without evaluating anything in vain. Everything depends on tokens
alone: the same request gets the same drafted tokens again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cerebrum_cli.engine.step_costs import MAX_DRAFT

SourceKind = Literal["own", "sibling"]

NGRAM_LENGTHS = (5, 3)  # tokens that a new lookup has to match, longest first
MAX_MATCH = 32  # longer matches are not distinguished
MAX_MISSES = 3  # steps in a row in which no drafted token was accepted; then only long matches are tried
RETRY_MATCH = 16  # tokens
MATCH_CLASSES = (5, 8, 16, 32)  # lengths from which acceptance is learned separately
PRIORS: dict[SourceKind, tuple[float, ...]] = {
    "own": (0.2, 0.4, 0.8, 0.95, 0.995),
    "sibling": (0.3, 0.5, 0.6, 0.7, 0.8),
}
PRIOR_WEIGHT = 4  # lookups that a prior counts as


class DraftToken(NamedTuple):
    """A guessed token, and the estimated probability that it and all before it are accepted."""

    token: int
    probability: float


@dataclass(frozen=True, slots=True, eq=False)
class TokenIndex:
    """Tokens of a sample by position: its prompt, then its reply, which grows while it is generated."""

    prompt: Sequence[int]
    reply: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.reply)

    def __getitem__(self, position: int) -> int:
        length = len(self.prompt)
        return self.prompt[position] if position < length else self.reply[position - length]

    def window(self, start: int, stop: int) -> tuple[int, ...]:
        length = len(self.prompt)
        if stop <= length:
            return tuple(self.prompt[start:stop])
        return (*self.prompt[start:], *self.reply[max(0, start - length) : stop - length])


@dataclass(slots=True, eq=False)
class DraftState:
    """The place in earlier text that a sample follows: `position` of `source` is expected next, after `match` tokens.

    `indexed` is the number of the sample's tokens that were processed, `misses` that of steps in a row in which none
    was accepted.
    """

    text: TokenIndex
    indexed: int
    source: TokenIndex | None = None
    position: int = 0
    match: int = 0
    misses: int = 0

    @property
    def kind(self) -> SourceKind:
        return "own" if self.source is self.text else "sibling"

    def record(self, accepted: int) -> None:
        self.misses = 0 if accepted else self.misses + 1


class Drafter:
    """Drafts tokens for all samples of one request."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._prompt = prompt
        self._index: dict[tuple[int, ...], tuple[TokenIndex | None, int]] = {}  # the text is None within the prompt
        self._texts: list[TokenIndex] = []
        self._accepted: dict[tuple[SourceKind, int], tuple[int, int]] = {}  # right lookups, and all, by kind and match

    def start(self, reply: list[int]) -> DraftState:
        """Start to draft for a sample with its reply so far; the longest of the other replies is followed first."""
        text = TokenIndex(self._prompt, reply)
        if not self._texts:
            for position in range(len(self._prompt)):
                self._add_ngrams(text, position)
        state = DraftState(text, len(self._prompt))
        longest = max(self._texts, key=len, default=None)
        if longest and len(longest) > len(self._prompt):
            state.source, state.position, state.match = longest, len(self._prompt), MAX_MATCH
        self._texts.append(text)
        return state

    def draft(self, state: DraftState, limit: int) -> list[DraftToken]:
        """Guess up to `limit` tokens after those sampled so far."""
        self._catch_up(state)
        tokens: list[DraftToken] = []
        source, text = state.source, state.text
        if source is None or (state.misses >= MAX_MISSES and state.match < RETRY_MATCH):
            return tokens
        kind, probability = state.kind, 1.0
        for index in range(min(limit, MAX_DRAFT)):
            position = state.position + index
            if position < len(source):
                token = source[position]
            elif source is text:  # a repetition continues with what was just guessed
                token = tokens[position - len(source)].token
            else:
                break
            probability *= self._probability(kind, state.match + index)
            tokens.append(DraftToken(token, probability))
        return tokens

    def _probability(self, kind: SourceKind, match: int) -> float:
        """Estimated probability that the next token of a lookup is right."""
        match_class = bisect_right(MATCH_CLASSES, match)
        right, total = self._accepted.get((kind, match_class), (0, 0))
        return (PRIORS[kind][match_class] * PRIOR_WEIGHT + right) / (PRIOR_WEIGHT + total)

    def _catch_up(self, state: DraftState) -> None:
        text = state.text
        for position in range(state.indexed, len(text)):
            self._follow(state, text[position])
            occurrence = self._add_ngrams(text, position)
            if state.source is None and occurrence:
                source, continuation = occurrence
                state.source, state.position = source or text, continuation
                state.match = match_length(state.source, continuation, text, position + 1)
        state.indexed = len(text)

    def _follow(self, state: DraftState, token: int) -> None:
        """Compare the token that was expected with the one sampled."""
        source = state.source
        if source is None:
            return
        if state.position >= len(source):  # the other sample has ended, or is not ahead
            state.source = None
            return
        is_right = source[state.position] == token
        key = state.kind, bisect_right(MATCH_CLASSES, state.match)
        right, total = self._accepted.get(key, (0, 0))
        self._accepted[key] = right + int(is_right), total + 1
        if is_right:
            state.position += 1
            state.match = min(state.match + 1, MAX_MATCH)
        else:
            state.source = None

    def _add_ngrams(self, text: TokenIndex, position: int) -> tuple[TokenIndex | None, int] | None:
        """Index what ends at a position; return where the longest of it occurred last, and was continued."""
        is_prompt = position < len(self._prompt)
        longest: tuple[TokenIndex | None, int] | None = None
        for length in NGRAM_LENGTHS:
            if position + 1 >= length:
                ngram = text.window(position + 1 - length, position + 1)
                longest = longest or self._index.get(ngram)
                self._index[ngram] = (None if is_prompt else text, position + 1)
        return longest


def match_length(source: TokenIndex, source_end: int, text: TokenIndex, end: int) -> int:
    """Number of equal tokens before two positions, at most MAX_MATCH."""
    most = min(source_end, end, MAX_MATCH)
    return next((n for n in range(most) if source[source_end - 1 - n] != text[end - 1 - n]), most)
