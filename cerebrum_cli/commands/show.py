"""`cerebrum show`: what a model is."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options


def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="A name from `cerebrum list`, or a path.")],
    json: options.Json = False,
) -> None:
    """Show what a model's file says of itself, and how it would be asked."""
    from cerebrum_cli.application.library import described
    from cerebrum_cli.terminal.tables import print_description

    runtime = options.runtime_of(context)
    found = runtime.library.resolve(model)
    description = described(runtime.library, found)
    if json:
        runtime.streams.answer_object(description)
    else:
        print_description(runtime.streams, description)
