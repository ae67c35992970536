"""`cerebrum pull`: download a model, or register a local file."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.completion import completing, known_models
from cerebrum_cli.cli.context import runtime_of
from cerebrum_cli.cli.options import PullCommandOptions
from cerebrum_cli.cli.signature import composed


@composed
def pull(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="NAME[:QUANT], OWNER/REPO[:QUANT], the URL of a .gguf file, or a path.",
            autocompletion=completing(known_models),
        ),
    ],
    options: PullCommandOptions,
) -> None:
    """Models are downloaded from the Hugging Face Hub to the Hugging Face cache. A local file is used in place.

    Without :QUANT, the quantization recommended for this machine is chosen. If a download is interrupted, run the
    command again to resume. With --vocabulary, only the header of the file is downloaded, a few megabytes: enough to
    build prompts for a server that runs the model.
    """
    from cerebrum_cli.cli import models

    runtime = runtime_of(context)
    models.pull(runtime, runtime.library.parse(model), options)
