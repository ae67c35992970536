"""`cerebrum list` and `cerebrum show`: the models that are installed, and one of them in detail."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.cli.completion import stored_models
from cerebrum_cli.cli.options import ListOptions, ShowOptions
from cerebrum_cli.cli.signature import app_of, composed, positional
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.settings import Settings, environment_layer

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.inference.profiles import Profile
    from cerebrum_cli.models.model import Model


@composed
def list_models(context: typer.Context, options: ListOptions) -> None:
    """Includes models that other tools have put into the Hugging Face cache. The network is not used."""
    from cerebrum_cli.models import listing
    from cerebrum_cli.terminal.tables import print_catalogue, print_models

    app = app_of(context, options)
    library, streams = app.library, app.streams
    ctx = app.readable_settings(environment_layer("ctx")).ctx
    installed = (listing.row(library, model) for model in library.models())
    listed = list(listing.catalogue_rows(library, ctx) if options.available else installed)
    if options.json:
        streams.answer_object(listed)
    elif options.available:
        print_catalogue(streams, listed)
    elif listed:
        print_models(streams, listed)
        for row in listed:
            if row["error"]:
                streams.info(f"error: {row['error']}")
        if any(row["default"] for row in listed):
            streams.report("* default model")
    else:
        streams.report("no model is installed; cerebrum list --available shows models to pull")
    if not (options.json or options.available):
        for model in library.vocabularies():
            streams.report(f"vocabulary only, for --endpoint: {model.reference}")


@composed
def show(
    context: typer.Context,
    name: Annotated[str, positional("MODEL", "A model reference, as for `cerebrum pull`", stored_models)],
    options: ShowOptions,
) -> None:
    """Also shows its tuning profile, and which quantizations fit this machine.

    The network is not used; `cerebrum pull --dry-run` queries the Hub.
    """
    from cerebrum_cli.inference.profiles import profile_object
    from cerebrum_cli.models import listing
    from cerebrum_cli.terminal.progress import FileProgress
    from cerebrum_cli.terminal.reports import print_profile
    from cerebrum_cli.terminal.tables import print_candidates, print_description

    app, profile = app_of(context, options), None
    library, reference = app.library, app.library.parse(name)
    settings = app.readable_settings(environment_layer("ctx", "threads", "gpu_layers"))
    try:
        model = library.find(reference)
    except ModelNotFound as error:
        available = listing.describe_available(library, reference, settings.ctx)
        vocabulary = library.stored_vocabulary(reference)
        if available is None and vocabulary is None:
            raise
        description, plan = available or ({}, None)
        note = f"{error.message}; to install it: {error.hint}" if error.pullable else error.message
        if vocabulary:
            description = listing.describe(library, vocabulary, lambda *_: None)
            note = f"only its vocabulary is installed, for --endpoint; {note}"
    else:
        with FileProgress(replace(app.streams, is_quiet=options.quiet or options.json)) as progress:
            description = listing.describe(library, model, lambda done, total: progress.update("verify", done, total))
        plan = listing.quantization_plan(library, model, settings.ctx)
        profile, note = profile_of(app, model, settings)
    if options.json:
        profile_row = {"profile": profile and profile_object(profile)}
        app.streams.answer_object(description | profile_row | (listing.candidates_object(plan) if plan else {}))
        return
    print_description(app.streams, description)
    if profile:
        app.streams.answer(f"\nmeasured {profile.created}\n\n")
        print_profile(app.streams, profile)
    if plan:
        print_candidates(app.streams, plan)
    app.streams.report(note)


def profile_of(app: App, model: Model, settings: Settings) -> tuple[Profile | None, str]:
    """Profile of a model, and a note if it was measured elsewhere."""
    profile = app.profile(model, settings)
    if profile is None and app.profiles().find_other(app.library.identity(model)):
        command = f"cerebrum tune {model.reference}"
        return None, f"its profile is from another machine or build of llama.cpp; run {command}"
    return profile, ""
