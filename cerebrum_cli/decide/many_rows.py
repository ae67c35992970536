"""Decide the rows of a file."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cerebrum_cli.batch.readers import InputOptions
from cerebrum_cli.cli.row_commands import Work, answer_missing, resumable
from cerebrum_cli.core.errors import SOME_FAILED, UsageError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.row_fields import parse_template
from cerebrum_cli.decide.by_likelihood import UNUSED
from cerebrum_cli.decide.decided_rows import RowQuestions, decide_rows
from cerebrum_cli.results.results import open_results, output_paths
from cerebrum_cli.results.rows import StreamedResults

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.saved_prompts import SavedPrompt
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.decide.decide_options import DecideOptions
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results

METHOD = 2  # of the prompts and the averages; raise it when a decision may change
STANDARD = Path("-")  # standard input or output


def decide_file(
    app: App,
    question: str,
    saved: SavedPrompt | None,
    source: Path,
    output: Path | None,
    overrides: Layer,
    options: DecideOptions,
) -> None:
    """Decide the rows of a file that have no decision yet. Raises Interrupted with how to resume, and Exit."""
    if output and output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    template = parse_template(question) if {*question} & {*"{}"} else None
    if saved and question and not template:
        hint = 'omit QUESTION, or let it name a column: "{text}"'
        raise UsageError(f"the saved prompt {saved.name} has its own question", hint)
    reading = InputOptions(
        template,
        options.input_format,
        options.delimiter,
        include_input=True,
        saved=saved,
        template_use='name a column in QUESTION: "... {NAME}"',
        has_settings=False,
    )
    with closing(reading.open(source, app.streams.piped, output or STANDARD)) as rows:
        is_table = output is not None and rows.for_output(output).table is not None
        asked = RowQuestions(
            rows,
            "" if template or saved else question,
            template.fields if template else (),
            options.find_choices(),
            is_fast=options.fast,
            votes=options.votes,
            writes_all=options.probabilities,
            copies_input=options.include_input or (is_table and rows.form.header is not None),
        )
        model = options.find_source(app, overrides)
        if options.label is not None:
            measure_rows(app, asked, source.stem, model, output, options)
            return
        if options.plot:
            raise UsageError("--plot requires --label", "name the column with the right answers: --label COLUMN")
        if output is None:
            raise UsageError("missing option '-o' / '--output'", "see cerebrum decide --help")
        if is_table:
            asked.require_columns()
        write_decisions(app, asked, model, output, options)


def measure_rows(
    app: App, asked: RowQuestions, task: str, model: ModelSource, output: Path | None, options: DecideOptions
) -> None:
    """Compare decisions with labels, as a run of the package `eval`. Raises UsageError without it."""
    try:
        from cerebrum_cli.decide.labelled import measure
    except ModuleNotFoundError as error:
        raise UsageError("--label needs the package `eval`", "install cerebrum-cli again") from error
    measure(app, asked, task, model, fingerprint_of(asked, model), output, options)


def write_decisions(app: App, asked: RowQuestions, model: ModelSource, output: Path, options: DecideOptions) -> None:
    """Decide the rows that the output lacks. Raises Exit if some failed."""
    results = open_decisions(app, asked, model, output, options)
    with resumable(results, "rows", options.restart):
        work = Work(range(len(asked.rows)), 1, partial(decide_rows, asked))
        answer_missing(app, model, options, results, work)
    if results.counts.failed:
        raise typer.Exit(SOME_FAILED)


def open_decisions(app: App, asked: RowQuestions, model: ModelSource, output: Path, options: DecideOptions) -> Results:
    """The result, with the rows that earlier runs decided. Raises UsageError, BatchError."""
    rows = asked.for_output(output)
    if output != STANDARD:
        fingerprint = fingerprint_of(asked, model)
        notes = model.model.adapter_params
        return open_results(output, fingerprint, rows, options.restart, options.retry_failed, notes=notes)
    if options.retry_failed:
        raise UsageError("--retry-failed requires a file with earlier decisions", "give it as -o OUTPUT")
    return StreamedResults(rows, app.streams.answer)


def fingerprint_of(asked: RowQuestions, model: ModelSource) -> JsonDict:
    """Everything that decisions depend on besides the rows, by readable names."""
    choices = asked.choices and [list(choice) for choice in asked.choices.items]
    unused = () if asked.votes else [key.replace("_", " ") for key in UNUSED]
    return {
        **asked.rows.fingerprint,
        **{key: value for key, value in model.fingerprint(None).items() if key not in unused},
        "include input": asked.copies_input,
        "question": asked.question,
        "choices": choices,
        "columns": list(asked.keys),
        "one order": asked.is_fast,
        "votes": asked.votes,
        "method of decisions": METHOD,
    }
