"""What `cerebrum eval --dry-run` shows: one exact prompt, how many questions and samples there are, and their time."""

from __future__ import annotations

import contextlib
from contextlib import closing
from statistics import StatisticsError, mean
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import format_count, format_duration
from cerebrum_cli.engine.memory import SINGLE
from cerebrum_cli.engine.trials import BenchJob, TrialError
from cerebrum_cli.inference.loading import load_options, open_model
from cerebrum_cli.inference.profiles import tuning_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.eval_setup import PreparedEvaluation
    from cerebrum_cli.cli.options import EvalOptions
    from cerebrum_cli.eval.questions import Sample

ASSUMED_TOKENS = 256  # of an answer, where no earlier run says
BENCH_SLOTS = 16
PREFILL, DECODE = BenchJob("prefill", 128), BenchJob("decode", 8, BENCH_SLOTS)


def show_preview(app: App, prepared: PreparedEvaluation, kept: Sequence[Sample], options: EvalOptions) -> None:
    """Print the exact prompt of the first question on standard output, and what the run would be on standard error.

    `kept` are the samples that are not taken again.
    """
    evaluation = prepared.evaluation
    question = evaluation.questions[0]
    loaded = open_model(prepared.source.used(context=SINGLE, vocabulary_only=True))
    try:
        conversation = Conversation((), evaluation.settings.system, evaluation.settings.thinks).user(question.prompt)
        preview = loaded.responder.preview(conversation)
    finally:
        loaded.engine.close()
    rows = [evaluation.rows.identity(position) for position in range(len(evaluation.rows))]
    finished = {(sample.id, sample.sample) for sample in kept}
    missing = [row for row in rows if row not in finished]
    seconds, basis = estimate(app, prepared, missing, len(preview.token_ids))
    if options.json:
        app.streams.answer_object(
            {
                "prompt": preview.prompt,
                "prompt_tokens": len(preview.token_ids),
                "gold": question.gold,
                "questions": len(evaluation.questions),
                "bad_rows": len(prepared.task.bad_rows),
                "total_samples": len(rows),
                "missing_samples": len(missing),
                "seconds": None if seconds is None else round(seconds),
            }
        )
        return
    app.streams.answer(preview.prompt)
    if app.streams.out_is_terminal and not preview.prompt.endswith("\n"):
        app.streams.answer("\n")
    if options.quiet:
        return
    info = app.streams.info
    info(f"expected answer: {question.gold}")
    questions = format_count(len(prepared.task.questions), "question")
    info(f"{len(evaluation.questions)} of {questions}, {format_count(evaluation.samples, 'sample')} each")
    for line in prepared.task.remarks:
        app.streams.write_line("- ", line)
    if kept:
        info(f"{len(rows) - len(missing)} of {format_count(len(rows), 'sample')} already in the run")
    info(f"about {format_duration(seconds)}, {basis}" if seconds else basis)


def estimate(
    app: App, prepared: PreparedEvaluation, missing: Sequence[tuple[Any, ...]], prompt_tokens: int
) -> tuple[float | None, str]:
    """Estimate the time of the missing samples in seconds, and what the estimate rests on; None if it is unknown."""
    if not missing:
        return 0.0, "nothing to generate"
    evaluation, source, samples = prepared.evaluation, prepared.source, len(missing)
    runs = [run for run in app.runs if run.model == evaluation.model and run.record.notes.get("timed_samples")]
    same = next((run for run in reversed(runs) if run.task == prepared.task.name), None)
    if same:
        notes = same.record.notes
        return notes["seconds"] / notes["timed_samples"] * samples, f"based on run {same.name}"
    if source.host:
        return None, "the time depends on the servers"
    tokens = evaluation.settings.max_tokens or ASSUMED_TOKENS
    with contextlib.suppress(UsageError, IndexError, StatisticsError):  # no run, a damaged one, or one without samples
        tokens = round(mean(sample.completion_tokens for sample in runs[-1].samples() if not sample.is_skipped))
    options = load_options(source.model, evaluation.settings)
    tuning = tuning_of(source.profile, "batch")
    try:
        with closing(app.open_bench(options, source.model.paths)) as bench:
            prefill, decode = bench.speed(tuning, PREFILL), bench.speed(tuning, DECODE)
    except TrialError as error:
        return None, f"cannot estimate the run time: {error}"
    slots = min(BENCH_SLOTS, samples)
    questions = len({id for id, _ in missing})
    seconds = questions * prompt_tokens / prefill + samples * tokens / (decode * slots / BENCH_SLOTS)
    return seconds, f"assuming {tokens} tokens per sample"
