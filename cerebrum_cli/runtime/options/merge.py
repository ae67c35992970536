"""Options of `cerebrum merge`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cerebrum_cli.core.options import option
from cerebrum_cli.runtime.options.shared import PullOptions


@dataclass(frozen=True)
class MergeCommandOptions(PullOptions):
    """Options of `cerebrum merge`."""

    source: tuple[str, ...] = option((), "Model for a name in the recipe (repeatable)", "Input", metavar="NAME=MODEL")
    output: Path | None = option(None, "File for the merged model", "Output", short="-o", metavar="OUT.gguf")
    type: str | None = option(None, "Weight type, such as Q8_0 [default: unchanged]", "Output", metavar="TYPE")
    split_size: str | None = option(None, "Maximum size of a file, such as 4GB", "Output", metavar="SIZE")
    name: str | None = option(None, "Name for the model [default: from OUT]", "Output", metavar="NAME")
    dry_run: bool = option(False, "Show what would be merged, and what it needs", "Output")
    json: bool = option(False, "Print JSON", "Output")
