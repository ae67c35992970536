"""What commands take from their Typer context, and how they ask before deleting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.assignments import SET, assigned_keys
from cerebrum_cli.cli.options import option_names
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import unknown_variables

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import Runtime


def runtime_of(context: typer.Context, verbose: bool = False) -> Runtime:
    """The runtime a test has passed, or this machine's; `verbose` forwards llama.cpp's log to standard error."""
    from cerebrum_cli.cli.app import Runtime, real_runtime

    runtime = context.obj if isinstance(context.obj, Runtime) else real_runtime()
    for name, likely in unknown_variables(option_names()).items():
        hint = f"did you mean {likely}?" if likely else "see cerebrum COMMAND --help for the options"
        runtime.streams.notice(NoticeEvent(f"the environment variable {name} sets nothing", hint))
    if verbose:
        runtime.native_log(runtime.streams.info)
    return runtime


def typed_options(context: typer.Context) -> frozenset[str]:
    """Names of the options that are on the command line, as flags or after `--set`."""
    sources = {name: context.get_parameter_source(name) for name in context.params if name != SET}
    flags = (name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return assigned_keys(context.params.get(SET)).union(flags)


def require_agreement(runtime: Runtime, question: str, name: str, yes: bool) -> None:
    """Ask before deleting, unless `-y` is given; exit 1 with nothing deleted if the answer is no."""
    streams = runtime.streams
    if not (yes or streams.confirm(question, default=False)):
        streams.info(f"{name} not deleted" + ("" if streams.in_is_terminal else "; confirm with -y"))
        raise typer.Exit(1)
