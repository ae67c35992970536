"""Which controls watch a reply while it is generated."""

from __future__ import annotations

from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.control.control import ControlFactory
from cerebrum_cli.engine.control.loop_check import LoopCheck
from cerebrum_cli.formats.format import PromptFormat


def reply_controls(
    settings: Settings, prompt_format: PromptFormat, grammar: str | None, ignore_eos: bool
) -> tuple[ControlFactory, ...]:
    """The controls of a reply, in the order in which they may intervene.

    What is completed without a format, must match a grammar, or has a length to reach may well repeat itself.
    """
    if grammar or ignore_eos or prompt_format.verbatim or not settings.loop_check:
        return ()
    return (LoopCheck,)
