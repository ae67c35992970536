"""Options of `cerebrum batch`."""

from __future__ import annotations

from dataclasses import dataclass

from cerebrum_cli.core.options import option
from cerebrum_cli.runtime.options.shared import GenerationOptions


@dataclass(frozen=True)
class BatchOptions(GenerationOptions):
    """Options of `cerebrum batch`, apart from INPUT and OUTPUT."""

    column: str | None = option(None, "Column with the prompts [default: prompt]", "Input", metavar="NAME")
    template: str | None = option(
        None, "Build the prompt from a row's fields: 'Sum up: {text}'", "Input", metavar="TEXT"
    )
    shape: str | None = option(None, "Type of INPUT [default: from its name]", "Input", metavar="txt|jsonl|csv|tsv")
    ignore_eos: bool = option(False, "Generate up to --max-tokens, for benchmarks", "Sampling")
    restart: bool = option(False, "Start over; replace OUTPUT when done", "Output")
    parallel: str | None = option(None, "Rows answered at the same time [default: auto]", "Speed", metavar="N|auto")
