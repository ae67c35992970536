"""`cerebrum list`, `show` and `rm`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.cli.command import BaseCommand, argument, environment_layer, installed_models
from cerebrum_cli.cli.model_choice import note_precedence
from cerebrum_cli.cli.model_tables import (
    is_url,
    print_candidates,
    print_catalogue,
    print_description,
    print_found,
    print_models,
)
from cerebrum_cli.cli.options import json_option, require_agreement, yes_option
from cerebrum_cli.cli.pull import given_flags
from cerebrum_cli.core.declaration import option_group, switch
from cerebrum_cli.core.errors import CerebrumError, ModelNotFound, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import folder_size
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import MODES, REPLY_KEYS, SAMPLING_KEYS, WITH_THINKING, Layer, Settings, SourcedLayer
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.progress import FileProgress, interruptible

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.events import OnProgress
    from cerebrum_cli.library.installed import InstalledModel


@option_group
class ListCommand(BaseCommand):
    """Includes models that other tools have put into the Hugging Face cache. Only --outdated uses the network.

    Examples:
      cerebrum list
      cerebrum list --available
      cerebrum list --outdated
    """

    available: bool = switch("List the catalog, best fit first; last on a terminal", "Model")
    found: bool = switch("List Ollama's models", "Model")
    outdated: bool = switch("List models with a newer upload on the Hub", "Model")
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        from cerebrum_cli.cli.model_objects import catalogue_rows, found_rows, row

        flags = given_flags(self, "available", "found", "outdated")
        if len(flags) > 1:
            raise UsageError.conflict(*flags[:2])
        library = app.library
        ctx = app.readable_settings(environment_layer("ctx")).ctx
        if self.available:
            listed = catalogue_rows(library, ctx)
        elif self.found:
            listed = list(found_rows(library))
        elif self.outdated:
            from cerebrum_cli.library.online import outdated

            with FileProgress(app.streams) as progress, interruptible("run it again"):
                listed = [row(library, model, library.capacity()) for model in outdated(library, progress)]
        else:
            capacity = library.capacity()
            listed = [row(library, model, capacity) for model in library.models()]
        if self.json:
            app.streams.answer(listed)
        elif self.available:
            print_available(app, listed, ctx)
        elif self.found:
            print_found_models(app, listed)
        else:
            print_installed(app, listed, self.outdated)


def print_available(app: App, listed: list[JsonDict], ctx: int | None) -> None:
    from cerebrum_cli.engine.capacity import FORECAST, planned_context

    shown = listed[::-1] if app.streams.out_is_terminal else listed
    left_out = print_catalogue(app.streams, shown)
    planned = f"memory for a context of {planned_context(ctx, None)} tokens, {FORECAST}"
    hint = f"this window is too narrow for: {', '.join(left_out)}; --json prints all" if left_out else ""
    app.streams.note(NoticeEvent(f"{planned}; {app.library.capacity().description}", hint))


def print_found_models(app: App, listed: list[JsonDict]) -> None:
    if listed:
        print_found(app.streams, listed)
    _, unreadable = app.library.models_of_ollama()
    for error in unreadable:
        app.streams.note(NoticeEvent(error.message, error.hint))
    if listed:
        app.streams.note("next: cerebrum pull MODEL")
    elif not unreadable:
        app.streams.note("no GGUF models found in Ollama")


def print_installed(app: App, listed: list[JsonDict], is_outdated: bool) -> None:
    streams = app.streams
    if listed:
        print_models(streams, listed)
        for row in listed:
            if row["error"]:
                streams.error(CerebrumError(row["error"]))
            if is_url(row["reference"]):
                streams.note(f"another {row['name']}:{row['quantization']}, by its URL: {row['reference']}")
        if any(row["default"] for row in listed):
            streams.note("* default model")
            note_precedence(app)
    if is_outdated:
        streams.note("next: cerebrum pull MODEL" if listed else "no installed model has a newer upload")
        return
    if listed:
        streams.note(disk_use(app, listed))
    pull = "" if listed else "; cerebrum list --available shows models to pull"
    streams.note(f"bundled, for trying the program: nano{pull}")


def disk_use(app: App, listed: list[JsonDict]) -> str:
    sizes = {Path(row["path"]).resolve(): row["size"] or 0 for row in listed}  # names may share a file
    models = format_size(sum(sizes.values()))
    return f"total: {models}; prompt cache: {format_size(folder_size(app.prompt_cache_directory))}"


@option_group
class ShowCommand(BaseCommand):
    """Also shows which quantizations fit this machine, without using the network.

    Examples:
      cerebrum show starter
      cerebrum show cerebrum-7b --json
    """

    name: str = argument("MODEL", "A model reference, as for `cerebrum pull`", installed_models)
    json: bool = json_option()

    def run(self, app: App) -> None:
        from cerebrum_cli.cli.model_objects import refusal_text

        library = app.library
        reference = library.parse(self.name)
        ctx = app.readable_settings(environment_layer("ctx", "threads", "gpu_layers")).ctx
        try:
            model = library.find(reference)
        except ModelNotFound as error:
            description = describe_not_installed(app, self.name, error)
            available = library.catalogue_quantizations(reference, ctx)
            note = f"{error.message}; to install it: {error.hint}" if error.pullable else error.message
        else:
            with FileProgress(replace(app.streams, is_quiet=self.quiet or self.json)) as progress:
                description = describe(app, model, partial(progress.update, "verify"))
            available = library.quantizations(model, ctx)
            note = refusal_text(model) or ""
        if self.json:
            app.streams.answer(description | (available.table if available else {}))
            return
        print_description(app.streams, description)
        if available and not description.get("unsupported"):
            print_candidates(app.streams, available.heading, available.table["quantizations"])
        app.streams.note(note)


def describe_not_installed(app: App, name: str, error: ModelNotFound) -> JsonDict:
    """Describe a model by the catalog. Raises the error if that does not have it."""
    from cerebrum_cli.cli.model_objects import sampling_object

    reference = app.library.parse(name)
    spec = app.library.catalogue.meant_by(reference)
    if spec is None:
        raise error
    return {
        "name": spec.name,
        "reference": str(reference),
        "title": spec.title,
        "path": None,
        "size": None,
        "format": spec.format,
        "context_size": spec.context_size,
        "sampling": sampling_object(settings_by_mode(app, spec.recommended)),
        "sha256": None,
        "quantization": None,
        "kv_bytes_per_token": spec.kv_bytes_per_token,
        "repo_id": spec.repo_id or spec.weights,
        "revision": spec.revision,
        "license": spec.license,
        "default": False,
        "notes": spec.notes,
        "metadata": None,
    }


def describe(app: App, model: InstalledModel, on_progress: OnProgress | None = None) -> JsonDict:
    from cerebrum_cli.cli.model_objects import model_object

    settings = app.readable_settings(environment_layer(*REPLY_KEYS), model.recommended)
    return model_object(app.library, model, settings, settings_by_mode(app, model.recommended), on_progress)


def settings_by_mode(app: App, recommended: Layer) -> dict[str, Settings]:
    """The settings of a question with thinking on, and off."""
    layer = environment_layer(*SAMPLING_KEYS)
    modes = {}
    for mode in MODES:
        modes[mode] = app.readable_settings(SourcedLayer(layer, {"think": mode == WITH_THINKING}), recommended)
    return modes


@option_group
class RmCommand(BaseCommand):
    """Local files, and those of Ollama, are unregistered, not deleted.

    Examples:
      cerebrum rm starter
      cerebrum rm -y cerebrum-7b:Q4_K_M cerebrum-7b:Q8_0
      cerebrum rm --prompt-cache
    """

    models: list[str] = argument("[MODEL]...", "Installed models", installed_models, is_list=True, is_required=False)
    prompt_cache: bool = switch("Empty the prompt cache", "Model")
    yes: bool = yes_option()

    def run(self, app: App) -> None:
        if not (self.models or self.prompt_cache):
            raise UsageError("no model given", "name one or more, or use --prompt-cache")
        removals = {removal.model.reference: removal for removal in map(app.library.removal, self.models)}
        default = app.default_model()
        for reference, removal in removals.items():
            require_agreement(app, removal.question, reference, self.yes)
            report = removal.carry_out()
            if default in removal.model.references:
                app.write_setting("model", None)
                report += "; no default model is set now"
            app.streams.note(report)
        if self.prompt_cache:
            from cerebrum_cli.engine.local import clear_prompt_cache

            size = folder_size(app.prompt_cache_directory)
            clear_prompt_cache(app.prompt_cache_directory)
            app.streams.note(f"emptied the prompt cache, freed {format_size(size)}")
