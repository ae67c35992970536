"""`cerebrum batch`: answer many questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cerebrum_cli.cli.context import app_of, typed_options
from cerebrum_cli.cli.options import BatchOptions
from cerebrum_cli.cli.signature import SettingKeys, composed, parameter, positional
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

SETTINGS = SettingKeys(REPLY_KEYS)
SOME_FAILED = 6


@composed
def batch(
    context: typer.Context,
    source: Annotated[Path, positional("INPUT", "Questions: .txt, .jsonl, .csv or .tsv; `-` reads standard input")],
    output: Annotated[
        Path,
        parameter("output", "JSON Lines file; `-` streams to standard output", "Output", short="-o", metavar="OUTPUT"),
    ],
    given: Annotated[Layer, SETTINGS],
    options: BatchOptions,
) -> None:
    """Each answer is written to OUTPUT.partial immediately; OUTPUT appears when all are done, in the order of INPUT.

    If the run is interrupted, run it again to resume. Settings are recorded in OUTPUT.meta.json.
    """
    from cerebrum_cli.cli import batch

    app = app_of(context, options.verbose)
    if batch.batch(app, source, output, given, options, typed_options(context)):
        raise typer.Exit(SOME_FAILED)
