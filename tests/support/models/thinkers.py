"""Scripted replies that reason, and the control that ends their reasoning, for tokens that are bytes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from scripted_backend import END, Model, ScriptedBackend

from cerebrum_cli.engine.requests import ControlFactory, Intervention
from cerebrum_cli.formats.markup import REASONING_MARKUPS
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText
from cerebrum_cli.replies.reply_controls import AnswerNow, ReasoningBudget, endings

LIMIT = 10  # tokens
ENDING = "\n</think>\n\n"
SPELLED = endings(ScriptedBackend(lambda held, seed: END))


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
    return partial(ReasoningBudget, limit, **{"answer_now": AnswerNow(), **options})


def thinking(**more: Any) -> ReplyRules:
    """Rules of replies that may reason in any markup."""
    return ReplyRules(REASONING_MARKUPS, endings=SPELLED, **more)


@dataclass
class CountingControl:
    """A control that intervenes as `decide` says for the number of tokens so far."""

    decide: Callable[[int], Intervention | None]

    def intervene(self, text: ReplyText, tokens: Sequence[int]) -> Intervention | None:
        return self.decide(len(tokens))


def answering_late(**more: Any) -> ReplyRules:
    """Rules of replies whose grammar and stop strings apply from where the answer starts."""
    markers: dict[str, frozenset[int]] = {"<think>": frozenset()}
    return ReplyRules(REASONING_MARKUPS[:1], endings=SPELLED, stops_anywhere=False, markers=markers, **more)
