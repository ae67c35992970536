"""Requests for scores of given texts, their results, and the errors that refuse them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from cerebrum_cli.core.errors import CerebrumError, PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent, RefusedEvent, StageEvent
from cerebrum_cli.engine.sequence import Tokens


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Continuations of one context to score; an empty one has the score 0, whatever its context."""

    context: Tokens
    continuations: tuple[Tokens, ...]


class Score(NamedTuple):
    """Log-probability of a continuation after its context, summed over `tokens`.

    It `is_greedy` if each of the tokens is the most likely one at its place.
    """

    logprob_sum: float
    is_greedy: bool
    tokens: int


@dataclass(frozen=True, slots=True)
class LogprobScores:
    """The index of a finished request, and a score for each of its continuations, in order."""

    request: int
    scores: tuple[Score, ...]


ScoringEvent = LogprobScores | RefusedEvent | StageEvent | NoticeEvent
"""What scoring yields; a StageEvent counts evaluated rows."""


def refusal(request: ScoreRequest, context_size: int) -> CerebrumError | None:
    """Why a request cannot be scored, if it cannot. The last token of a continuation is not evaluated."""
    longest = max(map(len, request.continuations), default=0)
    length = len(request.context) + longest
    if longest and not request.context:
        return UsageError("the context of a text to score is empty", "start it with the model's BOS token")
    if longest and length - 1 > context_size:
        return PromptTooLong(
            f"the text to score has {length} tokens, but the context has {context_size}", "shorten it, or raise --ctx"
        )
    return None
