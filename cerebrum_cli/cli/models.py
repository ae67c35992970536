"""Find the model a command uses, and download one that is not installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cerebrum_cli.cli.options import AnswerOptions, ConcurrencyOptions
from cerebrum_cli.core.errors import ModelNotFound
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.progress import FileProgress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import PullOptions
    from cerebrum_cli.models.model import Model
    from cerebrum_cli.models.reference import Reference


def find_model(app: App, overrides: Mapping[str, Any], options: PullOptions) -> Model:
    """Find the model the settings name; offer to download it if it is not installed. Raises ModelNotFound.

    A model that servers or nodes open is needed here only with its vocabulary.
    """
    settings = app.settings(overrides)
    has_nodes = isinstance(options, ConcurrencyOptions) and options.ray
    if has_nodes or (isinstance(options, AnswerOptions) and options.endpoint):
        return app.library.resolve_vocabulary(settings.model)
    try:
        model = app.library.resolve(settings.model)
    except ModelNotFound as error:
        if error.pullable is None or not (options.yes or app.streams.can_ask):
            raise
        reference = app.library.parse(error.pullable)
        with FileProgress(app.streams) as progress:
            if app.puller(progress, options.offline).is_unavailable_offline(reference):
                raise
        if not (options.yes or confirm_pull(app, error, reference, settings.ctx, options)):
            raise
        model = pull_model(app, reference, None, settings.ctx, options)
    app.library.registry.touch(model.usage_key)
    return model


def confirm_pull(
    app: App, error: ModelNotFound, reference: Reference, context: int | None, options: PullOptions
) -> bool:
    """Ask whether a model should be downloaded now, naming its quantization and size."""
    with FileProgress(app.streams) as progress:
        plan = app.puller(progress, options.offline).planner.plan(reference, context)
    size = f"{plan.chosen.quantization}, {format_size(plan.chosen.size)}"
    return app.streams.confirm(f"{error.message}. Pull {reference} ({size}) now?")


def pull_model(app: App, reference: Reference, name: str | None, context: int | None, options: PullOptions) -> Model:
    """Download a model with a progress bar; ask before one that does not fit this machine."""
    from cerebrum_cli.terminal.interrupts import interruptible

    with FileProgress(app.streams) as progress:

        def agree(warning: str) -> bool:
            progress.pause()
            return options.yes or app.streams.confirm(f"{warning}. Pull it anyway?", default=False)

        with interruptible("run it again to resume"):
            model = app.puller(progress, options.offline).pull(reference, name, context, agree)
    app.streams.report(f"installed {model.reference}: {model.path}")
    return model
