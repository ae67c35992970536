"""`cerebrum doctor`: check the whole installation, or servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import BaseCommand, environment_layer, settings_options
from cerebrum_cli.cli.options import json_option, offline_option
from cerebrum_cli.core.declaration import TEXTS, option, option_group
from cerebrum_cli.core.errors import ConfigError
from cerebrum_cli.core.settings import SourcedLayer, fold
from cerebrum_cli.doctor.check_lines import print_check_result

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App


@option_group
class DoctorCommand(BaseCommand):
    """Exits with code 1 if anything fails.

    With --endpoint, only servers are checked: their kind, their replies, and whether their vocabulary is MODEL's.

    Examples:
      cerebrum doctor
      cerebrum doctor --endpoint http://localhost:8080 -m starter
    """

    settings = settings_options(("model",), model="Model to check [default: the default model]")
    endpoint: tuple[str, ...] = option(
        "Check this server instead (repeatable)", "Model", TEXTS, default=(), metavar="URL|NAME"
    )
    served_model_name: str | None = option("Model to request if the server has several")
    offline: bool = offline_option()
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        from cerebrum_cli.doctor.checks import DoctorContext, run_checks
        from cerebrum_cli.doctor.servers import run_server_checks
        from cerebrum_cli.terminal.progress import interruptible

        results = []
        shown = ""
        with interruptible(""):
            layer = SourcedLayer(environment_layer("threads"), self.overrides)
            try:
                settings = app.settings(layer)
            except ConfigError:  # which is one of the results
                settings = fold(layer)
            context = DoctorContext(app, settings, self.offline)
            checks = run_checks(context)
            if endpoints := app.find_endpoints(self.endpoint, settings, self.served_model_name):
                checks = run_server_checks(context, endpoints)
            for result in checks:
                results.append(result)
                if self.json or (self.quiet and result.status == "ok"):
                    continue
                if result.endpoint != shown:
                    shown = result.endpoint
                    app.streams.answer(f"{shown}\n")
                print_check_result(app.streams, result)
        if self.json:
            app.streams.answer([result.recorded for result in results])
        if any(result.status == "failure" for result in results):
            raise typer.Exit(1)
