"""Controls, which see each token of a reply and may intervene after it; and where its answer starts."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol, TypeAlias

from cerebrum_cli.core.declaration import TokenBias
from cerebrum_cli.core.events import FinishReason

MAX_PERIOD = 256  # tokens
MIN_REPEATS = 4
MIN_TOKENS = 128  # of all repeats together
PROBE = 32  # tokens at the end whose earlier occurrences give the periods to try; at most MIN_TOKENS / MIN_REPEATS
TOKEN_BYTES = 4


class EndReply(NamedTuple):
    reason: FinishReason


class Force(NamedTuple):
    tokens: tuple[int, ...]


# A bias applies where the next token is sampled; servers ignore it.
Intervention: TypeAlias = EndReply | Force | TokenBias


@dataclass(frozen=True, slots=True)
class Upcoming:
    """Tokens of a reply that were not fed yet, and the bytes of each; `held` is text before them, not fed either."""

    tokens: array[int]
    pieces: Sequence[bytes]
    held: bytes = b""

    def before(self, marker: str, fed: str = "") -> int:
        """Number of tokens that end before the first marker, which may begin in the text that was `fed`."""
        start = (fed.encode() + self.held + b"".join(self.pieces)).find(marker.encode())
        if start < 0:
            return len(self.tokens)
        ends = accumulate(map(len, self.pieces), initial=len(fed.encode()) + len(self.held))
        return max(0, bisect_right(list(ends), start) - 1)


class ReplyControl(Protocol):
    """State of one reply, which decides after each of its tokens whether to intervene."""

    def feed(self, tokens: Sequence[int], text: str) -> None:
        """Add tokens, sampled or forced, and the text that they complete."""

    def intervene(self) -> Intervention | None:
        """Return the action after the last token; not called while forced tokens are pending."""

    def lets_pass(self, upcoming: Upcoming) -> int:
        """Number of the next tokens after which it certainly does not intervene, so that they may be fed together."""

    @property
    def horizon(self) -> int | None:
        """Number of tokens after which it has certainly decided whether to force any; None if it has, or never does."""


# Creates the control of one reply; it is sent to the nodes of a cluster, and so must be picklable.
ControlFactory: TypeAlias = Callable[[], ReplyControl]
# Where a reply is: in its reasoning, in markup or white space before its answer, or in its answer.
Stage = Literal["thinking", "undecided", "answer"]


class AnswerStart(Protocol):
    """Finds where the answer of one reply begins, and so where its grammar and its stop strings start to apply."""

    @property
    def stage(self) -> Stage:
        """Where the reply is."""

    @property
    def held(self) -> str:
        """Text that is part of the answer unless it turns out to be markup."""

    @property
    def rest(self) -> str:
        """Text that completes the markup that has begun; empty if none has."""

    @property
    def closing(self) -> tuple[int, ...]:
        """Tokens that end reasoning which is open; empty if none is."""

    def feed(self, tokens: Sequence[int], text: str) -> None:
        """Add tokens, sampled or forced, with their text."""

    def passes(self, token: int, text: str) -> bool:
        """Whether a token is markup, or white space, that may precede the answer here."""

    def begin(self) -> None:
        """Begin the answer with the next token."""

    def lets_pass(self, upcoming: Upcoming) -> int:
        """Number of the next tokens that certainly do not end the stage, so that they may be fed together."""


# Creates the state of one reply; picklable, as a `ControlFactory`.
AnswerStartFactory: TypeAlias = Callable[[], AnswerStart]


class Constraint(NamedTuple):
    """The grammar of one reply, as GBNF, and where it starts to apply: None for the first token.

    `markup` are tokens that the answer must not have, whatever the grammar: they would begin reasoning.
    """

    grammar: str
    start: AnswerStart | None = None
    markup: frozenset[int] = frozenset()

    @property
    def applies(self) -> bool:
        return self.start is None or self.start.stage == "answer"


@dataclass(eq=False)
class LoopCheck:
    """Ends a reply once its last tokens are a period of up to 256, at least 4 times, and at least 128 tokens.

    In a cycle, the tokens before each multiple of PROBE have occurred within the last period. Only after such a place
    is the cycle searched for, by bytes: that costs microseconds, and other text a hundredth of that a token.
    """

    horizon: int | None = None
    _tokens: array[int] = field(default_factory=lambda: array("i"))
    _probed: int = 0  # the last multiple of PROBE, and whether a cycle may end after it
    _may_end: bool = False

    def feed(self, tokens: Sequence[int], text: str) -> None:  # noqa: ARG002
        self._tokens.extend(tokens)

    def intervene(self) -> EndReply | None:
        tokens = self._tokens
        last = len(tokens) - len(tokens) % PROBE
        if last != self._probed:
            self._probed, self._may_end = last, recurs(tokens, last)
        return EndReply("repetition") if self._may_end and ends_in_cycle(tokens, len(tokens)) else None

    def lets_pass(self, upcoming: Upcoming) -> int:
        fed, tokens = len(self._tokens), self._tokens + upcoming.tokens
        for place in range(fed - fed % PROBE, len(tokens) + 1, PROBE):
            if recurs(tokens, place):
                for length in range(max(place, fed + 1), min(place + PROBE, len(tokens) + 1)):
                    if ends_in_cycle(tokens, length):
                        return length - fed - 1
        return len(upcoming.tokens)


def recurs(tokens: array[int], length: int) -> bool:
    """Whether the PROBE tokens that end the first `length` occur in the MAX_PERIOD before, too."""
    window = tokens[max(0, length - PROBE - MAX_PERIOD) : length].tobytes()
    start = len(window) - PROBE * TOKEN_BYTES
    return start > 0 and window.find(window[start:], 0, -1) >= 0


def ends_in_cycle(tokens: array[int], length: int) -> bool:
    window = tokens[max(0, length - MAX_PERIOD * MIN_REPEATS) : length].tobytes()
    start = len(window) - PROBE * TOKEN_BYTES
    probe, at = window[start:], start
    first = max(0, start - MAX_PERIOD * TOKEN_BYTES)
    while (at := window.rfind(probe, first, at + len(probe) - 1)) >= 0:
        period = start - at
        if period % TOKEN_BYTES:  # within a token
            continue
        needed = max(period * MIN_REPEATS, MIN_TOKENS * TOKEN_BYTES)
        if needed > len(window):
            return False
        if window[-needed:-period] == window[period - needed :]:
            return True
    return False
