"""Find, download, list and show models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cerebrum_cli.application.models import listing
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.bars import FileProgress
from cerebrum_cli.terminal.interrupts import interruptible
from cerebrum_cli.terminal.tables import print_candidates, print_catalogue, print_description, print_models

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.application.inference.loading import ResolvedModel
    from cerebrum_cli.application.inference.profiles import Profile
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.option_groups import (
        AnswerOptions,
        ListOptions,
        PullCommandOptions,
        PullOptions,
        QuietOptions,
        ReportOptions,
    )


def find_model(runtime: Runtime, given: Mapping[str, Any], options: PullOptions) -> Model:
    """Find the model the settings name; offer to download it if it is not installed. Raises ModelNotFound."""
    settings = runtime.settings(given)
    try:
        model = runtime.library.resolve(settings.model)
    except ModelNotFound as error:
        if error.pullable is None or not (options.yes or runtime.streams.can_ask):
            raise
        with file_progress(runtime, options) as progress:
            if runtime.puller(progress, options.offline).is_unavailable_offline(error.pullable):
                raise
        if not (options.yes or confirm_pull(runtime, error, error.pullable, settings.ctx, options)):
            raise
        model = pull_model(runtime, error.pullable, None, settings.ctx, options)
    runtime.library.registry.touch(model.usage_key)
    return model


def confirm_pull(
    runtime: Runtime, error: ModelNotFound, reference: str, context: int | None, options: PullOptions
) -> bool:
    """Ask whether a model should be downloaded now, naming its quantization and size."""
    with file_progress(runtime, options) as progress:
        plan = runtime.puller(progress, options.offline).planner.plan(reference, context)
    size = f"{plan.chosen.quantization}, {format_size(plan.chosen.size)}"
    return runtime.streams.confirm(f"{error.message}. Pull {reference} ({size}) now?")


def pull_model(runtime: Runtime, reference: str, name: str | None, context: int | None, options: PullOptions) -> Model:
    """Download a model with a progress bar; ask before one that does not fit this machine."""
    with file_progress(runtime, options) as progress:

        def agree(warning: str) -> bool:
            with progress.paused():
                return options.yes or runtime.streams.confirm(f"{warning}. Pull it anyway?", usual=False)

        with interruptible("run it again to resume"):
            model = runtime.puller(progress, options.offline).pull(reference, name, context, agree)
    if not options.quiet:
        runtime.streams.info(f"installed {model.reference}: {model.path}")
    return model


def show_download_plan(runtime: Runtime, reference: str, context: int | None, json: bool, options: PullOptions) -> None:
    """Print the quantizations a reference offers and which fit; download nothing."""
    with file_progress(runtime, options) as progress:
        plan = runtime.puller(progress, options.offline).planner.plan(reference, context)
    if json:
        runtime.streams.answer_object(listing.download_plan_object(plan))
        return
    print_candidates(runtime.streams, plan)
    if not options.quiet:
        runtime.streams.info(f"cerebrum pull {reference} would download {plan.reference}")


def resolve_encoding(runtime: Runtime, model: Model, settings: Settings, options: AnswerOptions) -> ResolvedModel:
    """Choose the file that answers for a model and its tuning; `--no-profile` ignores both."""
    from cerebrum_cli.application.inference.loading import ResolvedModel

    return ResolvedModel(model) if options.no_profile else runtime.resolved_model(model, settings)


def file_progress(runtime: Runtime, options: QuietOptions) -> FileProgress:
    """Progress bar for files, unless `--quiet`."""
    return FileProgress(runtime.streams, options.quiet)


def pull(runtime: Runtime, reference: str, given: Mapping[str, Any], options: PullCommandOptions) -> None:
    """Run `cerebrum pull`."""
    context = runtime.settings(given).ctx
    if options.dry_run:
        show_download_plan(runtime, reference, context, options.json, options)
        return
    model = pull_model(runtime, reference, options.name, context, options)
    if options.default:
        runtime.library.registry.set_default(model.reference)
    if options.json:
        runtime.streams.answer_object(listing.row(runtime.library, model))


def list_models(runtime: Runtime, given: Mapping[str, Any], options: ListOptions) -> None:
    """Run `cerebrum list`."""
    library, streams, context = runtime.library, runtime.streams, runtime.settings(given).ctx
    listed = list(listing.catalogue_rows(library, context) if options.available else listing.rows(library))
    if options.json:
        streams.answer_object(listed)
    elif options.available:
        print_catalogue(streams, listed)
    elif listed:
        print_models(streams, listed)
        for row in listed:
            if row["error"]:
                streams.info(f"error: {row['error']}")
        if not options.quiet and any(row["default"] for row in listed):
            streams.info("* default model")
    elif not options.quiet:
        streams.info("no models installed; cerebrum list --available shows what can be pulled")


def show(runtime: Runtime, reference: str, given: Mapping[str, Any], options: ReportOptions) -> None:
    """Run `cerebrum show`."""
    from cerebrum_cli.application.inference.profiles import profile_object

    profile, settings, library = None, runtime.settings(given), runtime.library
    try:
        model = library.resolve(reference)
    except ModelNotFound as error:
        available = listing.describe_available(library, reference, settings.ctx)
        if available is None:
            raise
        description, plan = available
        note = f"{error.message}; to install it: {error.hint}" if error.pullable else error.message
    else:
        with FileProgress(runtime.streams, options.quiet or options.json) as progress:
            description = listing.describe(library, model, lambda done, total: progress.update("verify", done, total))
        plan = listing.quantization_plan(library, model, settings.ctx)
        profile, note = profile_of(runtime, model, settings)
    if options.json:
        profile_row = {"profile": profile and profile_object(profile)}
        runtime.streams.answer_object(description | profile_row | (listing.candidates_object(plan) if plan else {}))
        return
    print_description(runtime.streams, description)
    if profile:
        from cerebrum_cli.terminal.tuning_report import print_profile

        runtime.streams.answer(f"\nmeasured {profile.created}\n\n")
        print_profile(runtime.streams, profile)
    if plan:
        print_candidates(runtime.streams, plan)
    if note and not options.quiet:
        runtime.streams.info(note)


def profile_of(runtime: Runtime, model: Model, settings: Settings) -> tuple[Profile | None, str]:
    """Profile of the file that answers for a model, and a note if it was measured elsewhere."""
    preferred = runtime.library.preferred(model)
    profile = runtime.profile(preferred, settings)
    if profile is None and runtime.profiles().elsewhere(runtime.library.identity(preferred)):
        command = f"cerebrum tune {model.reference}"
        return None, f"its profile is from another machine or build of llama.cpp; {command} measures it here"
    return profile, ""
