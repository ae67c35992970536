"""`cerebrum pull`: download a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options
from cerebrum_cli.commands.options import option


def pull(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="NAME[:QUANT], OWNER/REPO[:QUANT], the URL of a .gguf file, or a path."),
    ],
    name: Annotated[str | None, option("--name", help="Name for the model.", metavar="NAME")] = None,
    default: Annotated[bool, option("--default", help="Make this the default model.")] = False,
    dry_run: Annotated[bool, option("--dry-run", help="List quantizations and which fit; download nothing.")] = False,
    ctx: options.Ctx = None,
    json: options.Json = False,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
    yes: options.Yes = False,
) -> None:
    """Download a model from the Hugging Face Hub, or register a local file.

    Without :QUANT the largest recommended quantization that fits this machine is chosen.
    """
    runtime = options.runtime_of(context)
    context_size = runtime.settings({"ctx": ctx}).ctx
    reference = runtime.library.parse(model)
    if dry_run:
        options.show_offer(runtime, reference, context_size, json, quiet, offline)
        return
    found = options.pull_model(runtime, reference, name, context_size, quiet, offline, yes)
    if default:
        runtime.library.registry.set_default(found.reference)
    if json:
        from cerebrum_cli.application.models.listing import row

        runtime.streams.answer_object(row(runtime.library, found))
