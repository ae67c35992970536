"""Options of `cerebrum ask`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.options import option
from cerebrum_cli.runtime.options.shared import GenerationOptions


@dataclass(frozen=True)
class AskOptions(GenerationOptions):
    """Options of `cerebrum ask`."""

    file: tuple[Path, ...] = option(
        (), "Put a file before the prompt (repeatable)", "Input", short="-f", metavar="FILE"
    )
    messages: Path | None = option(None, "OpenAI messages list; `-` is standard input", "Input", metavar="FILE")
    raw: bool = option(False, "Complete the prompt as it stands, without a format", "Input")
    continue_: bool = option(False, "Continue the latest session", "Input", short="-c")
    final: bool = option(False, "Print only the final answer; exit 5 without one", "Output")
    json: bool = option(False, "Print one JSON object", "Output")
    stats: bool = option(False, "Print speed, context and seed on standard error", "Output")
    dry_run: bool = option(False, "Print the exact prompt without evaluating it", "Output")
    no_markdown: bool = option(False, "Plain text, on a terminal too", "Output")
    no_log: bool = option(False, "Do not save this exchange as a session", "Output")
    no_cache: bool = option(False, "Do not read or write the prompt cache", "Speed")
