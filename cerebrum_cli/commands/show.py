"""`cerebrum show`: what a model is."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options


def show(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A name from `cerebrum list`, or a path.")],
    json: options.Json = False,
) -> None:
    """Show what a model's file says of itself, and how it would be asked."""
    from cerebrum_cli.application.listing import described
    from cerebrum_cli.terminal.progress import FileProgress
    from cerebrum_cli.terminal.tables import print_description

    runtime = options.runtime_of(context)
    found = runtime.library.resolve(model)
    with FileProgress(runtime.streams, quiet=json) as progress:
        description = described(runtime.library, found, progress.update)
    if json:
        runtime.streams.answer_object(description)
    else:
        print_description(runtime.streams, description)
