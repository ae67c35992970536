"""Options of `cerebrum chat`."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.options import option
from cerebrum_cli.runtime.options.shared import AnswerOptions


@dataclass(frozen=True)
class ChatOptions(AnswerOptions):
    """Options of `cerebrum chat`."""

    continue_: bool = option(False, "Continue the latest session", "Input", short="-c")
    session: str | None = option(None, "Continue this session, or create it", "Input", metavar="NAME")
    vi: bool = option(False, "Edit with vi keys", "Input")
    no_markdown: bool = option(False, "Plain text, on a terminal too", "Output")
    no_cache: bool = option(False, "Do not read or write the prompt cache", "Speed")
