"""Check the whole installation, or servers: the run of `cerebrum doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.cli.servers import find_endpoints
from cerebrum_cli.core.settings import environment_layer
from cerebrum_cli.doctor.checks import run_checks
from cerebrum_cli.terminal.doctor import print_check_result
from cerebrum_cli.terminal.interrupts import interruptible

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cerebrum_cli.cli.app import Runtime
    from cerebrum_cli.cli.options import DoctorOptions
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.doctor.assessment import CheckResult


def doctor(runtime: Runtime, given: Layer, options: DoctorOptions) -> bool:
    """Run and print all checks; whether none failed."""
    results: list[CheckResult] = []
    shown = ""
    with interruptible(""):
        for result in start_checks(runtime, given, options):
            results.append(result)
            if options.json or (options.quiet and result.status == "ok"):
                continue
            if result.endpoint != shown:
                shown = result.endpoint
                runtime.streams.answer(f"{shown}\n")
            print_check_result(runtime.streams, result)
    if options.json:
        runtime.streams.answer_object([result.recorded for result in results])
    return all(result.status != "failure" for result in results)


def start_checks(runtime: Runtime, given: Layer, options: DoctorOptions) -> Iterator[CheckResult]:
    """The checks of this machine, or of the servers that `--endpoint` names; each runs as its result is read."""
    endpoints = find_endpoints(runtime, options)
    context = runtime.doctor_context({**environment_layer("threads"), **given}, options.offline)
    if not endpoints:
        return run_checks(context)
    from cerebrum_cli.doctor.servers import run_server_checks

    return run_server_checks(context, endpoints)
