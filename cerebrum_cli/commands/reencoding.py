"""`cerebrum tune --reencode`: the same weights in other encodings, and the one that answers from now on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import CerebrumError, UsageError

if TYPE_CHECKING:
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.application.tuning.reencoding import Reencoding, Report
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.engine.bench.protocol import FileBench
    from cerebrum_cli.engine.bench.quantization import Encoding
    from cerebrum_cli.engine.plan import LoadOptions
    from cerebrum_cli.runtime.composition import Runtime


def reencode(
    runtime: Runtime,
    model: Model,
    *,
    apply: str | None,
    force: bool,
    json: bool,
    quiet: bool,
    settings: Settings,
) -> None:
    """Try the encodings this machine is fast at, or the one that is to be applied, and print what came of it."""
    from cerebrum_cli.application.tuning.reencoding import Report, encoding_called
    from cerebrum_cli.catalogue.derivatives import Derivative
    from cerebrum_cli.terminal.encoding_report import print_encodings, report_object

    if model.is_derived:
        original = Derivative.parse(model.name).original
        raise UsageError(f"{model.reference} was made of {original} here", f"cerebrum tune {original} --reencode")
    encoding = encoding_called(apply, model) if apply else None
    work = prepared(runtime, model, settings, json or quiet)
    report = None
    if encoding and (existing := work.existing(encoding)):
        report = Report(work.original, (), existing)
    report = report or measured(runtime, work, encoding, force, json or quiet)
    if json:
        runtime.streams.answer_object(report_object(model.reference, str(model.path), report))
    elif report.rows:
        print_encodings(runtime.streams, report)
    conclude(runtime, model, report, encoding, quiet)


def prepared(runtime: Runtime, model: Model, settings: Settings, quiet: bool) -> Reencoding:
    """Return the work to be done. ModelFileError where llama.cpp could not open the model."""
    from cerebrum_cli.application.tuning.reencoding import Reencoding
    from cerebrum_cli.application.tuning.tune import trial_options
    from cerebrum_cli.catalogue.derivatives import DerivativeStore
    from cerebrum_cli.terminal.bars import FileProgress

    options = trial_options(model, settings)
    with FileProgress(runtime.streams, quiet) as progress:
        runtime.library.digest(model, lambda done, total: progress.update("verify", done, total))
    workshop = DerivativeStore(runtime.cache_directory / "encodings")

    def bench(options: LoadOptions, model: Model) -> FileBench:
        return runtime.bench(options, model, runtime.trials, runtime.capacity().device_memory)

    return Reencoding(runtime.library, model, options, workshop, bench)


def measured(runtime: Runtime, work: Reencoding, encoding: Encoding | None, force: bool, quiet: bool) -> Report:
    """Try one encoding or all that could be faster, showing how far that is."""
    from cerebrum_cli.engine.bench.quantization import encodings_for
    from cerebrum_cli.terminal.bars import StageProgress
    from cerebrum_cli.terminal.interrupts import interruptible
    from cerebrum_cli.terminal.sinks import render_stages

    if encoding:
        events = work.apply(encoding, force)
    else:
        wanted = encodings_for(runtime.build().cpu_features, work.model.quantization)
        if not wanted:
            raise CerebrumError("there is no other encoding that this processor has fast kernels for", "keep this one")
        events = work.compare(wanted)
    with interruptible("nothing is kept of what was tried"):
        try:
            return render_stages(events, StageProgress(runtime.streams, quiet))
        finally:
            events.close()


def conclude(runtime: Runtime, model: Model, report: Report, encoding: Encoding | None, quiet: bool) -> None:
    """Say what answers from now on. CerebrumError where it should be another encoding and cannot."""
    from cerebrum_cli.engine.bench.protocol import LEAST_AGREEMENT

    if report.applied:
        here = "is here and" if report.rows else "is here already, and from now on"
        if not quiet:
            runtime.streams.info(
                f"{report.applied.reference} {here} answers for {model.reference};"
                f" cerebrum tune {model.reference} measures it, cerebrum rm {report.applied.reference} takes it away"
            )
    elif encoding:
        row = report.rows[0]
        if row.state == "refused" and row.closeness:
            what = f"{row.type} says other things than {model.reference}: agreement {row.closeness.agreement:.3f}"
            raise CerebrumError(
                f"{what}, and {LEAST_AGREEMENT} is the least", "keep the original, or take it all the same: --force"
            )
        raise CerebrumError(f"{row.type} is not applied: {row.left_out}")
    elif not quiet:
        best = report.best
        then = f"cerebrum tune {model.reference} --reencode --apply {best.type} keeps one" if best else "none is faster"
        runtime.streams.info(f"nothing is kept; {then}")
