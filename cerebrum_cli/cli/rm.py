"""`cerebrum rm`: delete a model."""

from __future__ import annotations

from typing import Annotated

import typer

from cerebrum_cli.cli.completion import stored_models
from cerebrum_cli.cli.options import DeleteOptions
from cerebrum_cli.cli.signature import app_of, composed, positional, require_agreement


@composed
def rm(
    context: typer.Context,
    model: Annotated[str, positional("MODEL", "An installed model or vocabulary", stored_models)],
    options: DeleteOptions,
) -> None:
    """A local file that was registered is unregistered, not deleted.

    Files shared with another revision in the Hugging Face cache are kept.
    """
    from cerebrum_cli.models.removal import plan_removal

    app = app_of(context, options)
    removal = plan_removal(app.library, app.library.parse(model))
    require_agreement(app, removal.question, removal.model.reference, options.yes)
    identity, report = removal.identity, removal.execute()
    if identity:
        app.profiles().delete(identity)
    app.streams.report(report)
