"""`cerebrum doctor`: check the whole installation."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import BaseCommand
from cerebrum_cli.cli.options import json_option, offline_option
from cerebrum_cli.core.declaration import option_group
from cerebrum_cli.core.text import strip_controls

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.doctor.checks import CheckResult, Status
    from cerebrum_cli.terminal.streams import Streams

COLORS: dict[Status, str] = {"ok": "green", "warning": "purple", "failure": "red"}
STATUS_WIDTH = len("warning") + 2
NAME_WIDTH = len("self_test") + 2


@option_group
class DoctorCommand(BaseCommand):
    """Exits with code 1 if anything fails.

    Examples:
      cerebrum doctor
      cerebrum doctor --offline --json
    """

    offline: bool = offline_option()
    json: bool = json_option("array")

    def run(self, app: App) -> None:
        from cerebrum_cli.doctor.checks import DoctorContext, run_checks
        from cerebrum_cli.terminal.progress import interruptible

        results = []
        with interruptible(""):
            for result in run_checks(DoctorContext(app, self.offline)):
                results.append(result)
                if not self.json and not (self.quiet and result.status == "ok"):
                    print_check_result(app.streams, result)
        if self.json:
            app.streams.answer([{"name": result.name, **asdict(result)} for result in results])
        if any(result.status == "failure" for result in results):
            raise typer.Exit(1)


def print_check_result(streams: Streams, result: CheckResult) -> None:
    head = result.status.ljust(STATUS_WIDTH) + result.name.ljust(NAME_WIDTH)
    text = streams.wrapped(result.detail, len(head))
    if result.hint:
        text += f"\n{' ' * len(head)}" + streams.wrapped(f"hint: {result.hint}", len(head))
    streams.answer(streams.styled(result.status, COLORS[result.status]), is_styled=True)
    streams.answer(strip_controls(f"{head.removeprefix(result.status)}{text}\n"))
