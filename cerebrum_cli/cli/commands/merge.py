"""`cerebrum merge`: merge models from a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.context import runtime_of
from cerebrum_cli.cli.options import MergeCommandOptions
from cerebrum_cli.cli.signature import composed


@composed
def merge(
    context: typer.Context,
    recipe: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE", help="A mergekit recipe in YAML, or a catalog model that is built by merging."
        ),
    ],
    options: MergeCommandOptions,
) -> None:
    """Stacks layers, copied byte for byte, or combines the weights of several models. No full-precision files are
    needed.

    Prints the SHA-256 of each file written.
    """
    from cerebrum_cli.cli.merge import merge

    merge(runtime_of(context), recipe, options)
