"""`cerebrum batch`: answer many questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.cli.command import argument, settings_options
from cerebrum_cli.cli.options import GenerationOptions
from cerebrum_cli.cli.row_commands import (
    RowFileOptions,
    RowOptions,
    Work,
    answer_missing,
    resumable,
)
from cerebrum_cli.core.declaration import PATH, option, option_group
from cerebrum_cli.core.errors import SOME_FAILED, UsageError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import MODES, REPLY_KEYS, SAMPLING_KEYS, Layer, SourcedLayer

if TYPE_CHECKING:
    from cerebrum_cli.batch.answering import BatchOptions
    from cerebrum_cli.batch.readers import BatchInput
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results

STANDARD = Path("-")  # standard input or output


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
        from cerebrum_cli.batch.readers import InputOptions
        from cerebrum_cli.core.row_fields import parse_template
        from cerebrum_cli.results.results import output_paths

        output = self.output
        if output is None:
            raise UsageError("missing option '-o' / '--output'", "see cerebrum batch --help")
        source = Path(self.input)
        if output != STANDARD:
            output_paths(output, None if source == STANDARD else source)
        template = None if self.template is None else parse_template(self.template)
        with InputOptions(template, self.delimiter).open(source, app.streams.piped, output) as rows:
            without_answer = BatchRun.prepare(app, rows, output, self.overrides, self).answer()
        if without_answer:
            raise typer.Exit(SOME_FAILED)


@frozen
class BatchRun:
    """The rows of a batch, its output, the model, and how each row is asked."""

    app: App
    rows: BatchInput
    output: Path
    options: BatchCommand
    source: ModelSource
    asked: BatchOptions

    @classmethod
    def prepare(cls, app: App, rows: BatchInput, output: Path, overrides: Layer, options: BatchCommand) -> BatchRun:
        """Find the model, its settings, the functions and the grammar. Raises UsageError, ModelNotFound."""
        from cerebrum_cli.batch.answering import BatchOptions

        tools = options.find_tools(app)
        votes = options.vote_bounds()
        source = options.find_source(app, overrides)
        if votes:
            source = source.for_samples("--votes")
        modes = {}
        for is_on, mode in MODES.items():  # a model may recommend other sampling for each
            settings = app.settings(SourcedLayer(overrides, {"think": is_on}), source.model.recommended)
            if votes:
                settings = settings.for_samples("--votes")
            modes[mode] = replace(source.settings, **{key: getattr(settings, key) for key in SAMPLING_KEYS})
        asked = BatchOptions(
            source.settings,
            grammar=options.read_grammar(source),
            votes=votes,
            modes=modes,
            tools=tools,
        )
        return cls(app, rows, output, options, source, asked)

    @property
    def fingerprint(self) -> JsonDict:
        """Everything that the answers depend on besides the rows, by readable names."""
        fingerprint = self.rows.fingerprint | self.asked.fingerprint(self.source)
        return fingerprint | self.options.tool_record(self.asked.tools)

    def open_results(self) -> Results:
        """The result, with the rows that earlier runs finished. Raises UsageError, BatchError."""
        from cerebrum_cli.results.results import open_results, open_stream

        options = self.options
        grammar = self.asked.grammar
        kind = self.rows.kind_for(self.output, fields=grammar.fields if grammar else ())
        rows = self.rows.known_rows()
        if self.output != STANDARD:
            notes = self.source.model.adapter_params
            return open_results(self.output, self.fingerprint, kind, rows, options.restart, options.retry_failed, notes)
        if options.place_flag:
            raise UsageError(f"{options.place_flag} cannot stream to standard output", "name a file with -o OUTPUT")
        if options.retry_failed:
            raise UsageError("--retry-failed requires a file with earlier answers", "give it as -o OUTPUT")
        return open_stream(self.app.streams.answer, kind, rows)

    def answer(self) -> int:
        """Answer the rows that have no answer yet; return how many failed or are undecided.

        Raises Interrupted with how to resume.
        """
        results = self.open_results()
        results.has_more = not self.rows.is_whole
        with resumable(results, "rows", self.options.restart):
            answer_missing(self.app, self.source, self.options, results, Work(self.rows.missing_rows, self.asked))
        return results.counts.failed + results.counts.undecided
