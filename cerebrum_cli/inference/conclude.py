"""Force a conclusion into a reply that has not stated its final answer after a number of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.control import Force
from cerebrum_cli.engine.sentences import SENTENCE_TOKENS, Sentences
from cerebrum_cli.engine.turns import continuation
from cerebrum_cli.formats.format import PromptFormat, ThoughtMarkup
from cerebrum_cli.formats.thinking import ThoughtSplitter

ANSWER_TOKENS = 32

Closings: TypeAlias = "tuple[tuple[ThoughtMarkup | None, tuple[int, ...]], ...]"
"""Tokens that lead to a final answer, by the thought that is open; None is for the answer."""


@dataclass(frozen=True, slots=True)
class Conclude:
    """Creates the conclusions of replies that reach `after` tokens.

    `thought` is the one that the prompt leaves open. A reply that continues another begins with `prefix_text`, of
    `prefix_length` tokens.
    """

    after: int
    closings: Closings
    thought: ThoughtMarkup | None = None
    prefix_text: str = ""
    prefix_length: int = 0

    def __call__(self) -> Conclusion:
        return Conclusion(self)


class Conclusion:
    """Forces the bridge to the final answer at the end of a sentence, or soon after, unless it is stated by then."""

    def __init__(self, plan: Conclude) -> None:
        self._closings = dict(plan.closings)
        thoughts = tuple(markup for markup in self._closings if markup)
        self._splitter = ThoughtSplitter(thoughts, plan.thought)
        self._after = max(0, plan.after - plan.prefix_length)  # one that is longer ends its sentence first, too
        self._count = 0
        self._answer: list[str] = []
        self._sentences = Sentences()
        self._is_over = False
        self._read(plan.prefix_text)

    @property
    def horizon(self) -> int | None:
        return None if self._is_over else max(1, self._after + SENTENCE_TOKENS)

    def feed(self, token: int, text: str) -> None:  # noqa: ARG002
        if not self._is_over:
            self._count += 1
            self._read(text)

    def intervene(self) -> Force | None:
        late = self._count - self._after
        if self._is_over or late < 0 or not (late >= SENTENCE_TOKENS or self._sentences.is_at_end):
            return None
        from cerebrum_cli.answers.extract import states_answer  # compiling its patterns is slow

        self._is_over = True
        if states_answer("".join(self._answer)):
            return None
        return Force("conclusion", self._closings[self._splitter.open_thought], ANSWER_TOKENS)

    def _read(self, text: str) -> None:
        self._sentences.read(text)
        self._answer += [part for channel, part in self._splitter.feed(text) if channel == "answer"]


def plan_closings(vocabulary: Vocabulary, prompt_format: PromptFormat) -> Closings:
    """Tokenize the bridge of a format, behind the end of each kind of thought too."""
    bridge = prompt_format.bridge
    return (
        (None, continuation(vocabulary, (Text(bridge),))),
        *(
            (thought, continuation(vocabulary, (Text(thought.ending(), True), Text(bridge.lstrip()))))
            for thought in prompt_format.thoughts
        ),
    )
