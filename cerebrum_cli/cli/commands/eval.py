"""`cerebrum eval`: measure how well a model answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cerebrum_cli.cli.completion import tasks
from cerebrum_cli.cli.context import app_of, typed_options
from cerebrum_cli.cli.options import EvalOptions
from cerebrum_cli.cli.signature import SettingKeys, composed, parameter, positional
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

SETTINGS = SettingKeys(
    REPLY_KEYS,
    {
        "temperature": "Sampling temperature [default: 0, or 0.7 with several samples]",
        "seed": "Random seed [default: 0]",
    },
)
SOME_FAILED = 6


@composed
def evaluate(
    context: typer.Context,
    source: Annotated[
        str, positional("TASK", "gsm8k, math500, arc-challenge, humaneval, or a file like exam.jsonl", tasks)
    ],
    given: Annotated[Layer, SETTINGS],
    options: EvalOptions,
    output: Annotated[
        Path | None,
        parameter(
            "output",
            "File for the run [default: named after task and model]",
            "Output",
            short="-o",
            metavar="RUN.jsonl",
        ),
    ] = None,
) -> None:
    """A question file has one JSON object on each line, with `question`, `answer` and, for multiple choice, `choices`.

    Each sample is saved immediately; run the same command again to resume. A larger --limit extends the run, and so
    does a larger --samples at the same temperature.
    """
    from cerebrum_cli.cli.eval import run_eval

    app, typed = app_of(context, options.verbose), typed_options(context)
    if run_eval(app, source, output, given, options, typed):
        raise typer.Exit(SOME_FAILED)
