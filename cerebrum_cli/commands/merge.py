"""`cerebrum merge`: merge models from a recipe."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands.context import runtime_of
from cerebrum_cli.commands.signature import composed
from cerebrum_cli.runtime.options import MergeCommandOptions


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
    from cerebrum_cli.runtime.merge import merge

    merge(runtime_of(context), recipe, options)
