"""`cerebrum search`, `pull`, `list`, `show` and `rm`."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

from cerebrum_cli.cli.completion_values import known_models, stored_models
from cerebrum_cli.cli.model_choice import choose_model, pull_model
from cerebrum_cli.cli.model_tables import (
    is_url,
    print_candidates,
    print_catalogue,
    print_description,
    print_found,
    print_models,
    print_repositories,
    speed_text,
)
from cerebrum_cli.cli.options import Json, JsonArray, PullOptions, QuietOptions, Yes, json_option, require_agreement
from cerebrum_cli.cli.signature import Argument, composed
from cerebrum_cli.cli.variables import environment_layer
from cerebrum_cli.core.declaration import SWITCH, Option, flag, option, option_group, switch
from cerebrum_cli.core.errors import CerebrumError, FormatError, ModelNotFound, UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import MODES, REPLY_KEYS, SAMPLING_KEYS, Layer, Settings, SourcedLayer
from cerebrum_cli.core.text import format_size
from cerebrum_cli.terminal.progress import FileProgress, interruptible
from cerebrum_cli.terminal.tables import print_rows

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.transfers import OnProgress
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.library.pull import Puller


@composed
def search(
    app: App,
    text: Annotated[str, Argument("TEXT", "Part of a repository's name")],
    _: QuietOptions,
    offline: Annotated[bool, Option("Do not use the network", "Model", SWITCH)] = False,
    json: JsonArray = False,
) -> None:
    """Lists the 10 most downloaded GGUF repositories with the quantization recommended for this machine.

    Whether it fits is an estimate; `cerebrum pull --dry-run REPOSITORY` is exact, and lists all quantizations.

    Examples:
      cerebrum search qwen3.5
      cerebrum search "gemma 4" --json
    """
    from cerebrum_cli.cli.model_objects import best_fit

    ctx = app.readable_settings(environment_layer("ctx")).ctx
    rows = []
    with app.puller(offline, ctx) as puller:
        for repository, plan in puller.planner.search(text):
            rows.append({**repository._asdict(), **best_fit(asdict(plan.chosen) if plan else {})})
    print_rows(app.streams, rows, json, print_repositories, f"no GGUF repository on the Hub matches {text!r}")
    if rows and app.streams.err_is_terminal:
        app.streams.report("next: cerebrum pull REPOSITORY")


@option_group
class PullCommandOptions(PullOptions):
    name: str | None = option("Name for the model", "Model", metavar="NAME")
    default: bool = switch("Make this the default model", "Model")
    vocabulary: bool = switch("Download only the vocabulary, for --endpoint", "Model")
    type: str | None = option("Quantization; safetensors are converted to it", "Model", metavar="TYPE")
    from_weights: bool = switch("Convert safetensors even if GGUF files exist", "Model")
    discard: bool = switch("Delete downloaded safetensors once converted", "Model")
    dry_run: bool = switch("Show what is available and what fits; download nothing", "Output")
    json: bool = json_option()


@composed
def pull(
    app: App,
    model: Annotated[
        str | None,
        Argument(
            "[MODEL]", "NAME[:QUANT], OWNER/REPO[:QUANT], a URL, a path, ollama:NAME or lmstudio:NAME", known_models
        ),
    ] = None,
    *,
    options: PullCommandOptions,
) -> None:
    """Without MODEL, offers a few models that fit this machine. Without :QUANT, downloads the recommended quantization.
    Run an interrupted download again to resume it.

    A local file is used in place, and so are models of Ollama and LM Studio (`cerebrum list --found`). Safetensors are
    converted to GGUF.

    Examples:
      cerebrum pull cerebrum-7b
      cerebrum pull owner/repo:Q5_K_M --name mine
      cerebrum pull ./folder --type Q4_K_M
      cerebrum pull --dry-run cerebrum-8x7b
    """
    others = given_flags(options, "name", "default", "dry_run", "type", "from_weights", "discard")
    if options.vocabulary and others:
        raise UsageError.conflict("--vocabulary", others[0])
    ctx = app.settings(environment_layer("ctx")).ctx
    text = model or suggested_model(app, ctx)
    opened = app.puller(options.offline, ctx, options.yes, options.type, options.from_weights, options.discard)
    if options.dry_run:
        app.machine.record_bandwidth()
        show_download_plan(app, opened, text, options.json)
        return
    if options.vocabulary:
        with opened as puller, interruptible("run it again"):
            installed = puller.pull_vocabulary(puller.parse(text))
        what = "installed the vocabulary of" if installed.is_vocabulary else "the vocabulary is part of the installed"
        app.streams.report(f"{what} {installed.reference}: {installed.path}")
    else:
        installed = pull_model(app, opened, text, options.name)
        if options.default:
            app.library.registry.set_default(installed.reference)
        if app.streams.err_is_terminal:
            report_next_step(app, installed)
    if options.json:
        from cerebrum_cli.cli.model_objects import row

        app.streams.answer_object(row(app.library, installed, app.library.capacity()))


def suggested_model(app: App, ctx: int | None) -> str:
    """A model that the user chooses from a few that fit. Raises UsageError without a choice."""
    from cerebrum_cli.cli.model_objects import suggestions

    app.machine.record_bandwidth()
    rows = suggestions(app.library, ctx)
    chosen = choose_model(app, "models that fit this machine, best first", rows)
    if chosen is None:
        example = f"name one, such as cerebrum pull {rows[0]['name']}, or " if rows else ""
        raise UsageError("no model given", f"{example}see cerebrum list --available")
    return chosen


def given_flags(options: object, *names: str) -> list[str]:
    return [flag(name) for name in names if getattr(options, name)]


def report_next_step(app: App, model: InstalledModel) -> None:
    """Report how fast an installed model should be, and the command that tries it."""
    from cerebrum_cli.cli.model_objects import row
    from cerebrum_cli.engine.local import FORECAST
    from cerebrum_cli.replies.source import ModelSource

    app.machine.record_bandwidth()
    if speed := speed_text(row(app.library, model, app.library.capacity())):
        app.streams.report(f"expected {FORECAST}: {speed}")
    try:
        _ = ModelSource(app, model, app.settings({}, model.recommended)).chosen_format
    except FormatError:
        command = f'cerebrum ask --raw -m {model.reference} "Once upon a time"'
        app.streams.report(f"its file has no chat template; next: {command}")
        return
    app.streams.report(f"next: cerebrum chat {model.reference}")


def show_download_plan(app: App, opened: AbstractContextManager[Puller], text: str, is_json: bool) -> None:
    with opened as puller:
        reference = puller.parse(text)
        plan = puller.plan(reference)
    if is_json:
        app.streams.answer_object(plan.described)
        return
    print_candidates(app.streams, plan.heading, plan.table["quantizations"])
    what = f"download {plan.reference}"
    if plan.conversion:
        what = f"convert {format_size(plan.conversion.size)} of safetensors to {plan.reference}"
    elif plan.listing:
        _ = plan.download  # raises an error if several models were meant
    app.streams.report(f"cerebrum pull {reference} would {what}")


@option_group
class ListOptions(QuietOptions):
    available: bool = switch("List the catalog, models that fit this machine first", "Model")
    found: bool = switch("List the models of Ollama and LM Studio", "Model")
    outdated: bool = switch("List models with a newer upload on the Hub", "Model")
    json: bool = switch("Print a JSON array", "Output")


@composed
def list_models(app: App, options: ListOptions) -> None:
    """Includes models that other tools have put into the Hugging Face cache. Only --outdated uses the network.

    Examples:
      cerebrum list
      cerebrum list --available
      cerebrum list --outdated
    """
    from cerebrum_cli.cli.model_objects import catalogue_rows, found_rows, row

    flags = given_flags(options, "available", "found", "outdated")
    if len(flags) > 1:
        raise UsageError.conflict(*flags[:2])
    library = app.library
    ctx = app.readable_settings(environment_layer("ctx")).ctx
    if options.available:
        listed = catalogue_rows(library, ctx)
    elif options.found:
        listed = list(found_rows(library))
    elif options.outdated:
        with app.puller(offline=False) as puller, interruptible("run it again"):
            listed = [row(library, model, library.capacity()) for model in puller.planner.outdated()]
    else:
        capacity = library.capacity()
        listed = [row(library, model, capacity) for model in library.models()]
    if options.json:
        app.streams.answer_object(listed)
    elif options.available:
        print_available(app, listed, ctx)
    elif options.found:
        print_found_models(app, listed)
    else:
        print_installed(app, listed, options.outdated)


def print_available(app: App, listed: list[JsonDict], ctx: int | None) -> None:
    from cerebrum_cli.engine.local import FORECAST, planned_context

    print_catalogue(app.streams, listed)
    planned = f"memory for a context of {planned_context(ctx, None)} tokens, {FORECAST}"
    app.streams.note(f"{planned}; {app.library.capacity().description}")


def print_found_models(app: App, listed: list[JsonDict]) -> None:
    if listed:
        print_found(app.streams, listed)
    unreadable = app.library.unreadable_stores()
    for error in unreadable:
        app.streams.note(error.message, error.hint)
    if listed:
        app.streams.report("next: cerebrum pull MODEL")
    elif not unreadable:
        app.streams.report("no GGUF models found in Ollama or LM Studio")


def print_installed(app: App, listed: list[JsonDict], is_outdated: bool) -> None:
    streams = app.streams
    if listed:
        print_models(streams, listed)
        for row in listed:
            if row["error"]:
                streams.error(CerebrumError(row["error"]))
            if is_url(row["reference"]):
                streams.report(f"another {row['name']}:{row['quantization']}, by its URL: {row['reference']}")
        if any(row["default"] for row in listed):
            streams.report("* default model")
    if is_outdated:
        streams.report("next: cerebrum pull MODEL" if listed else "no installed model has a newer upload")
        return
    pull = "" if listed else "; cerebrum list --available shows models to pull"
    streams.report(f"bundled, for trying the program: nano{pull}")
    for model in app.library.vocabularies():
        streams.report(f"vocabulary only, for --endpoint: {model.reference}")


@composed
def show(
    app: App,
    name: Annotated[str, Argument("MODEL", "A model reference, as for `cerebrum pull`", stored_models)],
    options: QuietOptions,
    json: Json = False,
) -> None:
    """Also shows which quantizations fit this machine, without using the network.

    Examples:
      cerebrum show starter
      cerebrum show cerebrum-7b --json
    """
    library = app.library
    reference = library.parse(name)
    ctx = app.readable_settings(environment_layer("ctx", "threads", "gpu_layers")).ctx
    try:
        model = library.find(reference)
    except ModelNotFound as error:
        description = describe_not_installed(app, name, error)
        plan = library.catalogue_plan(reference, ctx)
        note = f"{error.message}; to install it: {error.hint}" if error.pullable else error.message
        if library.stored_vocabulary(reference):
            note = f"only its vocabulary is installed, for --endpoint; {note}"
    else:
        with FileProgress(replace(app.streams, is_quiet=options.quiet or json)) as progress:
            description = describe(app, model, partial(progress.update, "verify"))
        plan = library.quantization_plan(model, ctx)
        note = model.refusal
    if json:
        app.streams.answer_object(description | (plan.table if plan else {}))
        return
    print_description(app.streams, description)
    if plan and not description.get("unsupported"):
        print_candidates(app.streams, plan.heading, plan.table["quantizations"])
    app.streams.report(note)


def describe_not_installed(app: App, name: str, error: ModelNotFound) -> JsonDict:
    """Describe a model by its vocabulary or the catalog. Raises the error without either."""
    from cerebrum_cli.cli.model_objects import sampling_object

    reference = app.library.parse(name)
    if vocabulary := app.library.stored_vocabulary(reference):
        return describe(app, vocabulary)
    spec = app.library.spec_of(reference)
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

    by_mode = settings_by_mode(app, model.recommended)
    return model_object(app.library, model, ask_settings(app, model), by_mode, on_progress)


def ask_settings(app: App, model: InstalledModel) -> Settings:
    """The settings of a question without options."""
    from cerebrum_cli.core.settings import EMBEDDED

    settings = app.readable_settings(environment_layer(*REPLY_KEYS), model.recommended)
    return replace(settings, format=EMBEDDED) if settings.template_file else settings


def settings_by_mode(app: App, recommended: Layer) -> dict[str, Settings]:
    """The settings of a question with thinking on, and off."""
    layer = environment_layer(*SAMPLING_KEYS)
    modes = {}
    for is_on, mode in MODES.items():
        modes[mode] = app.readable_settings(SourcedLayer(layer, {"think": is_on}), recommended)
    return modes


@composed
def rm(
    app: App,
    model: Annotated[str, Argument("MODEL", "An installed model or vocabulary", stored_models)],
    _: QuietOptions,
    yes: Yes = False,
) -> None:
    """Local files, and those of Ollama and LM Studio, are unregistered, not deleted.

    Examples:
      cerebrum rm starter
      cerebrum rm -y cerebrum-7b:Q4_K_M
    """
    removal = app.library.removal(model)
    require_agreement(app, removal.question, removal.model.reference, yes)
    app.streams.report(removal.carry_out())
