"""`cerebrum eval`: measure how well a model answers."""

from __future__ import annotations

import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.row_commands import Work, answer_missing, resumable
from cerebrum_cli.core.declaration import PATH, option, option_group
from cerebrum_cli.core.errors import SOME_FAILED, BatchError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import REPLY_KEYS
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.eval.completions import tasks
from cerebrum_cli.eval.eval_options import EvalOptions

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.prepared import PreparedEvaluation
    from cerebrum_cli.eval.stored_runs import Run
    from cerebrum_cli.results.rows import Results


@option_group
class EvalCommand(EvalOptions):
    """A question file has one JSON object on each line, with `question`, `answer` and, for multiple choice, `choices`.

    Samples are saved within a second; run the same command again to resume. A larger --limit extends the run, and so
    does a larger --samples at the same temperature.

    Examples:
      cerebrum eval gsm8k -m cerebrum-7b --limit 200
      cerebrum eval exam.jsonl -m cerebrum-7b:Q8_0 --samples 8
    """

    settings = settings_options(
        REPLY_KEYS,
        temperature="Sampling temperature [default: the model's, else 0, or 0.7 with several samples]",
        seed="Random seed [default: 0]",
    )
    task: str = argument("TASK", "Task such as gsm8k or humaneval, or a file like exam.jsonl", tasks)
    output: Path | None = option(
        "File for the run [default: named after task and model]", "Output", PATH, short="-o", metavar="RUN.jsonl"
    )

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.prepared import prepare
        from cerebrum_cli.eval.runs_command import print_run
        from cerebrum_cli.eval.stored_runs import RunStore, require_run_file
        from cerebrum_cli.results.results import output_paths

        source, output = self.task, self.output
        if output:
            require_run_file(output)
            output_paths(output, Path(source))
        prepared = prepare(app, source, self.overrides, self)
        path, why_new = (output, "") if output else RunStore.of(app).path_for(prepared.fingerprint)
        if why_new:
            app.streams.note(NoticeEvent(why_new))
        if self.dry_run:
            from cerebrum_cli.eval.preview import show_preview

            show_preview(app, prepared, path, self)
            return
        if output is None:
            path.parent.mkdir(parents=True, exist_ok=True)
        run = take_samples(app, prepared, path, self)
        samples = run.samples()
        try:
            print_run(app, run, samples, self.json)
        except UsageError as error:  # no sample counts
            app.streams.error(error)
        if prepared.task.bad_rows or any(sample.is_skipped for sample in samples):
            raise typer.Exit(SOME_FAILED)


def take_samples(app: App, prepared: PreparedEvaluation, path: Path, options: EvalOptions) -> Run:
    """Take the samples that are missing, and complete the run file. Raises Interrupted with how to resume."""
    from cerebrum_cli.eval.evaluate import SAMPLE_ROWS
    from cerebrum_cli.eval.stored_runs import EXTENT, require_no_fewer, require_run
    from cerebrum_cli.results.results import open_results

    evaluation, notes = prepared.evaluation, {**prepared.notes, EXTENT: prepared.evaluation.extent}
    if not options.restart:
        require_no_fewer(path, prepared.fingerprint, evaluation.extent)
    run = open_results(path, prepared.fingerprint, SAMPLE_ROWS, evaluation.keys, options.restart, notes=notes)
    with resumable(run, "samples", options.restart):
        if run.missing_count:
            run.write_notes({**run.notes, **notes})
            generate(app, prepared, run, options)
    return require_run(path)


def generate(app: App, prepared: PreparedEvaluation, run: Results, options: EvalOptions) -> None:
    """Take the missing samples, and note how long they took, for the estimates of later runs."""
    from cerebrum_cli.eval.evaluate import evaluate, missing_samples

    missing = run.missing_count
    start = time.monotonic()
    work = Work(missing_samples, 1, partial(evaluate, prepared.evaluation))
    try:
        answer_missing(app, prepared.source, options, run, work)
    finally:
        if samples := missing - run.missing_count:
            seconds = run.notes.get("seconds", 0.0) + time.monotonic() - start
            timed = run.notes.get("timed_samples", 0) + samples
            with suppress(BatchError):  # of a full disk: what went wrong before it matters more
                timing = {"seconds": round(seconds, 3), "timed_samples": timed, "date": format_utc(time.time())}
                run.write_notes({**run.notes, **timing})
