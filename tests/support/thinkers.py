"""Scripted replies that reason, and the control that ends their reasoning, for tokens that are bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripted_backend import END, Model, ScriptedBackend

from cerebrum_cli.engine.control import AnswerStartFactory, ControlFactory, Intervention, Upcoming
from cerebrum_cli.formats.thinking import REASONING_MARKUPS
from cerebrum_cli.replies.reply_controls import AnswerDetector, ReasoningBudget, plan_endings
from cerebrum_cli.replies.reply_stream import ReplyChannels

LIMIT = 10  # tokens
ENDING = "\n</think>\n\n"


def reply_around(reasoning: str, forced: str, answer: str) -> str:
    """A scripted reply in which the forced text takes the place of as many tokens, before the answer."""
    return reasoning + "x" * len(forced) + answer


def speaker(reply: Callable[[int], str], prompt: int = 2) -> Model:
    """A model with a reply for each seed, whatever was forced into it."""

    def model(held: tuple[int, ...], seed: int) -> int:
        text = reply(seed).encode()
        at = len(held) - prompt
        return text[at] if at < len(text) else END

    return model


def budget(limit: int = LIMIT, **options: Any) -> ControlFactory:
    return partial(ReasoningBudget, limit, endings(), **{"channels": ReplyChannels(REASONING_MARKUPS), **options})


@dataclass
class CountingControl:
    """A control that intervenes as `decide` says for the number of tokens so far."""

    decide: Callable[[int], Intervention | None]
    count: int = 0
    horizon: int | None = None

    def feed(self, tokens: Sequence[int], text: str) -> None:
        self.count += len(tokens)

    def lets_pass(self, upcoming: Upcoming) -> int:
        return 0

    def intervene(self) -> Intervention | None:
        return self.decide(self.count)


def answer_start() -> AnswerStartFactory:
    return partial(AnswerDetector, ReplyChannels(REASONING_MARKUPS[:1]), {"<think>": frozenset()}, endings())


def endings() -> dict[str, tuple[int, ...]]:
    return plan_endings(ScriptedBackend(lambda held, seed: END), REASONING_MARKUPS)
