"""The preview of an evaluation: its first prompt, how many samples it takes, and about how long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.settings import sampling_text
from cerebrum_cli.core.text import format_count, format_duration
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.eval.prepared import PreparedEvaluation
from cerebrum_cli.eval.stored_runs import RunStore, samples_to_keep
from cerebrum_cli.replies.interface import open_source
from cerebrum_cli.terminal.streams import Streams

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.eval_options import EvalOptions

ALIKE = ("model", "task", "check", "set of functions")  # in the fingerprints of runs that take equally long


def show_preview(app: App, prepared: PreparedEvaluation, path: Path, options: EvalOptions) -> None:
    """Print the exact prompt of the first question on standard output, and a summary of the run on standard error."""
    evaluation = prepared.evaluation
    first = evaluation.questions[0]
    with open_source(replace(prepared.source, context=ContextOptions(), vocabulary_only=True)) as loaded:
        asked = evaluation.ask(first, evaluation.settings)
        prompt, token_ids = loaded.preview(asked.conversation, evaluation.settings)
        for notice in loaded.take_notices():
            app.streams.note(notice)
    samples = missing = len(evaluation.questions) * evaluation.samples
    if not options.restart:
        missing -= len(samples_to_keep(path, prepared.fingerprint, evaluation.extent))
    pace = seconds_per_sample(app, prepared)
    if options.json:
        preview = {
            "prompt": prompt,
            "prompt_tokens": len(token_ids),
            "reference": first.reference,
            "questions": len(evaluation.questions),
            "bad_rows": len(prepared.task.bad_rows),
            "total_samples": samples,
            "missing_samples": missing,
            "seconds": pace and round(pace * samples),
            "missing_seconds": pace and round(pace * missing),
        }
        app.streams.answer(preview)
        return
    app.streams.answer(prompt if prompt.endswith("\n") or not app.streams.out_is_terminal else f"{prompt}\n")
    if not app.streams.is_quiet:
        describe_run(app.streams, prepared)
        app.streams.draw(f"{len(token_ids)} tokens in this prompt\n")
        duration = "time unknown: no earlier run of this model and task"
        if pace is not None:
            duration = f"about {format_duration(pace * missing)}"
        app.streams.draw(f"{missing} of {format_count(samples, 'sample')} to generate, {duration}\n")


def seconds_per_sample(app: App, prepared: PreparedEvaluation) -> float | None:
    """Estimated seconds of a sample, by the latest run like this one; None if there is none."""
    for run in reversed([*RunStore.of(app)]):
        notes = run.notes
        is_alike = all(run.fingerprint.get(key) == prepared.fingerprint.get(key) for key in ALIKE)
        if is_alike and notes.get("timed_samples"):
            seconds: float = notes["seconds"] / notes["timed_samples"]
            return seconds
    return None


def describe_run(streams: Streams, prepared: PreparedEvaluation) -> None:
    task, evaluation = prepared.task, prepared.evaluation
    questions, samples = format_count(len(task.questions), "question"), format_count(evaluation.samples, "sample")
    streams.draw(f"expected answer: {evaluation.questions[0].reference}\n")
    streams.draw(f"{len(evaluation.questions)} of {questions}, {samples} each\n")
    streams.draw(f"{sampling_text(evaluation.settings.samplers, evaluation.settings.origins)}\n")
    for line in task.remarks:
        streams.note(f"- {line}")
