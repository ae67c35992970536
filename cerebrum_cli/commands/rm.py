"""`cerebrum rm`: remove a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options


def rm(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Installed model, as for `cerebrum pull`.")],
    quiet: options.Quiet = False,
    yes: options.Yes = False,
) -> None:
    """Delete a downloaded model, or remove a file of yours from the list.

    Files shared with another revision in the Hugging Face cache are kept.
    """
    from cerebrum_cli.application.models.removal import plan_removal

    runtime = options.runtime_of(context)
    removal = plan_removal(runtime.library, runtime.library.parse(model))
    options.require_agreement(runtime.streams, removal.question, removal.model.reference, yes)
    identity = None if removal.is_file_missing else runtime.library.identity(removal.model)
    report = removal.execute()
    if identity:
        runtime.profiles().forget(identity)
    if not quiet:
        runtime.streams.info(report)
