"""Measure how well a model answers: the run of `cerebrum eval`."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.application.evaluation.evaluate import evaluate
from cerebrum_cli.application.evaluation.runs import QUESTIONS, SAMPLES, Run
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.journal import open_journal
from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.options import flag
from cerebrum_cli.runtime.evaluation.prepare import Prepared, prepare
from cerebrum_cli.runtime.evaluation.runs import print_run
from cerebrum_cli.runtime.generation import naming_grammar_file
from cerebrum_cli.terminal.bars import BatchProgress
from cerebrum_cli.terminal.progress import LoadLine
from cerebrum_cli.terminal.sinks import NoticeSink, Sink, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.batches.journal import Journal
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import EvalOptions, LmEvalOptions

LM_EVAL = "lm-eval:"


def run_eval(
    runtime: Runtime, source: str, output: Path | None, given: Layer, options: EvalOptions, lm_eval: LmEvalOptions
) -> int:
    """Ask the questions of a task or a file, and print the report; return how many questions do not count.

    Raises Interrupted with how to resume.
    """
    if source.startswith(LM_EVAL):
        from cerebrum_cli.runtime.evaluation.lm_eval import run_lm_eval

        return run_lm_eval(runtime, source.removeprefix(LM_EVAL), output, given, options, lm_eval)
    require_unset(lm_eval)
    prepared = prepare(runtime, source, given, options)
    if options.dry_run:
        from cerebrum_cli.runtime.evaluation.preview import show_preview

        show_preview(runtime, prepared, options)
        return 0
    fingerprint = prepared.fingerprint(runtime)
    path = output or runtime.runs.path_for(fingerprint)
    run = take_samples(runtime, prepared, path, fingerprint, options)
    samples = run.samples()
    print_run(runtime, run, samples, options.json, options.quiet)
    return len(prepared.asked.bad_rows) + sum(sample.is_skipped for sample in samples)


def take_samples(
    runtime: Runtime, prepared: Prepared, path: Path, fingerprint: Mapping[str, Any], options: EvalOptions
) -> Run:
    """Take the samples that are missing, and complete the run file."""
    output_paths(path)
    evaluation = prepared.evaluation
    extent = {QUESTIONS: len(evaluation.questions), SAMPLES: evaluation.samples}
    run = open_journal(path, fingerprint, evaluation.rows, options.restart, extent=extent)
    try:
        if missing := len(evaluation.rows) - run.done:
            loaded = prepared.open(runtime, missing)
            before, start = run.done, time.monotonic()
            try:
                with naming_grammar_file(options):
                    events = evaluate(loaded.responder, evaluation, run)
                    render(events, loaded.responder.cancel, progress_sinks(runtime, loaded.model.name, options))
            finally:
                loaded.engine.close()
                remember_time(run, run.done - before, time.monotonic() - start, prepared)
        run.complete()
    except Interrupted as error:
        hint = f"{run.done} of {len(evaluation.rows)} samples done; run it again to resume"
        raise Interrupted(error.exit_code - 128, hint) from error
    finally:
        run.close()
    return runtime.runs.find(str(path))


def remember_time(run: Journal, samples: int, seconds: float, prepared: Prepared) -> None:
    """Add the time that samples took to the run's notes, and what its report states about the questions."""
    notes = dict(run.notes)
    if samples:
        run.write_notes(
            {
                **notes,
                "reference": prepared.model.reference,
                "bad_rows": len(prepared.asked.bad_rows),
                "remarks": list(prepared.asked.remarks),
                "seconds": round(notes.get("seconds", 0.0) + seconds, 3),
                "timed_samples": notes.get("timed_samples", 0) + samples,
            }
        )


def progress_sinks(runtime: Runtime, model: str, options: EvalOptions) -> list[Sink]:
    """Sinks that show progress on standard error."""
    if options.quiet:
        return []
    streams = runtime.streams
    sinks: list[Sink] = [NoticeSink(streams), BatchProgress(streams, streams.can_redraw and not options.verbose)]
    return sinks if options.verbose else [LoadLine(streams, model), *sinks]


def require_unset(lm_eval: LmEvalOptions) -> None:
    """Raise UsageError for an option that only lm-eval has."""
    for name, value in asdict(lm_eval).items():
        if value:
            raise UsageError(
                f"{flag(name)} applies only to lm-eval tasks", "omit it, or name one like lm-eval:arc_easy"
            )
