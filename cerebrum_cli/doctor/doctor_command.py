"""`cerebrum doctor`: check the whole installation, or servers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cerebrum_cli.cli.options import ServerOptions
from cerebrum_cli.cli.signature import composed, settings_options
from cerebrum_cli.cli.variables import environment_layer
from cerebrum_cli.core.declaration import TEXTS, option, option_group, switch
from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.settings import Layer, SourcedLayer, fold
from cerebrum_cli.doctor.check_lines import print_check_result

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App

SETTINGS = settings_options(("model",), model="Model to check [default: the default model]")


@option_group
class DoctorOptions(ServerOptions):
    endpoint: tuple[str, ...] = option(
        "Check this server instead (repeatable)", "Server", TEXTS, default=(), metavar="URL|NAME"
    )
    offline: bool = switch("Do not use the network", "Model")
    json: bool = switch("Print a JSON array", "Output")


@composed
def doctor(app: App, overrides: Annotated[Layer, SETTINGS], options: DoctorOptions) -> None:
    """Exits with code 1 if anything fails.

    With --endpoint, only servers are checked: their kind, their replies, and whether their vocabulary is MODEL's.

    Examples:
      cerebrum doctor
      cerebrum doctor --endpoint http://localhost:8080 -m starter
    """
    from cerebrum_cli.doctor.checks import DoctorContext, run_checks
    from cerebrum_cli.doctor.servers import run_server_checks
    from cerebrum_cli.terminal.progress import interruptible

    results = []
    shown = ""
    with interruptible(""):
        layer = SourcedLayer(environment_layer("threads"), overrides)
        try:
            settings = app.settings(layer)
        except ConfigError:  # which is one of the results
            settings = fold(layer)
        context = DoctorContext(app, settings, options.offline)
        checks = run_checks(context)
        if endpoints := options.find_endpoints(app, settings):
            checks = run_server_checks(context, endpoints)
        for result in checks:
            results.append(result)
            if options.json or (options.quiet and result.status == "ok"):
                continue
            if result.endpoint != shown:
                shown = result.endpoint
                app.streams.answer(f"{shown}\n")
            print_check_result(app.streams, result)
    if options.json:
        app.streams.answer_object([result.recorded for result in results])
    if any(result.status == "failure" for result in results):
        raise typer.Exit(1)
