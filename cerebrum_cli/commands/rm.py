"""`cerebrum rm`: take a model away."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.commands import options


def rm(
    context: typer.Context,
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model that is here, named as for `cerebrum pull`.")],
    quiet: options.Quiet = False,
    yes: options.Yes = False,
) -> None:
    """Delete a model that was pulled, or forget a file of yours.

    What another revision in the Hugging Face cache uses stays.
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
