"""`cerebrum list`: which models are here, and which could be."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option


def list_models(
    context: typer.Context,
    available: Annotated[bool, option("--available", help="The whole catalogue, and what of it fits here.")] = False,
    ctx: options.Ctx = None,
    json: options.Json = False,
    offline: options.Offline = False,  # noqa: ARG001 (it always is; the option is every command's)
    quiet: options.Quiet = False,
) -> None:
    """List the models that are here, those that other tools have put into the Hugging Face cache among them.

    No network is used.
    """
    from cerebrum_cli.application.models.listing import catalogue_rows, rows
    from cerebrum_cli.terminal.tables import print_catalogue, print_models

    runtime = options.runtime_of(context)
    context_size = runtime.settings({"ctx": ctx}).ctx
    listed = list(catalogue_rows(runtime.library, context_size) if available else rows(runtime.library))
    if json:
        runtime.streams.answer_object(listed)
    elif available:
        print_catalogue(runtime.streams, listed)
    elif listed:
        print_models(runtime.streams, listed)
        for row in listed:
            if row["error"]:
                runtime.streams.info(f"error: {row['error']}")
        if not quiet and any(row["default"] for row in listed):
            runtime.streams.info("* is the model asked when none is named")
    elif not quiet:
        runtime.streams.info("no model is here yet; cerebrum list --available shows what can be pulled")
