"""`cerebrum batch`: answer many questions."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from cerebrum_cli.cli.options import ConcurrencyOptions, GenerationOptions, SavedPromptOptions, apply_prompt
from cerebrum_cli.cli.signature import composed, positional, settings_options
from cerebrum_cli.core.declaration import Option, option, option_group
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import SOME_FAILED, UsageError
from cerebrum_cli.core.row_events import RowEvent
from cerebrum_cli.core.settings import REPLY_KEYS, Layer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.batch.answering import BatchOptions
    from cerebrum_cli.batch.readers import IndexedRows
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.saved_prompts import SavedPrompt
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.journal import Journal
    from cerebrum_cli.results.result import StreamedResult

STANDARD = Path("-")  # standard input or output


@option_group
class BatchCommandOptions(SavedPromptOptions, ConcurrencyOptions, GenerationOptions):
    template: str | None = option(
        None, "Build the prompt from a row's fields: 'Sum up: {text}'", "Input", metavar="TEXT"
    )
    input_format: str | None = option(
        None, "Format of INPUT [default: from its name]", "Input", metavar="txt|jsonl|csv|tsv"
    )
    ignore_eos: bool = option(False, "Ignore end-of-sequence tokens (for benchmarks)", "Length")
    include_input: bool = option(False, "Copy each input row to the key `input` of its answer", "Output")
    restart: bool = option(False, "Start over; replace OUTPUT when done", "Output")
    retry_failed: bool = option(False, "Re-answer rows that failed, and undecided votes", "Output")

    def with_saved(self, saved: SavedPrompt, on_command_line: frozenset[str], /) -> Self:
        saved.require_without("a batch", "extract")
        if saved.schema is None or on_command_line & {"schema", "grammar"}:
            return self
        return replace(self, schema=saved.schema, grammar=None)


@composed
def batch(
    app: App,
    on_command_line: frozenset[str],
    input_file: Annotated[
        str, positional("INPUT", "Questions: .txt, .jsonl, .csv, .tsv, .parquet; `-`: standard input")
    ],
    output: Annotated[
        Path,
        Option(
            "Answers: .jsonl, .csv, .tsv, .parquet; `-` streams to standard output",
            "Output",
            short="-o",
            metavar="OUTPUT",
        ),
    ],
    overrides: Annotated[Layer, settings_options(REPLY_KEYS)],
    options: BatchCommandOptions,
) -> None:
    """Each answer is written to OUTPUT.partial immediately; OUTPUT appears when all are done, in the order of INPUT.

    If the run is interrupted, or INPUT has changed, run it again: rows that have an answer keep it. Settings are
    recorded in OUTPUT.meta.json.

    Examples:
      cerebrum batch questions.txt -o answers.jsonl
      cerebrum batch rows.csv -o out.jsonl --template "Sum up: {text}"
      cerebrum batch exam.jsonl -o out.jsonl --votes auto:3..16
    """
    from cerebrum_cli.batch.readers import detect_shape, open_input, read_rows, spool_input
    from cerebrum_cli.results.output_files import output_paths, table_type
    from cerebrum_cli.results.result import DELIMITERS

    saved, overrides, options = apply_prompt(app, overrides, options, on_command_line)
    source = Path(input_file)
    if output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    is_delimited = table_type(output) in DELIMITERS
    if source != STANDARD:
        opened = open_input(source)
    elif app.streams.piped is not None:
        opened = spool_input(app.streams.piped.read, "standard input")
    else:
        raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
    with closing(opened) as file:
        shape = detect_shape(source, options.input_format, file.head)
        includes_input = options.include_input or (is_delimited and shape in DELIMITERS)
        options = replace(options, input_format=shape, include_input=includes_input)
        rows = read_rows(file, shape, options.template, options.include_input, saved)
        without_answer = run_rows(app, rows, output, overrides, options, saved)
    if without_answer:
        raise typer.Exit(SOME_FAILED)


def run_rows(
    app: App,
    rows: IndexedRows,
    output: Path,
    overrides: Layer,
    options: BatchCommandOptions,
    saved: SavedPrompt | None,
) -> int:
    """Answer the rows that have no answer yet; return how many failed or are undecided.

    Raises Interrupted with how to resume.
    """
    from cerebrum_cli.batch import answering
    from cerebrum_cli.cli.generation import (
        read_grammar,
        resumable,
        settings_by_mode,
        source_fingerprint,
    )

    votes = options.vote_bounds
    samples_by = "--votes" if votes else None
    source = options.find_source(app, overrides, samples_by=samples_by)
    grammar, is_json = read_grammar(app, options, source.model), options.schema is not None
    modes = settings_by_mode(app, source, overrides, samples_by)
    names = source.model.names
    row_options = answering.BatchOptions(source.settings, names, grammar, is_json, votes, options.ignore_eos, modes)
    record = {
        "input format": options.input_format,
        "template": options.template,
        **({"include input": True} if options.include_input else {}),
        **({"prompt": saved.prompt} if saved and saved.prompt else {}),
        **source_fingerprint(source),
        **answering.batch_fingerprint(row_options, source.model, app.library),
    }
    result = open_result(app, output, record, source.model.adapter_params, rows, options)
    with resumable(result, "rows", options.restart):
        generate(app, source, rows, row_options, result, options)
    return result.counts.failed + result.counts.undecided


def generate(
    app: App,
    source: ModelSource,
    rows: IndexedRows,
    row_options: BatchOptions,
    result: Journal | StreamedResult,
    options: BatchCommandOptions,
) -> None:
    from cerebrum_cli.batch.answering import answer_rows
    from cerebrum_cli.cli.generation import answer_missing
    from cerebrum_cli.engine.model_options import expert_notice
    from cerebrum_cli.results.journal import Journal
    from cerebrum_cli.terminal.progress import BatchProgress

    if len(result.finished) == len(rows):
        with closing(BatchProgress(app.streams, draws=False)) as summary:
            summary.emit(RowEvent(len(rows), len(rows), result.counts))
        return
    if options.batch_invariant and environment("GGML_CPU_TILED_MM") != "0":
        header = source.model.header
        app.streams.report(expert_notice(header.expert_count, header.tensor_types))
    answer = partial(answer_rows, options=row_options, in_order=not isinstance(result, Journal))
    samples = row_options.votes.maximum if row_options.votes else 1
    here = partial(answer, rows=rows, result=result)
    answer_missing(app, source, options, result, here, (rows, samples, answer))


def open_result(
    app: App,
    output: Path,
    record: Mapping[str, Any],
    notes: Mapping[str, Any],
    rows: IndexedRows,
    options: BatchCommandOptions,
) -> Journal | StreamedResult:
    from cerebrum_cli.batch.rows import result_rows
    from cerebrum_cli.results.journal import open_journal
    from cerebrum_cli.results.output_files import PARQUET, table_type
    from cerebrum_cli.results.result import DELIMITERS, StreamedResult, table_lines

    table, name = None, table_type(output)
    if name == PARQUET:
        from cerebrum_cli.batch.parquet import parquet_table

        table = parquet_table()
    elif name:
        table = partial(table_lines, DELIMITERS[name], rows.columns)
    result_of = result_rows(rows, rows.sha256, rows.unit, table)
    if output == STANDARD:
        if options.ray is not None:
            raise UsageError("--ray cannot stream to standard output", "name a file with -o OUTPUT")
        if options.retry_failed:
            raise UsageError("--retry-failed requires a file with earlier answers", "give it as -o OUTPUT")
        return StreamedResult(result_of, app.streams.answer)
    return open_journal(output, record, result_of, options.restart, options.retry_failed, notes=notes)
