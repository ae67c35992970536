"""`cerebrum eval`: measure how well a model answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.row_commands import answer_run
from cerebrum_cli.core.declaration import PATH, option, option_group
from cerebrum_cli.core.errors import SOME_FAILED, UsageError
from cerebrum_cli.core.settings import REPLY_KEYS
from cerebrum_cli.core.text import format_utc
from cerebrum_cli.eval.completions import tasks
from cerebrum_cli.eval.eval_options import EvalOptions

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.eval.prepared import PreparedEvaluation


@option_group
class EvalCommand(EvalOptions):
    """A question file (.jsonl, .csv, .tsv, .parquet) has `question`, `answer` and, for multiple choice, `choices`.

    Answers are saved within a second; run the same command again to resume. A larger --limit asks only the others.

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
        "File of the answers [default: TASK-MODEL.jsonl]", "Output", PATH, short="-o", metavar="RUN.jsonl"
    )

    def run(self, app: App) -> None:
        from cerebrum_cli.eval.prepared import prepare
        from cerebrum_cli.eval.preview import show_preview
        from cerebrum_cli.eval.runs import read_run, require_run_file, run_path
        from cerebrum_cli.eval.runs_command import print_run
        from cerebrum_cli.rows.run import output_paths

        if self.dry_run and self.json:
            raise UsageError.conflict("--dry-run", "--json")
        if self.output:
            require_run_file(self.output)
            output_paths(self.output, Path(self.task))
        prepared = prepare(app, self.task, self)
        if self.dry_run:
            show_preview(app, prepared)
            return
        path = self.output or run_path(prepared.task.name, prepared.source.model.label)
        failed = ask_questions(app, prepared, path, self)
        try:
            print_run(app, read_run(path), self.json)
        except UsageError as error:
            if not failed:
                raise
            app.streams.error(error)  # no question was answered
        if failed:
            raise typer.Exit(SOME_FAILED)


def ask_questions(app: App, prepared: PreparedEvaluation, path: Path, options: EvalCommand) -> int:
    """Ask the questions that have no answer yet; return how many failed. Raises Interrupted with how to resume."""
    from cerebrum_cli.eval.scores import SCORES
    from cerebrum_cli.rows.record import Record

    with SCORES[prepared.task.match].open():  # what it refuses is refused before the model is loaded
        pass
    record = Record(prepared.fingerprint, prepared.notes)
    run = options.open_run(path, record, prepared.questions, None, app.streams.answer, "question")
    if run.missing_count:
        run.notes = {**run.notes, "date": format_utc(time.time())}
    answer_run(app, prepared.source, options, run, prepared.asker, "questions")
    return run.counts.failed
