"""Guess the next tokens of a reply by looking up earlier text: the prompt, the reply itself, and other samples.

A lookup follows one place in earlier text. Each token that is sampled shows whether the text there continued in the
same way, drafted or not, so acceptance is learned without evaluating anything in vain. Everything depends on tokens
alone: the same request gets the same draft tokens again.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from cerebrum_cli.engine.step_costs import MAX_DRAFT

SourceKind = Literal["own", "sibling"]

NGRAM_LENGTHS = (5, 3)  # tokens that a new lookup has to match, longest first
MAX_MATCH = 32  # longer matches are not distinguished
MAX_MISSES = 3  # steps in a row in which no draft token was accepted; then only long matches are tried
RETRY_MATCH = 16  # tokens
MATCH_CLASSES = (5, 8, 16, 32)  # lengths from which acceptance is learned separately
PRIORS: dict[SourceKind, tuple[float, ...]] = {
    "own": (0.2, 0.4, 0.8, 0.95, 0.995),
    "sibling": (0.3, 0.5, 0.6, 0.7, 0.8),
}
PRIOR_WEIGHT = 4  # lookups that a prior counts as


class DraftedText(Protocol):
    """Tokens of a prompt, and of the reply that is generated: a sequence."""

    generated: list[int]

    @property
    def prompt_length(self) -> int: ...

    @property
    def length(self) -> int: ...

    def tokens_from(self, position: int, count: int) -> Sequence[int]: ...


class DraftToken(NamedTuple):
    """A guessed token, and the estimated probability that it and all before it are accepted."""

    token: int
    probability: float


@dataclass(slots=True, eq=False)
class DraftState:
    """The place in earlier text that a sample follows: `position` of `source` is expected next, after `match` tokens.

    `indexed` is the number of the sample's tokens that were processed, `misses` that of steps in a row in which none
    was accepted.
    """

    sample: DraftedText
    indexed: int
    source: DraftedText | None = None
    position: int = 0
    match: int = 0
    misses: int = 0

    @property
    def kind(self) -> SourceKind:
        return "own" if self.source is self.sample else "sibling"


class Drafter:
    """Drafts tokens for all samples of one request."""

    def __init__(self) -> None:
        self._index: dict[tuple[int, ...], tuple[DraftedText | None, int]] = {}  # the sample is None within the prompt
        self._samples: list[DraftedText] = []
        self._accepted: dict[tuple[SourceKind, int], tuple[int, int]] = {}  # right lookups, and all, by kind and match

    def start(self, sample: DraftedText) -> DraftState:
        """Start to draft for a sample; the longest of the other samples is followed first."""
        prompt_length = sample.prompt_length
        if not self._samples:
            for position in range(prompt_length):
                self._add_ngrams(sample, position)
        state = DraftState(sample, prompt_length)
        longest = max(self._samples, key=lambda other: other.length, default=None)
        if longest and longest.generated:
            state.source, state.position, state.match = longest, prompt_length, MAX_MATCH
        self._samples.append(sample)
        return state

    def draft(self, state: DraftState, limit: int) -> list[DraftToken]:
        """Guess up to `limit` tokens after those sampled so far."""
        self._catch_up(state)
        source, limit = state.source, min(limit, MAX_DRAFT)
        if source is None or limit <= 0 or (state.misses >= MAX_MISSES and state.match < RETRY_MATCH):
            return []
        tokens = [*source.tokens_from(state.position, limit)]
        if source is state.sample:  # a repetition continues with what was just guessed
            for index in range(limit - len(tokens)):
                tokens.append(tokens[index])
        probability, draft = 1.0, []
        for index, token in enumerate(tokens):
            probability *= self._probability(state.kind, state.match + index)
            draft.append(DraftToken(token, probability))
        return draft

    def _probability(self, kind: SourceKind, match: int) -> float:
        match_class = bisect_right(MATCH_CLASSES, match)
        right, total = self._accepted.get((kind, match_class), (0, 0))
        return (PRIORS[kind][match_class] * PRIOR_WEIGHT + right) / (PRIOR_WEIGHT + total)

    def _catch_up(self, state: DraftState) -> None:
        sample = state.sample
        for position, token in enumerate(
            sample.tokens_from(state.indexed, sample.length - state.indexed), state.indexed
        ):
            self._follow(state, token)
            occurrence = self._add_ngrams(sample, position)
            if state.source is None and occurrence:
                source, continuation = occurrence
                state.source, state.position = source or sample, continuation
                state.match = match_length(state.source, continuation, sample, position + 1)
        state.indexed = sample.length

    def _follow(self, state: DraftState, token: int) -> None:
        if state.source is None:
            return
        expected = state.source.tokens_from(state.position, 1)
        if not expected:  # the other sample has ended, or is not ahead
            state.source = None
            return
        key = state.kind, bisect_right(MATCH_CLASSES, state.match)
        right, total = self._accepted.get(key, (0, 0))
        if expected[0] == token:
            right += 1
            state.position += 1
            state.match = min(state.match + 1, MAX_MATCH)
        else:
            state.source = None
        self._accepted[key] = right, total + 1

    def _add_ngrams(self, sample: DraftedText, position: int) -> tuple[DraftedText | None, int] | None:
        """Index what ends at a position; return where the longest of it occurred last, and was continued."""
        is_prompt = position < sample.prompt_length
        longest: tuple[DraftedText | None, int] | None = None
        for length in NGRAM_LENGTHS:
            if position + 1 >= length:
                ngram = tuple(sample.tokens_from(position + 1 - length, length))
                longest = longest or self._index.get(ngram)
                self._index[ngram] = (None if is_prompt else sample, position + 1)
        return longest


def match_length(source: DraftedText, source_end: int, sample: DraftedText, end: int) -> int:
    """Number of equal tokens before two positions, at most MAX_MATCH."""
    most = min(source_end, end, MAX_MATCH)
    pairs = zip(source.tokens_from(source_end - most, most), sample.tokens_from(end - most, most), strict=True)
    return next((length for length, (a, b) in enumerate(reversed([*pairs])) if a != b), most)
