"""The options of `cerebrum eval`."""

from __future__ import annotations

from cerebrum_cli.cli.options import check_option, json_option
from cerebrum_cli.cli.row_commands import RowFileOptions, RowOptions
from cerebrum_cli.core.declaration import INTEGER, option, option_group, switch
from cerebrum_cli.eval.completions import presets
from cerebrum_cli.eval.scores import MATCHES

MAX_SAMPLES = 256  # of a question


@option_group
class EvalOptions(RowOptions, RowFileOptions):
    preset: str | None = option("Use the evaluation settings of a model card", "Input", metavar="NAME", values=presets)
    limit: int | None = option(
        "Number of questions, a fixed random subset [default: all]", "Input", INTEGER, metavar="N", least=1
    )
    template: str | None = option("Build the prompt from a question's fields", "Input", metavar="TEXT")
    answer: str | None = option("Column with the right answers [default: answer]", "Input", metavar="COLUMN")
    samples: int | None = option(
        "Samples per question [default: 1, or the preset's]",
        "Sampling",
        INTEGER,
        metavar="K",
        least=1,
        most=MAX_SAMPLES,
    )
    match: str | None = option(
        "How answers are compared [default: answer]", "Output", metavar="|".join(MATCHES), choices=MATCHES
    )
    run_code: bool = switch("Run the programs that the model writes, in a sandbox", "Output")
    check: str | None = check_option()
    dry_run: bool = switch("Show one prompt and the number of questions", "Output")
    json: bool = json_option()
