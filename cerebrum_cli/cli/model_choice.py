"""The model that a command downloads instead of one that is not installed, if the user agrees."""

from __future__ import annotations

from contextlib import AbstractContextManager, suppress
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import environment_layer
from cerebrum_cli.core.errors import ConfigError, ModelNotFound
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import COMMAND_LINE, DEFAULT, SESSION, Settings
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.progress import interruptible

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.library.pull import Puller

CHOICES = "tested ones first, then those that cerebrum was made for, then others that fit this machine"


def pull_missing(app: App, settings: Settings, error: ModelNotFound, *, yes: bool, offline: bool) -> InstalledModel:
    """Download the model that settings name and that is not installed, if the user agrees or `yes` is given.

    Raises the error otherwise.
    """
    origin = settings.origin("model")
    if origin not in (DEFAULT, COMMAND_LINE):
        error.message = f"{origin}: {error.message}"
    if origin == SESSION and error.pullable is None:
        error.hint = "add --endpoint if a server has it, or choose another model with -m"
    if error.pullable is None or not (yes or app.streams.can_ask):
        raise error
    text: str = error.pullable
    with app.puller(offline, settings.ctx) as puller:
        if puller.options.is_offline:
            raise error
        if settings.model is None and not yes:
            from cerebrum_cli.cli.model_objects import suggestions

            rows = suggestions(app.library, settings.ctx)
            chosen = choose_model(app, f"{error.message}; choose one", rows)
            if chosen is None:
                raise error
            text = chosen
        elif not (yes or confirm_pull(app, error, puller, text)):
            raise error
    return pull_model(app, app.puller(offline, settings.ctx, yes), text)


def note_precedence(app: App) -> None:
    """Write a note if a variable sets another model than the default model."""
    settings = app.readable_settings(environment_layer("model"))
    if settings.model != app.default_model():
        app.streams.note(NoticeEvent(f"{settings.origin('model')} sets {settings.model}, which takes precedence"))


def choose_model(app: App, request: str, rows: list[JsonDict]) -> str | None:
    """List suggested models, and ask for one; None if there is no terminal to ask on, or the user quits."""
    from cerebrum_cli.cli.model_tables import print_choices

    if not rows:
        return None
    err = app.streams.on_stderr
    app.streams.draw(f"{err.wrapped(f'{request}: {CHOICES}')}\n\n")
    print_choices(err, [{**row, "number": number} for number, row in enumerate(rows, 1)])
    if not app.streams.can_ask:
        return None
    app.streams.draw("\n")
    number = app.streams.choose("Pull which one?", len(rows))
    return None if number is None else "{name}:{recommended}".format_map(rows[number - 1])


def confirm_pull(app: App, error: ModelNotFound, puller: Puller, text: str) -> bool:
    reference = puller.parse(text)
    plan = puller.plan(reference)
    if plan.conversion:  # asked about when it is pulled
        return True
    size = f"{plan.chosen.quantization}, {format_size(plan.chosen.size)}"
    return app.streams.confirm(f"{error.message}. Pull {reference} ({size}) now?")


def pull_model(app: App, opened: AbstractContextManager[Puller], text: str, name: str | None = None) -> InstalledModel:
    """Download a model with a progress bar; ask which of several, and before one that does not fit this machine.

    It becomes the default model if there is none.
    """
    with opened as puller, interruptible("run it again to resume"):
        model = puller.pull(puller.parse(text), name)
    if app.default_model() is None:
        with suppress(ConfigError):  # a read-only directory has no default model
            app.write_setting("model", model.reference)
    app.streams.note(f"installed {model.reference}: {model.path}")
    return model
