"""End the reasoning of a reply after a number of tokens, or when the user asks for the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.text import partial_marker_length
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.control import Force
from cerebrum_cli.engine.sentences import SENTENCE_TOKENS, Sentences
from cerebrum_cli.engine.turns import continuation
from cerebrum_cli.formats.format import ThoughtMarkup
from cerebrum_cli.formats.thinking import ThoughtSplitter
from cerebrum_cli.inference.answer_now import AnswerNow

OPENING_TOKENS = 8  # within which a reply has mostly begun to reason, or to answer


@dataclass(frozen=True, slots=True)
class ThoughtBudget:
    """Creates the budgets of replies that reason for at most `limit` tokens; None is no limit.

    `endings` are the tokens of each text that ends a thought. `thought` is the one that the prompt leaves open. A reply
    that continues another begins with `prefix_text`, of `prefix_length` tokens.
    """

    limit: int | None
    thoughts: tuple[ThoughtMarkup, ...]
    endings: Mapping[str, tuple[int, ...]]
    answer_now: AnswerNow | None = None
    thought: ThoughtMarkup | None = None
    prefix_text: str = ""
    prefix_length: int = 0

    def __call__(self) -> RunningBudget:
        return RunningBudget(self)


class RunningBudget:
    """Forces the end of a thought: at the end of a sentence, or soon after; without delay if the user asks for it.

    Several thoughts share one budget. Once it is used up, another thought is ended where it begins.
    """

    def __init__(self, plan: ThoughtBudget) -> None:
        self._plan = plan
        self._splitter = ThoughtSplitter(plan.thoughts, plan.thought)
        self._sentences = Sentences()
        self._count = 0  # tokens of the reply
        self._is_used_up = plan.limit == 0
        self._has_forced = False
        self._read(plan.prefix_text)
        self._used = plan.prefix_length if self._splitter.open_thought else 0

    @property
    def horizon(self) -> int | None:
        limit = self._plan.limit
        if limit is None or self._has_forced or self._splitter.is_in_answer:
            return None
        opening = 0 if self._splitter.open_thought else OPENING_TOKENS
        return self._count + opening + max(1, limit + SENTENCE_TOKENS - self._used)

    def feed(self, token: int, text: str) -> None:  # noqa: ARG002
        if not self._splitter.is_in_answer:
            self._count += 1
            self._used += self._splitter.open_thought is not None
            self._read(text)

    def intervene(self) -> Force | None:
        thought, tail = self._splitter.open_thought, self._sentences.tail
        if thought is None or not self._is_due or partial_marker_length(tail, (thought.close,)):
            return None
        self._is_used_up = self._has_forced = True
        return Force("thought", self._plan.endings[thought.ending(tail)])

    @property
    def _is_due(self) -> bool:
        limit, answer_now = self._plan.limit, self._plan.answer_now
        if self._is_used_up or (answer_now and answer_now.is_requested):
            return True
        late = -1 if limit is None else self._used - limit
        return late >= SENTENCE_TOKENS or (late >= 0 and self._sentences.is_at_end)

    def _read(self, text: str) -> None:
        self._sentences.read(text)
        self._splitter.feed(text)


def plan_endings(vocabulary: Vocabulary, thoughts: tuple[ThoughtMarkup, ...]) -> dict[str, tuple[int, ...]]:
    """Tokenize all texts that can end a thought."""
    texts = {each.ending(each.open + breaks) for each in thoughts for breaks in ("", "\n", "\n\n")}
    return {text: continuation(vocabulary, (Text(text, True),)) for text in texts}
