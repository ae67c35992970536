"""`cerebrum list`: list installed models."""

from __future__ import annotations

import typer

from cerebrum_cli.commands.context import runtime_of
from cerebrum_cli.commands.signature import composed
from cerebrum_cli.runtime.options import ListOptions


@composed
def list_models(context: typer.Context, options: ListOptions) -> None:
    """Includes models that other tools have put into the Hugging Face cache. The network is not used."""
    from cerebrum_cli.runtime import listing

    listing.list_models(runtime_of(context), options)
