"""Which controls watch a reply while it is generated."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from cerebrum_cli.application.inference.control.conclude import Closings, Conclude
from cerebrum_cli.application.inference.control.thought_budget import ThoughtBudget
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.control.control import ControlFactory
from cerebrum_cli.engine.control.loop_check import LoopCheck
from cerebrum_cli.formats.format import ThoughtMarkup


class ReplyStart(NamedTuple):
    """Where a reply starts: the thought that the prompt leaves open, and the reply that it continues."""

    thought: ThoughtMarkup | None
    prefix_text: str
    prefix_length: int


def reply_controls(
    settings: Settings,
    start: ReplyStart,
    may_repeat: bool,
    closings: Callable[[], Closings],
    budget: ThoughtBudget | None,
) -> tuple[ControlFactory, ...]:
    """The controls of a reply without a grammar, in the order in which they may intervene.

    A reply that `may_repeat` itself is not checked for loops.
    """
    controls: list[ControlFactory] = []
    if settings.loop_check and not may_repeat:
        controls.append(LoopCheck)
    if budget:
        controls.append(budget)
    if settings.conclude:
        controls.append(Conclude(settings.conclude, closings(), *start))
    return tuple(controls)
