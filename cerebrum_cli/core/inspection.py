"""The least certain tokens of a reply, found by evaluating it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import nsmallest
from math import log
from typing import NamedTuple

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import AlternativesEvent, Event, ForcedTokens, TokenLogprob
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import one_line
from cerebrum_cli.core.token_ids import TokenIds

MAX_LIKELIEST = 20  # tokens in each place, as in OpenAI's API
MAX_ROWS = 10
CERTAIN = 0.95  # probability of a token that is not worth a row
MAX_BEFORE = 24  # characters
BEFORE_TOKENS = 16
LOGPROB_DIGITS = 5


@frozen
class GivenReply:
    """The tokens of a reply, the conversation before it, and where tokens in it were not chosen by the model."""

    conversation: Conversation
    tokens: TokenIds
    forced: ForcedTokens


class ScoredToken(NamedTuple):
    """A token that is, or could have been, in a place of a reply."""

    id: int
    text: str
    logprob: float


class UncertainToken(NamedTuple):
    """A token of a reply, the words before it, and the likeliest tokens in its place: one more than asked for."""

    position: int
    before: str
    given: ScoredToken
    likeliest: tuple[ScoredToken, ...]

    @property
    def alternatives(self) -> tuple[ScoredToken, ...]:
        others = tuple(token for token in self.likeliest if token.id != self.given.id)
        return others[: len(self.likeliest) - 1]

    def as_object(self) -> JsonDict:
        """The object that `--json` prints; as in OpenAI's API, the given token may be one of the likeliest."""
        likeliest = [_token_object(token) for token in self.likeliest[:-1]]
        return {"position": self.position, **_token_object(self.given), "top_logprobs": likeliest}


class LeastCertain:
    """Collects the least certain tokens of a reply from the events of its inspection."""

    def __init__(self, reply: GivenReply) -> None:
        self._reply = reply
        self._events: list[AlternativesEvent] = []

    def emit(self, event: Event) -> None:
        if not isinstance(event, AlternativesEvent):
            return
        is_forced = any(place.holds(event.position) for place in self._reply.forced)
        if event.given.logprob < log(CERTAIN) and not is_forced:
            self._events = nsmallest(MAX_ROWS, (*self._events, event), key=lambda known: known.given.logprob)

    def close(self) -> None:
        """Do nothing: a collector holds no resources."""

    def tokens(self, detokenize: Callable[[Sequence[int]], str]) -> tuple[UncertainToken, ...]:
        """The tokens, the least certain first; those with a probability near 1 are left out."""

        def scored(token: TokenLogprob) -> ScoredToken:
            return ScoredToken(token.token, detokenize((token.token,)), token.logprob)

        rows = []
        for event in self._events:
            start = max(0, event.position - BEFORE_TOKENS)
            before = last_words(detokenize(self._reply.tokens[start : event.position]))
            likeliest = tuple(map(scored, event.likeliest))
            rows.append(UncertainToken(event.position, before, scored(event.given), likeliest))
        return tuple(rows)


def parse_likeliest(source: str, text: str) -> int:
    if text.isdecimal() and 1 <= int(text) <= MAX_LIKELIEST:
        return int(text)
    raise UsageError.invalid(source, text, f"a whole number from 1 to {MAX_LIKELIEST}")


def last_words(text: str) -> str:
    line = one_line(text.lstrip("\ufffd"))
    if len(line) <= MAX_BEFORE:
        return line
    cut = line[-MAX_BEFORE:]
    return cut.partition(" ")[2] or cut


def _token_object(token: ScoredToken) -> JsonDict:
    return {"id": token.id, "token": token.text, "logprob": round(token.logprob, LOGPROB_DIGITS)}
