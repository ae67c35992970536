"""`cerebrum list`: list installed models."""

from __future__ import annotations

import typer

from cerebrum_cli.cli.context import runtime_of
from cerebrum_cli.cli.options import ListOptions
from cerebrum_cli.cli.signature import composed


@composed
def list_models(context: typer.Context, options: ListOptions) -> None:
    """Includes models that other tools have put into the Hugging Face cache. The network is not used."""
    from cerebrum_cli.cli import listing

    listing.list_models(runtime_of(context), options)
