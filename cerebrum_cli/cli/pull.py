"""`cerebrum pull`: download a model, or register a local file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.cli.completion import known_models
from cerebrum_cli.cli.models import pull_model
from cerebrum_cli.cli.options import PullCommandOptions
from cerebrum_cli.cli.signature import app_of, composed, positional
from cerebrum_cli.core.settings import environment_layer

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.models.reference import Reference


@composed
def pull(
    context: typer.Context,
    model: Annotated[
        str, positional("MODEL", "NAME[:QUANT], OWNER/REPO[:QUANT], the URL of a .gguf file, or a path", known_models)
    ],
    options: PullCommandOptions,
) -> None:
    """Models are downloaded from the Hugging Face Hub to the Hugging Face cache. A local file is used in place.

    Without :QUANT, the quantization recommended for this machine is chosen. If a download is interrupted, run the
    command again to resume. With --vocabulary, only the header of the file is downloaded, a few megabytes: enough to
    build prompts for a server that runs the model.
    """
    app = app_of(context, options)
    reference = app.library.parse(model)
    options.validate()
    ctx = app.settings(environment_layer("ctx")).ctx
    if options.dry_run:
        show_download_plan(app, reference, ctx, options)
        return
    if options.vocabulary:
        installed = pull_vocabulary(app, reference, ctx, options)
    else:
        installed = pull_model(app, reference, options.name, ctx, options)
        if options.default:
            app.library.registry.set_default(installed.reference)
        if app.streams.err_is_terminal:
            app.streams.report(f"next: cerebrum chat {installed.reference}")
    if options.json:
        from cerebrum_cli.models.listing import row

        app.streams.answer_object(row(app.library, installed))


def show_download_plan(app: App, reference: Reference, context: int | None, options: PullCommandOptions) -> None:
    from cerebrum_cli.models.listing import download_plan_object
    from cerebrum_cli.terminal.progress import FileProgress
    from cerebrum_cli.terminal.tables import print_candidates

    with FileProgress(app.streams) as progress:
        plan = app.puller(progress, options.offline).planner.plan(reference, context)
    if options.json:
        app.streams.answer_object(download_plan_object(plan))
        return
    print_candidates(app.streams, plan)
    app.streams.report(f"cerebrum pull {reference} would download {plan.reference}")


def pull_vocabulary(app: App, reference: Reference, context: int | None, options: PullCommandOptions) -> Model:
    from cerebrum_cli.terminal.interrupts import interruptible
    from cerebrum_cli.terminal.progress import FileProgress

    with FileProgress(app.streams) as progress, interruptible("run it again"):
        model = app.puller(progress, options.offline).pull_vocabulary(reference, context)
    installed = "installed the vocabulary of" if model.is_vocabulary else "its vocabulary is in the installed"
    app.streams.report(f"{installed} {model.reference}: {model.path}")
    return model
