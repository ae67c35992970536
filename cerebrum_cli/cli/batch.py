"""`cerebrum batch`: answer many questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.options import GenerationOptions
from cerebrum_cli.cli.row_commands import RowFileOptions, RowOptions, answer_run
from cerebrum_cli.core.declaration import PATH, option, option_group
from cerebrum_cli.core.errors import SOME_FAILED, UsageError
from cerebrum_cli.core.settings import MODES, REPLY_KEYS, SAMPLING_KEYS, WITH_THINKING, SourcedLayer

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.row_events import RowCounts
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.rows.answering import BatchOptions
    from cerebrum_cli.rows.read import Input


@option_group
class BatchCommand(RowFileOptions, RowOptions, GenerationOptions):
    """Answers are saved to OUTPUT.partial within a second; OUTPUT appears when all are done, in the order of INPUT.

    If the run is interrupted, or INPUT has changed, run it again: rows that have an answer keep it. Settings are
    recorded in OUTPUT.meta.json.

    Examples:
      cerebrum batch questions.txt -o answers.jsonl
      cerebrum batch rows.csv -o out.jsonl --template "Sum up: {text}"
      cerebrum batch exam.jsonl -o out.jsonl --votes auto:3..16
    """

    settings = settings_options(REPLY_KEYS)
    input: str = argument("INPUT", "Questions: .txt, .jsonl, .csv, .tsv, .parquet; `-`: standard input")
    output: Path | None = option(
        "Answers: .jsonl, .csv, .tsv; `-` streams to standard output [required]",
        "Output",
        PATH,
        short="-o",
        metavar="OUTPUT",
    )
    template: str | None = option("Build the prompt from a row's fields: 'Sum up: {text}'", "Input", metavar="TEXT")

    def run(self, app: App) -> None:
        from cerebrum_cli.core.row_fields import parse_template
        from cerebrum_cli.rows.input_file import STANDARD
        from cerebrum_cli.rows.read import InputOptions
        from cerebrum_cli.rows.run import output_paths

        output = self.output
        if output is None:
            raise UsageError("missing option '-o' / '--output'", "see cerebrum batch --help")
        source = Path(self.input)
        if output != STANDARD:
            output_paths(output, None if source == STANDARD else source)
        template = None if self.template is None else parse_template(self.template)
        with InputOptions(template, self.delimiter).open(source, app.streams.piped, output) as rows:
            counts = self.answer(app, rows, output)
        if counts.failed or counts.undecided:
            raise typer.Exit(SOME_FAILED)

    def answer(self, app: App, rows: Input, output: Path) -> RowCounts:
        """Answer the rows that have no answer yet. Raises Interrupted with how to resume."""
        from cerebrum_cli.rows.input_file import STANDARD
        from cerebrum_cli.rows.record import Record

        source, asker = self.find_asker(app)
        if output == STANDARD and self.place_flag:
            raise UsageError(f"{self.place_flag} cannot stream to standard output", "name a file with -o OUTPUT")
        made_with = {**rows.fingerprint, **asker.fingerprint(source), **self.tool_record(asker.tools)}
        table = rows.table(output, fields=asker.grammar.fields if asker.grammar else ())
        record = Record(made_with, source.model.adapter_params)
        run = self.open_run(output, record, rows, table, app.streams.answer)
        answer_run(app, source, self, run, asker, "rows")
        return run.counts

    def find_asker(self, app: App) -> tuple[ModelSource, BatchOptions]:
        """The model, and how each row is asked. Raises UsageError, ModelNotFound."""
        from cerebrum_cli.rows.answering import BatchOptions

        tools = self.find_tools(app)
        votes = self.vote_bounds()
        source = self.find_source(app, self.overrides)
        if votes:
            source = source.for_samples("--votes")
        modes = {}
        for mode in MODES:  # a model may recommend other sampling for each
            settings = app.settings(
                SourcedLayer(self.overrides, {"think": mode == WITH_THINKING}), source.model.recommended
            )
            if votes:
                settings = settings.for_samples("--votes")
            modes[mode] = replace(source.settings, **{key: getattr(settings, key) for key in SAMPLING_KEYS})
        grammar = self.read_grammar(source)
        return source, BatchOptions(source.settings, grammar, votes, modes, tools)
