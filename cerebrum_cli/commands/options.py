"""Options that mean the same in every command, with their CEREBRUM_* twins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cerebrum_cli.ground.errors import ModelNotFound
from cerebrum_cli.ground.settings import KEYS, environment

if TYPE_CHECKING:
    from cerebrum_cli.application.library import Model as LibraryModel
    from cerebrum_cli.runtime import Runtime


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
    str | None, option("-m", "--model", help="Model: a name from `cerebrum list`, or a path.", metavar="MODEL")
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
    int | None, option("--seed", help="Same seed, same answer [default: a fresh one, see --stats].", metavar="N")
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
Json = Annotated[bool, option("--json", help="Print one JSON object.")]
Offline = Annotated[bool, option("--offline", help="Use no network.")]
Quiet = Annotated[bool, option("-q", "--quiet", help="No notes and no progress on standard error.")]
Verbose = Annotated[bool, option("-v", "--verbose", help="Show llama.cpp's log on standard error.")]
Yes = Annotated[bool, option("-y", "--yes", help="Answer yes to every question.")]
NoLog = Annotated[bool, option("--no-log", help="Do not keep this exchange as a session.")]
NoMarkdown = Annotated[bool, option("--no-markdown", help="Plain text on a terminal too.")]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings among a command's arguments that the environment or the command line gave."""
    return {key: value for key in KEYS if (value := values.get(key)) not in (None, [])}


def runtime_of(context: typer.Context, verbose: bool = False) -> Runtime:
    """Return the runtime a test has passed, or this machine's; `verbose` shows llama.cpp's log as it comes."""
    from cerebrum_cli.runtime import Runtime, real_runtime

    runtime = context.obj if isinstance(context.obj, Runtime) else real_runtime()
    if verbose:
        runtime.native_log(runtime.streams.talk)
    return runtime


def find_model(runtime: Runtime, given: Mapping[str, Any], yes: bool, quiet: bool, offline: bool) -> LibraryModel:
    """Return the model the settings name; where none is here, offer to pull the one that is quickly had."""
    reference = runtime.settings(given).model
    try:
        return runtime.library.resolve(reference)
    except ModelNotFound as error:
        if error.offer is None or offline:
            raise
        from cerebrum_cli.terminal.tables import size_text

        size = size_text(runtime.library.download_size(error.offer))
        if not (yes or runtime.streams.confirm(f"{error.what}. Pull {error.offer} ({size}) now?")):
            raise
        return pull_model(runtime, error.offer, None, quiet, offline)


def pull_model(runtime: Runtime, reference: str, name: str | None, quiet: bool, offline: bool) -> LibraryModel:
    """Bring a model here, showing how far it is."""
    from cerebrum_cli.terminal.progress import FileProgress

    with FileProgress(runtime.streams, quiet) as progress:
        model = runtime.library.pull(reference, name, progress.update, offline)
    if not quiet:
        runtime.streams.talk(f"{model.name} is here: {model.path}")
    return model
