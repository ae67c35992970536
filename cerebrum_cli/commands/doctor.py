"""`cerebrum doctor`: what is well here, what is not, and what to do."""

from __future__ import annotations

from dataclasses import asdict

import typer

from cerebrum_cli.commands import options


def doctor(
    context: typer.Context,
    model: options.Model = None,
    threads: options.Threads = None,
    json: options.Json = False,
    offline: options.Offline = False,
    quiet: options.Quiet = False,
) -> None:
    """Look at all that answers depend on, and ask the small model that comes with cerebrum a known question.

    Each line is ok, a warning or a failure, with what to do; exit 1 where anything fails.
    """
    from cerebrum_cli.application.doctor.checks import run_checks
    from cerebrum_cli.terminal.doctor_report import print_check_result
    from cerebrum_cli.terminal.interrupts import interruptible

    runtime = options.runtime_of(context)
    findings = []
    with interruptible(""):
        for finding in run_checks(runtime.doctor_context({"model": model, "threads": threads}, offline)):
            findings.append(finding)
            if not json and not (quiet and finding.status == "ok"):
                print_check_result(runtime.streams, finding)
    if json:
        runtime.streams.answer_object([asdict(finding) for finding in findings])
    if any(finding.status == "failure" for finding in findings):
        raise typer.Exit(1)
