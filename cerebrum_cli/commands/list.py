"""`cerebrum list`: list installed or available models."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option


def list_models(
    context: typer.Context,
    available: Annotated[
        bool, option("--available", help="List the catalog, and which models fit this machine.")
    ] = False,
    ctx: options.Ctx = None,
    json: options.Json = False,
    offline: options.Offline = False,  # noqa: ARG001 (always offline; every command has the option)
    quiet: options.Quiet = False,
) -> None:
    """List installed models, including other tools' in the Hugging Face cache.

    The network is not used.
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
            runtime.streams.info("* default model")
    elif not quiet:
        runtime.streams.info("no model is installed; cerebrum list --available shows models to pull")
