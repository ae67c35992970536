"""What commands take from their Typer context, and how they ask before deleting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.assignments import SET, assigned_keys
from cerebrum_cli.cli.options import option_names
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import unknown_variables

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App


def app_of(context: typer.Context, verbose: bool = False) -> App:
    """The app a test has passed, or this machine's; `verbose` forwards llama.cpp's log to standard error."""
    from cerebrum_cli.cli.app import App, real_app

    app = context.obj if isinstance(context.obj, App) else real_app()
    for name, likely in unknown_variables(option_names()).items():
        hint = f"did you mean {likely}?" if likely else "see cerebrum COMMAND --help for the options"
        app.streams.notice(NoticeEvent(f"the environment variable {name} sets nothing", hint))
    if verbose:
        app.native_log(app.streams.info)
    return app


def options_on_command_line(context: typer.Context) -> frozenset[str]:
    """Names of the options that are on the command line, as flags or after `--set`."""
    sources = {name: context.get_parameter_source(name) for name in context.params if name != SET}
    flags = (name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE")
    return assigned_keys(context.params.get(SET)).union(flags)


def require_agreement(app: App, question: str, name: str, yes: bool) -> None:
    """Ask before deleting, unless `-y` is given; exit 1 with nothing deleted if the answer is no."""
    streams = app.streams
    if not (yes or streams.confirm(question, default=False)):
        streams.info(f"{name} not deleted" + ("" if streams.in_is_terminal else "; confirm with -y"))
        raise typer.Exit(1)
