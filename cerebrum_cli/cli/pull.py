"""`cerebrum search` and `pull`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import BaseCommand, argument, environment_layer, known_models
from cerebrum_cli.cli.model_choice import choose_model, note_precedence, pull_model
from cerebrum_cli.cli.model_tables import forecast, print_candidates, print_repositories
from cerebrum_cli.cli.options import PullOptions, json_option, offline_option
from cerebrum_cli.core.declaration import flag, option, option_group, switch
from cerebrum_cli.core.errors import FormatError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.progress import FileProgress
from cerebrum_cli.terminal.tables import print_rows

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.library.pull import Puller


@option_group
class SearchCommand(BaseCommand):
    """Lists the 10 most downloaded GGUF repositories. `cerebrum pull --dry-run REPOSITORY` shows which files fit.

    Examples:
      cerebrum search qwen3.5
      cerebrum search "gemma 4" --json
    """

    text: str = argument("TEXT", "Part of a repository's name")
    offline: bool = offline_option()
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        from cerebrum_cli.library.online import search

        with FileProgress(app.streams) as progress:
            rows = [repository._asdict() for repository in search(self.text, progress, self.offline)]
        nothing = f"no GGUF repository on the Hub matches {self.text!r}"
        print_rows(app.streams, rows, self.json, print_repositories, nothing)
        if rows and app.streams.err_is_terminal:
            app.streams.note("next: cerebrum pull --dry-run REPOSITORY")


@option_group
class PullCommand(PullOptions):
    """Without MODEL, offers the models that cerebrum was made for, and a few others that fit this machine. Without
    :QUANT, downloads the recommended quantization. Run an interrupted download again to resume it.

    A local file is used in place, and so are models of Ollama (`cerebrum list --found`). Safetensors are converted to
    GGUF.

    Examples:
      cerebrum pull cerebrum-7b
      cerebrum pull owner/repo:Q5_K_M --name mine
      cerebrum pull ./folder --type Q4_K_M
      cerebrum pull --dry-run cerebrum-8x7b
    """

    model: str | None = argument(
        "[MODEL]", "NAME[:QUANT], OWNER/REPO[:QUANT], a URL, a path or ollama:NAME", known_models, is_required=False
    )
    name: str | None = option("Name for the model", "Model", metavar="NAME")
    default: bool = switch("Make this the default model", "Model")
    type: str | None = option("Quantization; safetensors are converted to it", "Model", metavar="TYPE")
    from_weights: bool = switch("Convert safetensors even if GGUF files exist", "Model")
    dry_run: bool = switch("Show what is available and what fits; download nothing", "Output")
    json: bool = json_option()

    def run(self, app: App) -> None:
        ctx = app.settings(environment_layer("ctx")).ctx
        text = self.model or suggested_model(app, ctx)
        opened = app.puller(self.offline, ctx, self.yes, self.type, self.from_weights)
        if self.dry_run:
            app.machine.record_bandwidth()
            show_download_plan(app, opened, text, self.json)
            return
        installed = pull_model(app, opened, text, self.name)
        if self.default:
            make_default(app, installed)
        if app.streams.err_is_terminal:
            report_next_step(app, installed)
        if self.json:
            from cerebrum_cli.cli.model_objects import row

            app.streams.answer(row(app.library, installed, app.library.capacity()))


def suggested_model(app: App, ctx: int | None) -> str:
    """A model that the user chooses from a few that fit; exit 1 with nothing pulled if the user quits.

    Raises UsageError if there is no terminal to ask on, or no model that fits.
    """
    from cerebrum_cli.cli.model_objects import suggestions

    app.machine.record_bandwidth()
    rows = suggestions(app.library, ctx)
    chosen = choose_model(app, "choose a model", rows)
    if chosen is None:
        if rows and app.streams.can_ask:
            app.streams.draw("nothing pulled\n")
            raise typer.Exit(1)
        example = f"name one, such as cerebrum pull {rows[0]['name']}, or " if rows else ""
        raise UsageError("no model given", f"{example}see cerebrum list --available")
    return chosen


def given_flags(options: object, *names: str) -> list[str]:
    return [flag(name) for name in names if getattr(options, name)]


def make_default(app: App, model: InstalledModel) -> None:
    app.write_setting("model", model.reference)
    app.streams.note(f"default model: {model.reference}")
    note_precedence(app)


def report_next_step(app: App, model: InstalledModel) -> None:
    """Report how fast an installed model should be, and the command that tries it."""
    from cerebrum_cli.cli.model_objects import row
    from cerebrum_cli.replies.source import ModelSource

    app.machine.record_bandwidth()
    if expected := forecast(row(app.library, model, app.library.capacity())):
        app.streams.note(expected)
    try:
        _ = ModelSource(app, model, app.settings({}, model.recommended)).chosen_format
    except FormatError:
        command = f'cerebrum ask --raw -m {model.reference} "Once upon a time"'
        app.streams.note(f"its file has no chat template; next: {command}")
        return
    app.streams.note(f"next: cerebrum chat {model.reference}")


def show_download_plan(app: App, opened: AbstractContextManager[Puller], text: str, is_json: bool) -> None:
    with opened as puller:
        reference = puller.parse(text)
        plan = puller.plan(reference)
        merge = puller.describe_merge(plan)
    if is_json:
        app.streams.answer(plan.described)
        return
    available = plan.available
    print_candidates(app.streams, available.heading, available.table["quantizations"])
    what = f"download {available.reference}"
    if plan.conversion:
        what = f"convert {format_size(plan.conversion.size)} of safetensors to {available.reference}"
    elif merge:
        what = merge
    else:
        plan.require_one_build()
    if plan.chosen.installed:
        what = "use the installed model"
    if plan.spec and plan.spec.notes:
        app.streams.note(NoticeEvent(plan.spec.title, plan.spec.notes))
    source = text if isinstance(reference, Path) else reference  # with ./, without which a path is a name
    app.streams.note(f"cerebrum pull {source} would {what}")
