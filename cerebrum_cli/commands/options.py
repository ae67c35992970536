"""Options that mean the same in every command, with their CEREBRUM_* twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.core.errors import ModelNotFound, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import KEYS, environment
from cerebrum_cli.core.text import format_size

if TYPE_CHECKING:
    from cerebrum_cli.answers.vote import Votes as VotesWanted
    from cerebrum_cli.application.inference.loading import ResolvedModel
    from cerebrum_cli.application.models.model import Model as LibraryModel
    from cerebrum_cli.catalogue.reference import Reference
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.terminal.bars import FileProgress
    from cerebrum_cli.terminal.streams import Streams


def option(*names: str, help: str, metavar: str | None = None, callback: Callable[..., Any] | None = None) -> Any:
    """Return a Typer option whose environment twin is CEREBRUM_ and its long name."""
    long = next(name for name in names if name.startswith("--")).partition("/")[0]
    twin = "CEREBRUM_" + long[2:].upper().replace("-", "_")
    return typer.Option(
        *names, help=help, metavar=metavar, callback=callback, envvar=twin, show_envvar=False, show_default=False
    )


def whole(context: typer.Context, parameter: typer.CallbackParam, value: list[str] | None) -> list[str] | None:
    """Keep the environment's text for a repeatable option in one piece: Typer cuts it at white space."""
    source = context.get_parameter_source(str(parameter.name))
    if source is None or source.name != "ENVIRONMENT":
        return value
    text = environment(str(parameter.envvar))
    return [text] if text else None


Model = Annotated[
    str | None,
    option(
        "-m", "--model", help="Model, named as for `cerebrum pull` [default: see `cerebrum list`].", metavar="MODEL"
    ),
]
System = Annotated[
    str | None, option("-s", "--system", help="System prompt, in place of the format's own.", metavar="TEXT")
]
Format = Annotated[str | None, option("--format", help="Prompt format, in place of the model's own.", metavar="NAME")]
MaxTokens = Annotated[
    int | None,
    option("-n", "--max-tokens", help="Most tokens of the answer [default: to the end of the context].", metavar="N"),
]
Temperature = Annotated[
    float | None, option("--temperature", help="0 always takes the likeliest token [default: 0].", metavar="T")
]
TopK = Annotated[
    int | None, option("--top-k", help="Sample among the K likeliest tokens [default: 40; 0: all].", metavar="K")
]
TopP = Annotated[
    float | None, option("--top-p", help="Sample within this probability mass [default: 0.95].", metavar="P")
]
MinP = Annotated[
    float | None, option("--min-p", help="Drop tokens below this share of the likeliest [default: 0.05].", metavar="P")
]
RepeatPenalty = Annotated[
    float | None, option("--repeat-penalty", help="Above 1 makes repetition less likely [default: 1].", metavar="X")
]
Seed = Annotated[
    int | None, option("--seed", help="Same seed, same answer [default: a fresh one, which is told].", metavar="N")
]
Stop = Annotated[
    list[str] | None,
    option("--stop", help="End the answer before this text (repeatable).", metavar="TEXT", callback=whole),
]
Ctx = Annotated[
    int | None,
    option("--ctx", help="Context in tokens [default: the smallest of trained, 8192 and what fits].", metavar="N"),
]
Threads = Annotated[
    int | None, option("--threads", help="Threads [default: the cores this process may use].", metavar="N")
]
GpuLayers = Annotated[
    str | None,
    option(
        "-ngl", "--gpu-layers", help="Layers to offload: a number, auto or all [default: auto].", metavar="N|auto|all"
    ),
]
TemplateArg = Annotated[
    list[str] | None,
    option(
        "--template-arg",
        help="Option for the model's embedded template (repeatable).",
        metavar="KEY=VALUE",
        callback=whole,
    ),
]
Files = Annotated[
    list[Path] | None, option("-f", "--file", help="Put a file before the prompt (repeatable).", metavar="FILE")
]
Schema = Annotated[Path | None, option("--schema", help="Answer in JSON of this JSON Schema.", metavar="FILE")]
Grammar = Annotated[Path | None, option("--grammar", help="Answer by this GBNF grammar.", metavar="FILE")]
Votes = Annotated[
    str | None,
    option(
        "--votes",
        help="Sample K chains and take the answer most of them come to; auto:3..16 until that is clear.",
        metavar="K|auto[:A..B]",
    ),
]
NoEarlyStop = Annotated[
    bool, option("--no-early-stop", help="Sample all chains of a vote, also those that cannot change its outcome.")
]
Json = Annotated[bool, option("--json", help="Print one JSON object.")]
Offline = Annotated[bool, option("--offline", help="Use no network.")]
Quiet = Annotated[bool, option("-q", "--quiet", help="No notes and no progress on standard error.")]
Verbose = Annotated[bool, option("-v", "--verbose", help="Show llama.cpp's log on standard error.")]
Yes = Annotated[bool, option("-y", "--yes", help="Answer yes to every question.")]
NoLog = Annotated[bool, option("--no-log", help="Do not keep this exchange as a session.")]
Continue = Annotated[bool, option("-c", "--continue", help="Go on from the session that was last changed.")]
NoMarkdown = Annotated[bool, option("--no-markdown", help="Plain text on a terminal too.")]


NoProfile = Annotated[
    bool, option("--no-profile", help="As if `cerebrum tune` had never been: usual settings, and the file itself.")
]
NoCache = Annotated[
    bool, option("--no-cache", help="Keep nothing on disk of what the model has read, and use nothing that is kept.")
]


def given(values: Mapping[str, Any], no_cache: bool = False) -> dict[str, Any]:
    """Return the settings among a command's arguments that the environment or the command line gave."""
    layer = {key: value for key in KEYS if (value := values.get(key)) not in (None, [])}
    return {**layer, "cache_gb": 0} if no_cache else layer


def runtime_of(context: typer.Context, verbose: bool = False) -> Runtime:
    """Return the runtime a test has passed, or this machine's; `verbose` shows llama.cpp's log as it comes."""
    from cerebrum_cli.runtime.composition import Runtime, real_runtime

    runtime = context.obj if isinstance(context.obj, Runtime) else real_runtime()
    if verbose:
        runtime.native_log(runtime.streams.info)
    return runtime


def wanted_votes(votes: str | None, no_early_stop: bool) -> VotesWanted | None:
    """Return the vote that --votes asks for; None without it."""
    if votes is None:
        if no_early_stop:
            raise UsageError("--no-early-stop is about a vote, and there is none", "give --votes K too")
        return None
    from cerebrum_cli.answers.vote import parse_votes

    return parse_votes(votes)


def settings(runtime: Runtime, given: Mapping[str, Any], model: LibraryModel, votes: bool) -> Settings:
    """Return the settings of a model; those of a vote sample, unless what the user has written says otherwise."""
    if not votes:
        return runtime.settings(given, model)
    from cerebrum_cli.application.inference.voting import VOTE_TEMPERATURE, require_sampling

    settings = runtime.settings(given, model, {"temperature": VOTE_TEMPERATURE})
    require_sampling(settings)
    return settings


def read_grammar(runtime: Runtime, schema: Path | None, grammar: Path | None, quiet: bool) -> str | None:
    """Return the GBNF grammar that --schema or --grammar names."""
    from cerebrum_cli.application.inference.question import read_text

    if schema and grammar:
        raise UsageError("--schema and --grammar are both given", "give one of them")
    if schema:
        text, ignored = runtime.schema_to_grammar(read_text(schema))
        if ignored and not quiet:
            what = f"{schema}: no grammar can hold {', '.join(ignored)}, so answers may break it"
            runtime.streams.notice(NoticeEvent(what, "check the answer against the schema"))
        return text
    return read_text(grammar) if grammar else None


def find_model(runtime: Runtime, given: Mapping[str, Any], yes: bool, quiet: bool, offline: bool) -> LibraryModel:
    """Return the model the settings name; where it is not here and can be had, offer to pull it."""
    settings = runtime.settings(given)
    try:
        model = runtime.library.resolve(settings.model)
    except ModelNotFound as error:
        if error.pullable is None or not (yes or runtime.streams.can_ask):
            raise
        reference = runtime.library.parse(error.pullable)
        with file_progress(runtime, quiet) as progress:
            if runtime.puller(progress, offline).is_unavailable_offline(reference):
                raise
        if not yes:
            with file_progress(runtime, quiet) as progress:
                offer = runtime.puller(progress, offline).planner.plan(reference, settings.ctx)
            size = f"{offer.chosen.quantization}, {format_size(offer.chosen.size)}"
            if not runtime.streams.confirm(f"{error.message}. Pull {reference} ({size}) now?"):
                raise
        model = pull_model(runtime, reference, None, settings.ctx, quiet, offline, yes)
    runtime.library.registry.touch(model.usage_key)
    return model


def answering(runtime: Runtime, model: LibraryModel, settings: Settings, no_profile: bool) -> ResolvedModel:
    """Return what answers for a model: as tuned, unless that is not wanted."""
    from cerebrum_cli.application.inference.loading import ResolvedModel

    return ResolvedModel(model) if no_profile else runtime.resolved_model(model, settings)


def require_agreement(streams: Streams, question: str, name: str, yes: bool) -> None:
    """Leave with exit 1, nothing done, unless -y was given or somebody agrees that this may go."""
    if not (yes or streams.confirm(question, default=False)):
        streams.info(f"{name} not deleted" + ("" if streams.in_is_terminal else "; confirm with -y"))
        raise typer.Exit(1)


def pull_model(
    runtime: Runtime, reference: Reference, name: str | None, context: int | None, quiet: bool, offline: bool, yes: bool
) -> LibraryModel:
    """Bring a model here, showing how far it is; ask before one that will not fit."""
    from cerebrum_cli.terminal.interrupts import interruptible

    with file_progress(runtime, quiet) as progress:

        def agree(warning: str) -> bool:
            with progress.paused():
                return yes or runtime.streams.confirm(f"{warning}. Pull it anyway?", default=False)

        with interruptible("the same command goes on from where this one was"):
            model = runtime.puller(progress, offline).pull(reference, name, context, agree)
    if not quiet:
        runtime.streams.info(f"{model.reference} is here: {model.path}")
    return model


def show_offer(
    runtime: Runtime, reference: Reference, context: int | None, json: bool, quiet: bool, offline: bool
) -> None:
    """Print what a reference can bring and what of it fits, and download nothing."""
    from cerebrum_cli.application.models.listing import download_plan_object
    from cerebrum_cli.terminal.tables import print_candidates

    with file_progress(runtime, quiet) as progress:
        offer = runtime.puller(progress, offline).planner.plan(reference, context)
    if json:
        runtime.streams.answer_object(download_plan_object(offer))
        return
    print_candidates(runtime.streams, offer)
    if not quiet:
        runtime.streams.info(f"cerebrum pull {reference} would bring {offer.reference}")


def file_progress(runtime: Runtime, quiet: bool) -> FileProgress:
    """Return what shows how far a file is."""
    from cerebrum_cli.terminal.bars import FileProgress

    return FileProgress(runtime.streams, quiet)
