"""Measure how well a model answers: the run of `cerebrum eval`."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.application.evaluation.evaluate import Evaluation, evaluate
from cerebrum_cli.application.evaluation.marking import MATCHES
from cerebrum_cli.application.evaluation.runs import QUESTIONS, SAMPLES, Run, require_run, samples_to_keep
from cerebrum_cli.application.evaluation.sources import LoadedTask, ReadOptions, read_source
from cerebrum_cli.application.inference.fingerprint import generation_fingerprint
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.journal import open_journal
from cerebrum_cli.core.errors import BatchError, Interrupted, UsageError
from cerebrum_cli.core.events import SHOWN_ERRORS, NoticeEvent
from cerebrum_cli.core.options import flag
from cerebrum_cli.evals.questions import MAX_SAMPLES, select
from cerebrum_cli.evals.tasks import find_preset
from cerebrum_cli.runtime.evaluation.runs import no_sample_counts, print_run
from cerebrum_cli.runtime.generation import (
    Generator,
    find_generator,
    naming_grammar_file,
    progress_sinks,
    read_grammar,
    require_effective,
    require_valid,
)
from cerebrum_cli.runtime.models import file_progress
from cerebrum_cli.runtime.servers import noted_servers, noting_servers
from cerebrum_cli.terminal.sinks import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.batches.journal import Journal
    from cerebrum_cli.core.settings import Layer, Settings
    from cerebrum_cli.evals.tasks import Condition
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import EvalOptions, LmEvalOptions

LM_EVAL = "lm-eval:"


@dataclass(frozen=True, slots=True)
class PreparedEvaluation:
    """An evaluation, and what generates its samples."""

    task: LoadedTask
    evaluation: Evaluation
    generator: Generator

    @property
    def notes(self) -> dict[str, Any]:
        """What the report of the run states, and the model that `runs compare --kl` loads."""
        task, model = self.task, self.generator.model
        counts = {"bad_rows": len(task.bad_rows), "remarks": list(task.remarks)}
        return {"reference": model.reference, **model.adapter_params, **counts}

    @property
    def extent(self) -> dict[str, int]:
        """What may grow from one run to the next."""
        return {QUESTIONS: len(self.evaluation.questions), SAMPLES: self.evaluation.samples}

    def fingerprint(self, runtime: Runtime) -> dict[str, Any]:
        """Everything the samples depend on, by readable names."""
        evaluation, generator = self.evaluation, self.generator
        return {
            **self.task.fingerprint,
            **generator.fingerprint,
            **generation_fingerprint(
                evaluation.settings, evaluation.grammar, generator.model, generator.resolved.model, runtime.library
            ),
        }


def prepare(
    runtime: Runtime, source: str, given: Layer, options: EvalOptions, typed: frozenset[str]
) -> PreparedEvaluation:
    """Read the questions, and resolve the model and its settings. Raises UsageError, ModelNotFound."""
    require_valid(given, options)  # before questions are downloaded
    require_count("--samples", options.samples, MAX_SAMPLES)
    require_count("--limit", options.limit)
    task = read_task(runtime, source, options)
    samples = options.samples or task.samples
    if samples > 1 and given.get("temperature") is None and task.settings.get("temperature") == 0:
        problem = f"--samples needs a temperature above 0, but preset {options.preset} sets 0"
        raise UsageError(problem, "add --temperature 0.7, or omit --samples")
    given = {**given, **{key: value for key, value in task.settings.items() if given.get(key) is None}}
    generator = find_generator(runtime, given, options, "--samples" if samples > 1 else None)
    require_effective(generator.settings, typed, options)
    settings = replace(generator.settings, seed=generator.settings.seed or 0)  # compared models draw the same seeds
    task = replace(task, remarks=(*task.remarks, *deviations(task.condition, settings, samples)))
    grammar, label = read_grammar(runtime, options), generator.model.label
    questions = select(task.questions, options.limit)
    evaluation = Evaluation(questions, samples, settings, label, task.marker, grammar)
    return PreparedEvaluation(task, evaluation, replace(generator, settings=settings))


def read_task(runtime: Runtime, source: str, options: EvalOptions) -> LoadedTask:
    """Read the questions, with a progress bar if they are downloaded, and name the rows that do not count."""
    match = next((each for each in MATCHES if each == options.match), None)
    if options.match and match is None:
        raise UsageError(f"--match is {options.match!r}", f"it must be {', '.join(MATCHES)}")
    read_options = ReadOptions(options.template, match, options.run_code)
    preset = find_preset(options.preset) if options.preset else None
    with file_progress(runtime, options) as progress:
        task = read_source(source, read_options, preset, progress, options.offline)
    if not options.quiet:
        for bad in task.bad_rows[:SHOWN_ERRORS]:
            runtime.streams.notice(NoticeEvent(f"line {bad.line} of {source} skipped: {bad.reason}", ""))
        if (more := len(task.bad_rows) - SHOWN_ERRORS) > 0:
            runtime.streams.notice(NoticeEvent(f"{more} more {'line' if more == 1 else 'lines'} skipped", ""))
    return task


def deviations(condition: Condition | None, settings: Settings, samples: int) -> Iterator[str]:
    """Remarks on what the user set otherwise than a preset."""
    if condition is None:
        return
    if condition.temperature is not None and settings.temperature != condition.temperature:
        yield f"differs from the preset: temperature {settings.temperature:g} instead of {condition.temperature:g}"
    if samples != condition.samples:
        yield f"differs from the preset: samples {samples} instead of {condition.samples}"


def require_count(option: str, value: int | None, most: int | None = None) -> None:
    """Raise UsageError for a number below 1, or above the most that is allowed."""
    if value is not None and (value < 1 or (most and value > most)):
        raise UsageError(f"{option} is {value}", f"it must be from 1 to {most}" if most else "it must be 1 or more")


def run_eval(
    runtime: Runtime,
    source: str,
    output: Path | None,
    given: Layer,
    options: EvalOptions,
    lm_eval: LmEvalOptions,
    typed: frozenset[str],
) -> int:
    """Ask the questions of a task or a file, and print the report; return how many questions do not count.

    `typed` are the parameters on the command line. Raises Interrupted with how to resume.
    """
    if source.startswith(LM_EVAL):
        from cerebrum_cli.runtime.evaluation.lm_eval import run_lm_eval

        return run_lm_eval(runtime, source.removeprefix(LM_EVAL), output, given, options, lm_eval)
    require_unset(lm_eval)
    prepared = prepare(runtime, source, given, options, typed)
    if output:
        require_file(output, source)
    fingerprint = prepared.fingerprint(runtime)
    path = output or runtime.runs.path_for(fingerprint)
    if options.dry_run:
        from cerebrum_cli.runtime.evaluation.preview import show_preview

        kept = [] if options.restart else samples_to_keep(path, fingerprint, prepared.extent)
        show_preview(runtime, prepared, kept, options)
        return 0
    if output is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    run = take_samples(runtime, prepared, path, fingerprint, options)
    samples = run.samples()
    skipped = sum(sample.is_skipped for sample in samples)
    if skipped == len(samples):
        runtime.streams.error(no_sample_counts(run, samples))
    else:
        print_run(runtime, run, samples, options.json, options.quiet)
    return len(prepared.task.bad_rows) + skipped


def require_file(output: Path, source: str) -> None:
    """Raise UsageError for an output that is no file of its own."""
    if output == Path("-"):
        raise UsageError("-o is `-`, but a run is a file", "omit -o to store it by name; --json prints the report")
    output_paths(output, Path(source))


def take_samples(
    runtime: Runtime, prepared: PreparedEvaluation, path: Path, fingerprint: Mapping[str, Any], options: EvalOptions
) -> Run:
    """Take the samples that are missing, and complete the run file."""
    evaluation = prepared.evaluation
    run = open_journal(
        path, fingerprint, evaluation.rows, options.restart, extent=prepared.extent, notes=prepared.notes
    )
    try:
        if missing := len(evaluation.rows) - run.done:
            run.write_notes({**run.notes, **prepared.notes})
            loaded = prepared.generator.open(runtime, missing, noted_servers(run))
            before, start = run.done, time.monotonic()
            try:
                with naming_grammar_file(options):
                    events = noting_servers(evaluate(loaded.responder, evaluation, run), run, loaded)
                    render(events, loaded.responder.cancel, progress_sinks(runtime, loaded.model.name, options))
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


def require_unset(lm_eval: LmEvalOptions) -> None:
    """Raise UsageError for an option that only lm-eval has."""
    for name, value in asdict(lm_eval).items():
        if value:
            raise UsageError(
                f"{flag(name)} applies only to lm-eval tasks", "omit it, or name one like lm-eval:arc_easy"
            )
