"""`cerebrum show`: show a model's metadata and prompt format."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.completion import completing, stored_models
from cerebrum_cli.cli.context import runtime_of
from cerebrum_cli.cli.options import ShowOptions
from cerebrum_cli.cli.signature import composed


@composed
def show(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model reference, as for `cerebrum pull`.", autocompletion=completing(stored_models)
        ),
    ],
    options: ShowOptions,
) -> None:
    """Also shows its tuning profile, and which quantizations fit this machine.

    The network is not used; `cerebrum pull --dry-run` queries the Hub.
    """
    from cerebrum_cli.cli import listing

    runtime = runtime_of(context)
    listing.show(runtime, runtime.library.parse(model), options)
