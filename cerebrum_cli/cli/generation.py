"""Functions of all commands that generate: settings of a vote, the grammar of an answer, the source of replies."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from shlex import quote
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from cerebrum_cli.cli.model_choice import find_model
from cerebrum_cli.cli.options import (
    AnswerOptions,
    ConcurrencyOptions,
    ConstrainedOptions,
)
from cerebrum_cli.core.declaration import flag
from cerebrum_cli.core.environment import without_home
from cerebrum_cli.core.errors import GrammarError, Interrupted, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import (
    ATTENTION_KEYS,
    GENERATION_KEYS,
    MODES,
    OPTIONS,
    RECOMMENDED,
    SAMPLING_KEYS,
    Settings,
    SourcedLayer,
)
from cerebrum_cli.engine.memory import SINGLE, ContextOptions
from cerebrum_cli.gguf.header import require_generative
from cerebrum_cli.replies.installation import Servers, find_endpoints, require_no_adapters, without_local
from cerebrum_cli.replies.prompt_sources import read_text, template_options
from cerebrum_cli.replies.source import MAX_PARALLEL, ModelSource, require_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator, Mapping

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.events import Event
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.eval.presets import Preset
    from cerebrum_cli.library.model import InstalledModel
    from cerebrum_cli.replies.interface import Model
    from cerebrum_cli.results.journal import Journal
    from cerebrum_cli.results.result import StreamedResult

MAX_GRAMMAR_BYTES = 4_000_000  # of a file with a schema or a grammar
PRESET = "preset"  # the origin of its settings
# Settings on which a score depends: a preset does not take them from config.toml.
CONDITION_KEYS = ("system", "format", "chat_template", "lora", *ATTENTION_KEYS, *GENERATION_KEYS)
DEFAULTS = Settings()
MAX_SHOWN = 40  # characters of a setting in a remark


def find_source(
    app: App,
    overrides: Layer,
    options: AnswerOptions,
    samples_by: str | None = None,
    model: InstalledModel | None = None,
) -> ModelSource:
    """The model and its settings, and where it runs; a model that is not given is found, or downloaded.

    `samples_by` is the option that asks for several samples, which need a temperature. Without `--parallel`, the
    context has 0 slots. Raises UsageError, ConfigError, ModelNotFound, ModelFileError.
    """
    requested = app.settings(overrides)
    servers = servers_of(app, requested, options) if options.endpoint else None
    context = SINGLE
    if isinstance(options, ConcurrencyOptions):
        if options.ray_workers is not None and (options.ray is None or options.ray_workers < 1):
            raise UsageError.invalid("--ray-workers", options.ray_workers, "1 or more, and needs --ray")
        context = ContextOptions(slots=parse_parallel(options), batch_invariant=True, pad_steps=options.batch_invariant)
    model = model or find_model(app, overrides, options)
    require_generative(model.path, model.header)
    settings = generation_settings(app, overrides, model, samples_by)
    if servers:
        settings = without_local(settings)
    elif isinstance(options, ConcurrencyOptions) and options.ray is not None:
        require_no_adapters(settings, "--ray")
    require_attention(model, settings, context.pad_steps)
    model = app.library.with_adapters(model, settings.lora)
    template_arguments = template_options(options.template_arg)
    return ModelSource(app, model, settings, servers, context, template_options=template_arguments)


def no_reproduction(
    source: ModelSource, preset: Preset, expected: Mapping[str, Any], deviations: Iterable[str]
) -> str | None:
    """Remark on differences from a preset, in model, settings and other `deviations`; None without any.

    None in `expected` is a value that the preset leaves open.
    """
    spec, settings = source.model.spec, source.settings
    differences = []
    if spec is None or spec.name != preset.model:
        differences.append(f"model {source.model.label}, not {preset.model}")
    for key in CONDITION_KEYS:
        value, meant = getattr(settings, key), expected.get(key, getattr(DEFAULTS, key))
        is_open = (key in expected and meant is None) or key == "seed"
        if settings.origin(key) not in (*RECOMMENDED, PRESET) and value != meant and not is_open:
            differences.append(OPTIONS[key].argument_for(shown(value)))
    differences += deviations
    return f"this run does not reproduce {preset.source}: {'; '.join(differences)}" if differences else None


def given_options(options: object, *names: str) -> Iterator[str]:
    for name in names:
        if value := getattr(options, name):
            yield flag(name) if value is True else f"{flag(name)} {shown(value)}"


def shown(value: Any) -> str:
    text = " ".join(without_home(str(part)) for part in (value if isinstance(value, tuple) else (value,)))
    return f"{value:g}" if isinstance(value, float) else quote(shorten(text, MAX_SHOWN, placeholder="..."))


def source_fingerprint(source: ModelSource) -> dict[str, Any]:
    """Everything replies depend on besides the model, the settings and the prompts, by readable names."""
    return {
        **({"batch invariance": "all types"} if source.context.pad_steps else {}),
        **({"generated by": "servers"} if source.servers else {}),
        "template arguments": source.template_options or None,
    }


def servers_of(app: App, settings: Settings, options: AnswerOptions) -> Servers:
    endpoints = find_endpoints(app, options.endpoint, settings, options.served_model_name, options.allow_http_key)
    if not isinstance(options, ConcurrencyOptions):
        return Servers(endpoints)
    limits = {"patience": options.patience, "row_timeout": options.row_timeout}
    timeouts = {"waits_at_start": True, **{key: value for key, value in limits.items() if value is not None}}
    window, may_differ = parse_parallel(options) or None, options.allow_different_models
    return Servers(endpoints, window, timeouts=timeouts, may_differ=may_differ)


def parse_parallel(options: ConcurrencyOptions) -> int:
    """Read `--parallel`, which counts for each server; 0 chooses automatically. Raises UsageError."""
    text, most = options.parallel, MAX_PARALLEL
    if text in (None, "auto"):
        return 0
    if isinstance(options, AnswerOptions) and options.endpoint:
        from cerebrum_cli.engine.remote.kind import MAX_WINDOW

        most = MAX_WINDOW
    if text.isdecimal() and 1 <= int(text) <= most:
        return int(text)
    raise UsageError.invalid("--parallel", text, f"a number from 1 to {most}, or auto")


def generation_settings(app: App, overrides: Layer, model: InstalledModel, samples_by: str | None) -> Settings:
    """Settings for a model; `samples_by` is the option that asks for several samples. Raises UsageError."""
    settings = app.settings(overrides, model)
    return settings.for_samples(samples_by) if samples_by else settings


def settings_by_mode(app: App, source: ModelSource, overrides: Layer, samples_by: str | None) -> dict[str, Settings]:
    """The settings of rows that turn thinking on, and off: a model may recommend other sampling for each."""
    modes = {mode: SourcedLayer(overrides, {"think": is_on}) for is_on, mode in MODES.items()}
    by_mode = {mode: generation_settings(app, layer, source.model, samples_by) for mode, layer in modes.items()}
    return {
        mode: replace(source.settings, **{key: getattr(settings, key) for key in SAMPLING_KEYS})
        for mode, settings in by_mode.items()
    }


def read_grammar(app: App, options: ConstrainedOptions, model: InstalledModel) -> str | None:
    """GBNF grammar that `--schema` or `--grammar` names; None without either. Raises UsageError, GrammarError.

    A model that is served gets the schema itself.
    """
    schema, grammar = options.schema, options.grammar
    if schema and grammar:
        raise UsageError.conflict("--schema", "--grammar")
    if schema:
        with naming_grammar_file(options):
            json_schema = read_text(schema, MAX_GRAMMAR_BYTES)
            text, ignored = app.schema_to_grammar(json_schema)
        if model.is_served:
            return json_schema
        if ignored:
            problem = f"{schema}: a grammar cannot express {', '.join(ignored)}, so answers may violate it"
            app.streams.report(NoticeEvent(problem, "check the answer against the schema"))
        return text
    if not grammar:
        return None
    if model.is_served:
        raise UsageError("--grammar is impossible through chat completions", "use --schema, or llama-server")
    text = read_text(grammar, MAX_GRAMMAR_BYTES)
    if not text.strip():  # to servers this means no constraint
        raise GrammarError(f"{grammar}: the grammar is empty", "it must be GBNF with a rule named root")
    return text


@contextmanager
def naming_grammar_file(options: ConstrainedOptions) -> Iterator[None]:
    try:
        yield
    except GrammarError as error:
        raise GrammarError(f"{options.schema or options.grammar}: {error.message}", error.hint) from error


@contextmanager
def resumable(result: Journal | StreamedResult, unit: str, restart: bool) -> Iterator[None]:
    """Complete a result at the end, and close it. Raises Interrupted with how to resume."""
    from cerebrum_cli.results.journal import Journal

    try:
        yield
        result.complete()
    except Interrupted as error:
        again = " without --restart" if restart else ""
        hint = f"{len(result.finished)} of {len(result.rows)} {unit} done; run it again{again} to resume"
        raise Interrupted(error.exit_code - 128, hint if isinstance(result, Journal) else "") from error
    finally:
        result.close()


def answer_missing(
    app: App,
    source: ModelSource,
    options: ConcurrencyOptions,
    result: Journal | StreamedResult,
    answer: Callable[[Model], Generator[Event, None, None]],
    block: tuple[Any, int, Callable[..., Iterator[Event]]],
) -> None:
    """Answer the rows that are missing in a result, with progress.

    `block` is for the nodes of a cluster: the rows, the number of samples of each, and what answers some of them.
    """
    from cerebrum_cli.replies.interface import open_many
    from cerebrum_cli.results.journal import Journal, noting_servers
    from cerebrum_cli.terminal.progress import BatchProgress
    from cerebrum_cli.terminal.sinks import render

    journal, streams = result if isinstance(result, Journal) else None, app.streams
    shares_terminal = journal is None and streams.out_is_terminal
    draws = streams.can_redraw and not (options.verbose or shares_terminal)
    sinks = [BatchProgress(streams, draws, None if options.verbose else source.model.name)]
    rows, samples, answer_block = block
    if journal and options.ray is not None:
        from cerebrum_cli.cluster.distribution import Work, distribute

        work = Work(rows, samples, answer_block, journal)
        distributed = distribute(source, work, options.ray, options.ray_workers, options.patience)
        render(distributed.answer(), distributed.cancel, sinks)
        return
    missing = len(result.rows) - len(result.finished)
    loaded = open_many(source, missing * samples, journal.servers if journal else ())
    with loaded, naming_grammar_file(options):
        events = answer(loaded)
        render(noting_servers(events, journal, loaded) if journal else events, loaded.cancel, sinks)
