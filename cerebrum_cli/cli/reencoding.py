"""Compare encodings of a model's weights, and save one: the run of `cerebrum tune --reencode`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import CerebrumError, UsageError
from cerebrum_cli.engine.protocol import MIN_AGREEMENT
from cerebrum_cli.engine.quantization import fast_encodings
from cerebrum_cli.models.derivatives import Derivative, DerivativeStore
from cerebrum_cli.terminal.bars import FileProgress, StageProgress
from cerebrum_cli.terminal.interrupts import interruptible
from cerebrum_cli.terminal.reports.encoding import print_encodings, report_object
from cerebrum_cli.terminal.sinks import render_stages
from cerebrum_cli.tune.reencoding import Reencoding, Report, find_encoding
from cerebrum_cli.tune.tune import trial_options

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import Runtime
    from cerebrum_cli.cli.options import TuneOptions
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.engine.quantization import Encoding
    from cerebrum_cli.models.model import Model


def reencode(runtime: Runtime, model: Model, settings: Settings, options: TuneOptions) -> None:
    """Compare the encodings that are fast on this machine, or save the one to apply, and print the result."""
    if model.is_derived:
        original = Derivative.parse(model.name).original
        raise UsageError(f"{model.reference} was made from {original}", f"cerebrum tune {original} --reencode")
    encoding = find_encoding(options.apply, model) if options.apply else None
    quiet = options.json or options.quiet
    reencoding = prepare(runtime, model, settings, quiet)
    report = None
    if encoding and (existing := reencoding.use_existing(encoding)):
        report = Report(reencoding.original, (), existing)
    report = report or measure(runtime, reencoding, encoding, options.force, quiet)
    if options.json:
        runtime.streams.answer_object(report_object(model.label, str(model.path), report))
    elif report.results:
        print_encodings(runtime.streams, report)
    conclude(runtime, model, report, encoding, options.quiet)


def prepare(runtime: Runtime, model: Model, settings: Settings, quiet: bool) -> Reencoding:
    """Verify the model and set up the comparison. Raises ModelFileError if llama.cpp could not open it."""
    options = trial_options(model, settings)
    with FileProgress(runtime.streams, quiet) as progress:
        runtime.library.digest(model, lambda done, total: progress.update("verify", done, total))

    store = DerivativeStore(runtime.cache_directory / "encodings")
    return Reencoding(runtime.library, model, options, store, runtime.open_bench)


def measure(runtime: Runtime, reencoding: Reencoding, encoding: Encoding | None, force: bool, quiet: bool) -> Report:
    """Measure one encoding, or all that could be faster, with a progress bar. Raises CerebrumError, Interrupted."""
    if encoding:
        events = reencoding.apply(encoding, force)
    else:
        candidates = fast_encodings(runtime.build().cpu_features, reencoding.model.quantization)
        if not candidates:
            raise CerebrumError("no other encoding has fast kernels on this processor", "keep this one")
        events = reencoding.compare(candidates)
    with interruptible("nothing was saved"):
        try:
            return render_stages(events, StageProgress(runtime.streams, quiet))
        finally:
            events.close()


def conclude(runtime: Runtime, model: Model, report: Report, encoding: Encoding | None, quiet: bool) -> None:
    """Print which file is used from now on. Raises CerebrumError if an encoding could not be applied."""
    if report.applied:
        name = report.applied.reference
        if not quiet:
            runtime.streams.info(
                f"{name}{'' if report.results else ' already exists and'} is now used for {model.label};"
                f" tune it with cerebrum tune {model.reference}, delete it with cerebrum rm {name}"
            )
    elif encoding:
        result = report.results[0]
        if result.state == "rejected" and result.closeness:
            agreement = f"same top-1 {result.closeness.agreement:.1%}, below {MIN_AGREEMENT:.0%}"
            raise CerebrumError(
                f"the output of {result.type} differs: {agreement}", "keep the original, or accept it with --force"
            )
        raise CerebrumError(f"{result.type} not applied: {result.skipped}")
    elif not quiet:
        best = report.best
        advice = (
            f"save it with cerebrum tune {model.reference} --reencode --apply {best.type}" if best else "none is faster"
        )
        runtime.streams.info(f"nothing saved; {advice}")
