"""Measure how well a model answers: the run of `cerebrum eval`."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.batch.journal import open_journal
from cerebrum_cli.batch.output_files import output_paths
from cerebrum_cli.cli.eval_setup import PreparedEvaluation, prepare
from cerebrum_cli.cli.generation import naming_grammar_file, open_for, progress_sinks
from cerebrum_cli.cli.runs import no_sample_counts, print_run
from cerebrum_cli.cli.servers import noted_servers, noting_servers
from cerebrum_cli.core.errors import BatchError, Interrupted, UsageError
from cerebrum_cli.eval.evaluate import evaluate
from cerebrum_cli.eval.runs import Run, require_run, samples_to_keep
from cerebrum_cli.terminal.sinks import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.batch.journal import Journal
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import EvalOptions
    from cerebrum_cli.core.settings import Layer


def run_eval(
    app: App,
    source: str,
    output: Path | None,
    overrides: Layer,
    options: EvalOptions,
    on_command_line: frozenset[str],
) -> int:
    """Ask the questions of a task or a file, and print the report; return how many questions do not count.

    Raises Interrupted with how to resume.
    """
    prepared = prepare(app, source, overrides, options, on_command_line)
    if output:
        require_file(output, source)
    fingerprint = prepared.fingerprint(app)
    path = output or app.runs.path_for(fingerprint)
    if options.dry_run:
        from cerebrum_cli.cli.eval_preview import show_preview

        kept = [] if options.restart else samples_to_keep(path, fingerprint, prepared.extent)
        show_preview(app, prepared, kept, options)
        return 0
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    run = take_samples(app, prepared, path, fingerprint, options)
    samples = run.samples()
    skipped = sum(sample.is_skipped for sample in samples)
    if skipped == len(samples):
        app.streams.error(no_sample_counts(run, samples))
    else:
        print_run(app, run, samples, options.json, options.quiet)
    return len(prepared.task.bad_rows) + skipped


def require_file(output: Path, source: str) -> None:
    """Raise UsageError for an output that is no file of its own."""
    if output == Path("-"):
        raise UsageError("-o is `-`, but a run is a file", "omit -o to store it by name; --json prints the report")
    output_paths(output, Path(source))


def take_samples(
    app: App, prepared: PreparedEvaluation, path: Path, fingerprint: Mapping[str, Any], options: EvalOptions
) -> Run:
    """Take the samples that are missing, and complete the run file."""
    evaluation = prepared.evaluation
    run = open_journal(
        path, fingerprint, evaluation.rows, options.restart, extent=prepared.extent, notes=prepared.notes
    )
    try:
        if missing := len(evaluation.rows) - run.done:
            run.write_notes({**run.notes, **prepared.notes})
            loaded = open_for(prepared.source, missing, noted_servers(run))
            before, start = run.done, time.monotonic()
            try:
                with naming_grammar_file(options):
                    events = noting_servers(evaluate(loaded.responder, evaluation, run), run, loaded)
                    render(events, loaded.responder.cancel, progress_sinks(app, loaded.model.name, options))
            finally:
                loaded.engine.close()
                with contextlib.suppress(BatchError):  # of a full disk: what went wrong before it matters more
                    remember_time(run, run.done - before, time.monotonic() - start)
        run.complete()
    except Interrupted as error:
        again = " without --restart" if options.restart else ""
        hint = f"{run.done} of {len(evaluation.rows)} samples done; run it again{again} to resume"
        raise Interrupted(error.exit_code - 128, hint) from error
    finally:
        run.close()
    return require_run(path)


def remember_time(run: Journal, samples: int, seconds: float) -> None:
    """Add the time that samples took to the run's notes."""
    if samples:
        total, timed = run.notes.get("seconds", 0.0) + seconds, run.notes.get("timed_samples", 0) + samples
        run.write_notes({**run.notes, "seconds": round(total, 3), "timed_samples": timed})
