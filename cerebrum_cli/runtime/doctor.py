"""Check the whole installation: the run of `cerebrum doctor`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from cerebrum_cli.application.doctor.checks import run_checks
from cerebrum_cli.terminal.doctor_report import print_check_result
from cerebrum_cli.terminal.interrupts import interruptible

if TYPE_CHECKING:
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import DoctorOptions


def doctor(runtime: Runtime, given: Layer, options: DoctorOptions) -> bool:
    """Run and print all checks; whether none failed."""
    results = []
    with interruptible(""):
        for result in run_checks(runtime.doctor_context(given, options.offline)):
            results.append(result)
            if not options.json and not (options.quiet and result.status == "ok"):
                print_check_result(runtime.streams, result)
    if options.json:
        runtime.streams.answer_object([asdict(result) for result in results])
    return all(result.status != "failure" for result in results)
