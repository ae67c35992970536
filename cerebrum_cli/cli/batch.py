"""Answer many questions: the run of `cerebrum batch`."""

from __future__ import annotations

from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.batch import answering as batches
from cerebrum_cli.batch.journal import Journal, open_journal
from cerebrum_cli.batch.output_files import output_paths
from cerebrum_cli.batch.readers import IndexedRows, InputFile, detect_shape, open_input, read_rows, spool_input
from cerebrum_cli.batch.result import StreamedResult
from cerebrum_cli.batch.rows import result_rows
from cerebrum_cli.cli.generation import (
    MAX_PARALLEL,
    find_source,
    naming_grammar_file,
    open_for,
    progress_sinks,
    read_grammar,
    require_effective,
    source_fingerprint,
)
from cerebrum_cli.cli.saved_prompts import apply_prompt
from cerebrum_cli.cli.servers import noted_servers, noting_servers
from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.events import RowEvent
from cerebrum_cli.engine.load_options import expert_notice
from cerebrum_cli.terminal.progress import BatchProgress
from cerebrum_cli.terminal.sinks import render

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.batch.result import Result
    from cerebrum_cli.batch.rows import Rows
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.cli.options import BatchOptions
    from cerebrum_cli.core.config import SavedPrompt
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.inference.loading import LoadedModel
    from cerebrum_cli.models.model import Model

STANDARD = Path("-")  # standard input or output


def batch(
    app: App,
    source: Path,
    output: Path,
    overrides: Layer,
    options: BatchOptions,
    on_command_line: frozenset[str],
) -> int:
    """Answer the rows that have no answer yet; return how many failed or have no winner.

    Raises Interrupted with how to resume.
    """
    saved, overrides, options = apply_prompt(app, overrides, options, on_command_line)
    if output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    with closing(open_source(app, source)) as file:
        shape = detect_shape(source, options.input_format, file.head)
        rows = read_rows(file, shape, options.template, options.include_input, saved)
        return run_rows(app, rows, output, overrides, options, on_command_line, saved)


def run_rows(
    app: App,
    rows: IndexedRows,
    output: Path,
    overrides: Layer,
    options: BatchOptions,
    on_command_line: frozenset[str],
    saved: SavedPrompt | None,
) -> int:
    """Answer the rows of an input."""
    votes = options.vote_bounds
    source = find_source(app, overrides, options, "--votes" if votes else None)
    require_effective(source.settings, on_command_line, options)
    grammar, is_json = read_grammar(app, options), options.schema is not None
    row_options = batches.BatchOptions(source.settings, grammar, is_json, votes, options.ignore_eos)
    record = {
        **input_fingerprint(rows, options, saved),
        **source_fingerprint(source),
        **batches.batch_fingerprint(row_options, source.model, app.library),
    }
    result = open_result(app, output, record, source.model.adapter_params, rows, options)
    try:
        if unanswered := count_unanswered(rows, result):
            notify_of_experts(app, source.model, options)
            earlier = noted_servers(result) if isinstance(result, Journal) else ()
            loaded = open_for(source, unanswered * (votes.maximum if votes else 1), earlier)
            generate(app, loaded, rows, row_options, result, output, options)
        else:
            batches.write_row_errors(rows, result)
            if not options.quiet:
                with closing(BatchProgress(app.streams, draws=False)) as summary:
                    summary.emit(RowEvent(result.done, result.done, result.counts))
        result.complete()
    except Interrupted as error:
        hint = "" if output == STANDARD else resume_hint(result, len(rows), options.restart)
        raise Interrupted(error.exit_code - 128, hint) from error
    finally:
        result.close()
    return result.counts.failed + result.counts.undecided


def input_fingerprint(rows: IndexedRows, options: BatchOptions, saved: SavedPrompt | None) -> dict[str, Any]:
    """What the prompts depend on, by readable names."""
    return {
        "input": rows.sha256,
        "template": options.template,
        **({"include input": True} if options.include_input else {}),
        **({"prompt": saved.prompt} if saved and saved.prompt else {}),
    }


def generate(
    app: App,
    loaded: LoadedModel,
    rows: IndexedRows,
    row_options: batches.BatchOptions,
    result: Result,
    output: Path,
    options: BatchOptions,
) -> None:
    """Answer the unfinished rows, with progress, and note which servers did."""
    with closing(loaded.engine), naming_grammar_file(options):
        events = batches.answer_rows(loaded.responder, rows, row_options, result, output == STANDARD)
        if isinstance(result, Journal):
            events = noting_servers(events, result, loaded)
        shares_terminal = output == STANDARD and app.streams.out_is_terminal
        sinks = progress_sinks(app, loaded.model.name, options, shares_terminal)
        render(events, loaded.responder.cancel, sinks)


def open_source(app: App, source: Path) -> InputFile:
    """Open the input; standard input is copied. Raises UsageError and BatchError."""
    if source != STANDARD:
        return open_input(source)
    if app.streams.piped is None:
        raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
    return spool_input(app.streams.piped.read, "standard input")


def count_unanswered(rows: Rows, result: Result) -> int:
    """Number of unfinished rows with a question, up to as many as can run concurrently."""
    unfinished = (position for position in range(len(rows)) if position not in result.finished)
    return sum(1 for _ in islice((at for at in unfinished if rows[at].conversation is not None), MAX_PARALLEL))


def notify_of_experts(app: App, file: Model, options: BatchOptions) -> None:
    """Print a notice if the answers of a model with experts may vary in spite of `batch_invariant`."""
    notice = expert_notice(file.header.expert_count, file.header.tensor_types)
    if notice and options.batch_invariant and not options.quiet and environment("GGML_CPU_TILED_MM") != "0":
        app.streams.notice(notice)


def open_result(
    app: App,
    output: Path,
    record: Mapping[str, Any],
    notes: Mapping[str, Any],
    rows: Rows,
    options: BatchOptions,
) -> Result:
    """Open the result: a journal beside OUTPUT, or standard output."""
    if output == STANDARD:
        if options.retry_failed:
            raise UsageError("--retry-failed requires a file with earlier answers", "give it as -o OUTPUT")
        return StreamedResult(result_rows(rows), app.streams.answer)
    return open_journal(output, record, result_rows(rows), options.restart, options.retry_failed, notes=notes)


def resume_hint(result: Result, total: int, restart: bool) -> str:
    return f"{result.done} of {total} rows done; run it again{' without --restart' if restart else ''} to resume"
