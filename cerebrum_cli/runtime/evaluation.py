"""Measure how well a model answers: the run of `cerebrum eval`."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.application.evaluation.evaluate import Evaluation, evaluate
from cerebrum_cli.application.evaluation.marking import MATCHES
from cerebrum_cli.application.evaluation.runs import QUESTIONS, SAMPLES, Run
from cerebrum_cli.application.evaluation.sources import Asked, Reading, read_source
from cerebrum_cli.application.inference.fingerprint import generation_fingerprint
from cerebrum_cli.application.inference.loading import open_model
from cerebrum_cli.application.inference.question import template_options
from cerebrum_cli.application.models.generative import require_generative
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.journal import open_journal
from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.events import SHOWN_ERRORS, NoticeEvent
from cerebrum_cli.core.options import flag
from cerebrum_cli.evals.presets import find_preset
from cerebrum_cli.evals.selection import select
from cerebrum_cli.runtime.batch import parse_parallel, plan_parallel
from cerebrum_cli.runtime.generation import generation_settings, naming_grammar_file, read_grammar
from cerebrum_cli.runtime.models import file_progress, find_model, resolve_encoding
from cerebrum_cli.runtime.runs import print_run
from cerebrum_cli.terminal.bars import BatchProgress
from cerebrum_cli.terminal.progress import LoadLine
from cerebrum_cli.terminal.sinks import NoticeSink, Sink, render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.application.inference.loading import LoadedModel, ResolvedModel
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.batches.journal import Journal
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import EvalOptions, LmEvalOptions

MAX_SAMPLES = 256
LM_EVAL = "lm-eval:"


@dataclass(frozen=True, slots=True)
class Prepared:
    """An evaluation, with the model that answers and what it needs to be opened."""

    asked: Asked
    evaluation: Evaluation
    model: Model
    resolved: ResolvedModel
    arguments: Mapping[str, Any]
    parallel: int | None
    pad_steps: bool

    def open(self, runtime: Runtime, missing: int, vocabulary_only: bool = False) -> LoadedModel:
        """Start to load the model for the missing samples."""
        tuning = self.resolved.tuning("batch")
        return open_model(
            runtime.open_backend,
            self.model,
            self.evaluation.settings,
            template_options=self.arguments,
            vocabulary_only=vocabulary_only,
            parallel=plan_parallel(self.parallel or tuning.slots, missing, self.pad_steps),
            file=self.resolved.model,
            tuning=tuning,
        )

    def fingerprint(self, runtime: Runtime) -> dict[str, Any]:
        """Everything the samples depend on, by readable names."""
        evaluation = self.evaluation
        return {
            **self.asked.fingerprint,
            **({"batch invariance": "all types"} if self.pad_steps else {}),
            "template arguments": self.arguments or None,
            **generation_fingerprint(
                evaluation.settings, evaluation.grammar, self.model, self.resolved.model, runtime.library
            ),
        }


def run_eval(
    runtime: Runtime, source: str, output: Path | None, given: Layer, options: EvalOptions, lm_eval: LmEvalOptions
) -> int:
    """Ask the questions of a task or a file, and print the report; return how many questions do not count.

    Raises Interrupted with how to resume.
    """
    if source.startswith(LM_EVAL):
        from cerebrum_cli.runtime.lm_eval import run_lm_eval

        return run_lm_eval(runtime, source.removeprefix(LM_EVAL), output, given, options, lm_eval)
    require_unset(lm_eval)
    prepared = prepare(runtime, source, given, options)
    fingerprint = prepared.fingerprint(runtime)
    path = output or runtime.runs.path_for(fingerprint)
    if options.dry_run:
        from cerebrum_cli.runtime.eval_preview import show_preview

        show_preview(runtime, prepared, options)
        return 0
    run = take_samples(runtime, prepared, path, fingerprint, options)
    samples = run.samples()
    print_run(runtime, run, samples, options.json, options.quiet)
    return len(prepared.asked.bad_rows) + sum(sample.is_refused for sample in samples)


def read_asked(runtime: Runtime, source: str, options: EvalOptions) -> Asked:
    """Read the questions, with a progress bar if they are downloaded, and name the rows that do not count."""
    match = next((each for each in MATCHES if each == options.match), None)
    if options.match and match is None:
        raise UsageError(f"--match is {options.match!r}", f"it must be {', '.join(MATCHES)}")
    reading = Reading(options.question_field, options.answer_field, options.template, match, options.run_code)
    preset = find_preset(options.preset) if options.preset else None
    with file_progress(runtime, options) as progress:
        asked = read_source(source, reading, preset, progress, options.offline)
    if not options.quiet:
        for bad in asked.bad_rows[:SHOWN_ERRORS]:
            runtime.streams.notice(NoticeEvent(f"line {bad.line} of {source} is not counted: {bad.reason}", ""))
        if (more := len(asked.bad_rows) - SHOWN_ERRORS) > 0:
            runtime.streams.notice(NoticeEvent(f"{more} more lines are not counted", ""))
    return asked


def prepare(runtime: Runtime, source: str, given: Layer, options: EvalOptions) -> Prepared:
    """Read the questions, and resolve the model and its settings. Raises UsageError, ModelNotFound."""
    if options.batch_invariant:
        if given.get("drafts"):
            raise UsageError("--batch-invariant and --drafts cannot be used together", "omit one of them")
        given = {**given, "drafts": False}
    require_count("--samples", options.samples, MAX_SAMPLES)
    require_count("--limit", options.limit)
    parallel = parse_parallel(options.parallel)
    asked = read_asked(runtime, source, options)
    samples = options.samples or asked.samples
    model = find_model(runtime, given, options)
    require_generative(model.path, model.header)
    settings = generation_settings(runtime, given, model, "--samples" if samples > 1 else None, asked.settings)
    settings = replace(settings, seed=settings.seed or 0)  # compared models draw the same seeds
    grammar = read_grammar(runtime, options, options.quiet)
    return Prepared(
        asked,
        Evaluation(select(asked.questions, options.limit), samples, settings, model.label, asked.marker, grammar),
        model,
        resolve_encoding(runtime, model, settings, options),
        template_options(options.template_arg),
        parallel,
        options.batch_invariant,
    )


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
                remember_time(run, run.done - before, time.monotonic() - start, prepared.asked)
        run.complete()
    except Interrupted as error:
        hint = f"{run.done} of {len(evaluation.rows)} samples done; run it again to resume"
        raise Interrupted(error.exit_code - 128, hint) from error
    finally:
        run.close()
    return runtime.runs.find(str(path))


def remember_time(run: Journal, samples: int, seconds: float, asked: Asked) -> None:
    """Add the time that samples took to the run's notes, and what its report states about the questions."""
    notes = dict(run.notes)
    if samples:
        run.write_notes(
            {
                **notes,
                "bad_rows": len(asked.bad_rows),
                "remarks": list(asked.remarks),
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
            raise UsageError(f"{flag(name)} is for lm-eval's tasks", "omit it, or name a task like lm-eval:arc_easy")


def require_count(option: str, value: int | None, most: int | None = None) -> None:
    """Raise UsageError for a number below 1, or above the most that is allowed."""
    if value is not None and (value < 1 or (most and value > most)):
        raise UsageError(f"{option} is {value}", f"it must be from 1 to {most}" if most else "it must be 1 or more")
