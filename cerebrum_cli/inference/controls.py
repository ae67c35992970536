"""Which controls watch a reply while it is generated."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.control import ControlFactory
from cerebrum_cli.engine.loop_check import LoopCheck
from cerebrum_cli.formats.format import PromptFormat, ThoughtMarkup
from cerebrum_cli.inference.answer_now import AnswerNow
from cerebrum_cli.inference.reply_stream import GenerationRequest

if TYPE_CHECKING:
    from cerebrum_cli.inference.conclude import Closings
    from cerebrum_cli.inference.thought_budget import ThoughtBudget


class ReplyStart(NamedTuple):
    """Where a reply starts: the thought that the prompt leaves open, and the reply that it continues."""

    thought: ThoughtMarkup | None
    prefix_text: str
    prefix_length: int


class ReplyControls:
    """Creates the controls of replies in a format. What they force is tokenized when it is first needed."""

    def __init__(self, vocabulary: Vocabulary, prompt_format: PromptFormat) -> None:
        self._vocabulary = vocabulary
        self._format = prompt_format

    def create(
        self, request: GenerationRequest, start: ReplyStart, answer_now: AnswerNow
    ) -> tuple[ControlFactory, ...]:
        """The controls of a reply, in the order in which they may intervene; none with a grammar."""
        if request.grammar:
            return ()
        settings = request.settings
        controls: list[ControlFactory] = []
        may_repeat = request.ignore_eos or self._format.verbatim  # text of a given length, or without a format
        if settings.loop_check and not may_repeat:
            controls.append(LoopCheck)
        if budget := self._thought_budget(request, start, answer_now):
            controls.append(budget)
        if settings.conclude:
            from cerebrum_cli.inference.conclude import Conclude

            controls.append(Conclude(settings.conclude, self._closings, *start))
        return tuple(controls)

    def require_marked_thought(self, settings: Settings, system_prompt: str | None) -> None:
        """Raise UsageError for a limit of reasoning that nothing marks."""
        if settings.thought_limit is not None and not self._marks_thought(system_prompt):
            problem = f"think is {settings.think}, but this model does not mark its reasoning"
            raise UsageError(problem, "omit it, or set it to on; set conclude to N for an answer after N tokens")

    def _thought_budget(
        self, request: GenerationRequest, start: ReplyStart, answer_now: AnswerNow
    ) -> ThoughtBudget | None:
        """What may end the reasoning of a reply: a limit, or the user who watches it stream; None for neither."""
        limit = request.settings.thought_limit
        if limit == 0 and self._format.has_switch:
            limit = None
        can_hurry = request.stream and self._marks_thought(request.conversation.system_prompt)
        if limit is None and not can_hurry:
            return None
        from cerebrum_cli.inference.thought_budget import ThoughtBudget

        answer_now.is_watched = can_hurry
        return ThoughtBudget(limit, self._format.thoughts, self._endings, answer_now if can_hurry else None, *start)

    def _marks_thought(self, system_prompt: str | None) -> bool:
        """Whether the format, the vocabulary or the system prompt has markup of reasoning."""
        return (
            self._format.marks_thought
            or self._has_thought_tokens
            or any(each.open in (system_prompt or "") for each in self._format.thoughts)
        )

    @cached_property
    def _has_thought_tokens(self) -> bool:
        return bool(self._vocabulary.special_token_ids(each.open for each in self._format.thoughts))

    @cached_property
    def _closings(self) -> Closings:
        from cerebrum_cli.inference.conclude import plan_closings

        return plan_closings(self._vocabulary, self._format)

    @cached_property
    def _endings(self) -> Mapping[str, tuple[int, ...]]:
        from cerebrum_cli.inference.thought_budget import plan_endings

        return plan_endings(self._vocabulary, self._format.thoughts)
