"""`cerebrum merge`: merge models from a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option

if TYPE_CHECKING:
    from cerebrum_cli.application.models.model import Model


def merge(
    context: typer.Context,
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="A mergekit recipe in YAML, or a catalog model with one.")
    ],
    output: Annotated[Path | None, option("-o", "--output", help="Output file.", metavar="OUT.gguf")] = None,
    source: Annotated[
        list[str] | None,
        option(
            "--source",
            help="Model to use for a name in the recipe (repeatable).",
            metavar="NAME=MODEL",
            callback=options.whole,
        ),
    ] = None,
    type: Annotated[
        str | None,
        option("--type", help="Weight type, such as Q8_0, F16 or Q4_K [default: unchanged].", metavar="TYPE"),
    ] = None,
    split_size: Annotated[
        str | None, option("--split-size", help="Maximum size of each file, such as 4GB.", metavar="SIZE")
    ] = None,
    name: Annotated[
        str | None, option("--name", help="Name of the merged model [default: from the file name].", metavar="NAME")
    ] = None,
    dry_run: Annotated[bool, option("--dry-run", help="Show the planned merge and the resources it needs.")] = False,
    ctx: options.Ctx = None,
    json: options.Json = False,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    yes: options.Yes = False,
) -> None:
    """Merge models from a recipe: stack layers unchanged, or average the weights of several models.

    Prints the SHA-256 of each file written.
    """
    from cerebrum_cli.application.merging.merge import merge_options
    from cerebrum_cli.application.merging.recipes import read_recipe
    from cerebrum_cli.terminal.merge_report import MergeCommand

    runtime = options.runtime_of(context)
    request = read_recipe(runtime.library, recipe)
    target = merge_options(output, name, type, split_size, Path(recipe).stem if dry_run else None)

    def find(reference: str) -> Model:
        return options.find_model(runtime, {"model": reference}, yes, quiet, offline)

    command = MergeCommand(runtime.streams, runtime.merger, runtime.settings({"ctx": ctx}).ctx, json, quiet, yes)
    if dry_run:
        command.preview(request, source or (), target)
    else:
        command.run(request, source or (), target, find)
