"""One reply, gathered from its events, and the object `--json` prints of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import exp, fsum
from pathlib import Path
from typing import Any

from cerebrum_cli.application.inference.responder import Preview
from cerebrum_cli.core.events import Channel, Event, FinishEvent, NoticeEvent, TokenEvent

PROBABILITY_DIGITS = (
    5  # of a probability: those behind hang on what ran beside it, and two chains of the same words are equal
)
SLOW_PREFILL_S = 0.25  # seconds; a beginning of prompts that took longer is kept, too
LONG_PROMPT = 256  # tokens; what took longer to read is kept on disk, to be read at once next time


@dataclass(frozen=True, slots=True)
class Reply:
    """What one sequence said: its answer, the thought it marked as such, and how it ended.

    `sampled` are all its tokens, the thought's and those of a stop string among them. `probability` is the geometric
    mean of theirs, where it was asked for; 0 where it was not.
    """

    text: str
    reasoning: str | None
    finish: FinishEvent
    sampled: tuple[int, ...] = ()
    probability: float = 0.0

    @property
    def tokens(self) -> tuple[int, ...] | None:
        """The tokens to keep in a conversation; None where a stop string ended it, as they say more than the text."""
        return None if self.finish.by_stop_string else self.sampled

    @property
    def has_long_prompt(self) -> bool:
        """Whether so much of the prompt was evaluated for it that this should not be done again."""
        return self.finish.reason != "cancelled" and self.evaluated > LONG_PROMPT

    def has_slow_prefill(self, tokens: int) -> bool:
        """Return whether the first tokens of its prompt were evaluated for it, and so many take long."""
        speed, finish = self.finish.timings.prompt_tokens_per_second, self.finish
        return finish.reason != "cancelled" and finish.cached_tokens < tokens and tokens > SLOW_PREFILL_S * speed

    @property
    def evaluated(self) -> int:
        """How many tokens of the prompt were evaluated for it."""
        return self.finish.prompt_tokens - self.finish.cached_tokens

    @property
    def final_answer(self) -> str | None:
        """The final answer in the text, if there is one."""
        from cerebrum_cli.answers.extract import final_answer  # its patterns are compiled while nobody waits

        return final_answer(self.text, whole=self.finish.reason == "stop")


class ReplyCollector:
    """Gather the events of one sequence."""

    def __init__(self) -> None:
        self._texts: dict[Channel, list[str]] = {"answer": [], "thinking": []}
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._finish: FinishEvent | None = None

    def emit(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, TokenEvent):
            self._texts[event.channel].append(event.text)
            if event.token is not None:
                self._tokens.append(event.token)
            if event.logprob is not None:
                self._logprobs.append(event.logprob)
        elif isinstance(event, FinishEvent):
            self._finish = event

    def close(self) -> None:
        """Nothing is open."""

    @property
    def text(self) -> str:
        """What the answer is so far."""
        return "".join(self._texts["answer"])

    @property
    def reasoning(self) -> str | None:
        """What was thought so far, where that is marked."""
        return "".join(self._texts["thinking"]) or None

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens sampled so far."""
        return tuple(self._tokens)

    @property
    def reply(self) -> Reply | None:
        """The reply, once it has ended."""
        if self._finish is None:
            return None
        logprobs = self._logprobs
        probability = round(exp(fsum(logprobs) / len(logprobs)), PROBABILITY_DIGITS) if logprobs else 0.0
        return Reply(self.text, self.reasoning, self._finish, self.tokens, probability)


def truncation_notice(reply: Reply) -> NoticeEvent | None:
    """Return what a reader of the answer should know of what is missing from it."""
    if reply.finish.reason == "context":
        size = reply.finish.context_size
        return NoticeEvent(f"the answer was cut: the context of {size} tokens is full", "raise --ctx, or ask for less")
    if reply.reasoning and not reply.text and reply.finish.reason == "length":
        return NoticeEvent("the model was still thinking when its tokens ran out", "raise --max-tokens")
    return None


def reply_object(
    reply: Reply, model: str, file: Path, format_name: str, votes: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the object `ask --json` prints; `file` answered. Times are in seconds, rates in tokens a second."""
    finish = reply.finish
    timings = finish.timings
    return {
        "model": model,
        "file": str(file),
        "format": format_name,
        "text": reply.text,
        "final_answer": votes["winner"] if votes else reply.final_answer,
        "finish_reason": finish.reason,
        "prompt_tokens": finish.prompt_tokens,
        "cached_tokens": finish.cached_tokens,
        "completion_tokens": finish.completion_tokens,
        "seed": finish.seed,
        "reasoning": reply.reasoning,
        "votes": votes,
        "timings": {
            "load_s": round(timings.load_s, 4),
            "prefill_s": round(timings.prefill_s, 4),
            "ttft_s": round(timings.ttft_s, 4),
            "decode_s": round(timings.decode_s, 4),
            "prompt_tokens_per_second": round(timings.prompt_tokens_per_second, 2),
            "tokens_per_second": round(timings.tokens_per_second, 2),
        },
    }


def prompt_object(preview: Preview, model: str, format_name: str) -> dict[str, Any]:
    """Return the object `ask --dry-run --json` prints."""
    return {
        "prompt": preview.prompt,
        "prompt_tokens": len(preview.token_ids),
        "token_ids": list(preview.token_ids),
        "format": format_name,
        "model": model,
    }
