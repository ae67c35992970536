"""`cerebrum pull`: bring a model here."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option


def pull(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A name from the catalogue, or the path of a GGUF file.")
    ],
    name: Annotated[str | None, option("--name", help="What to call it here.", metavar="NAME")] = None,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
) -> None:
    """Bring a model here: download a known one, or register a file where it lies."""
    options.pull_model(options.runtime_of(context), model, name, quiet, offline)
