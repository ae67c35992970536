"""`cerebrum eval`: measure how well a model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cerebrum_cli.commands.completion import completing, tasks
from cerebrum_cli.commands.context import runtime_of
from cerebrum_cli.commands.signature import SettingKeys, composed, parameter
from cerebrum_cli.core.settings import SAMPLING_KEYS, Layer
from cerebrum_cli.runtime.options import EvalOptions, LmEvalOptions

SETTINGS = SettingKeys(
    ("model", "system", "format", "ctx", "threads", "gpu_layers", "drafts", *SAMPLING_KEYS),
    {
        "temperature": "Temperature [default: 0, greedy; 0.7 with --samples]",
        "seed": "Random seed of the run [default: 0]",
    },
)
SOME_FAILED = 6


@composed
def evaluate(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="TASK",
            help="gsm8k, math500, arc-challenge, humaneval, a file like exam.jsonl, or lm-eval:TASK.",
            autocompletion=completing(tasks),
        ),
    ],
    given: Annotated[Layer, SETTINGS],
    options: EvalOptions,
    lm_eval: LmEvalOptions,
    output: Annotated[
        Path | None,
        parameter("output", "File of the run [default: stored by name]", "Output", short="-o", metavar="RUN.jsonl"),
    ] = None,
) -> None:
    """A file holds a JSON object on each line, with `question` and `answer`, and `choices` if there are any.

    Each sample is saved immediately; run the same command again to resume. A larger --limit or --samples extends the
    run.
    """
    from cerebrum_cli.runtime.evaluation.run import run_eval

    if run_eval(runtime_of(context, options.verbose), source, output, given, options, lm_eval):
        raise typer.Exit(SOME_FAILED)
