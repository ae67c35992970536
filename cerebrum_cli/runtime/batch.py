"""Answer many questions: the run of `cerebrum batch`."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.application.inference import batch as batches
from cerebrum_cli.application.inference.loading import Parallel, open_model
from cerebrum_cli.application.inference.question import template_options
from cerebrum_cli.application.models.generative import require_generative
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.journal import open_journal
from cerebrum_cli.batches.readers import MAX_INPUT_BYTES, detect_shape, read_input, read_rows, require_size
from cerebrum_cli.batches.result import StreamedResult
from cerebrum_cli.batches.rows import result_rows
from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.events import RowEvent
from cerebrum_cli.core.settings import environment
from cerebrum_cli.engine.plan import expert_notice
from cerebrum_cli.runtime.generation import generation_settings, naming_grammar_file, read_grammar
from cerebrum_cli.runtime.models import find_model, resolve_encoding
from cerebrum_cli.terminal.bars import BatchProgress
from cerebrum_cli.terminal.progress import LoadLine
from cerebrum_cli.terminal.sinks import NoticeSink, Sink, render
from cerebrum_cli.terminal.tables import batch_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.batches.result import Result
    from cerebrum_cli.batches.rows import Row
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import BatchOptions, ConcurrencyOptions

STANDARD = Path("-")  # standard input or output
MAX_PARALLEL = 256  # sequences llama.cpp supports
AUTO_PARALLEL = 64  # more than this was nowhere faster


def batch(runtime: Runtime, source: Path, output: Path, given: Layer, options: BatchOptions) -> int:
    """Answer the rows that have no answer yet; return how many failed or have no winner.

    Raises Interrupted with how to resume.
    """
    if output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    data = read_source(runtime, source)
    rows = read_rows(data, detect_shape(source, options.shape, data), options.column, options.template, options.carry)
    parallel, votes = parse_parallel(options.parallel), options.vote_bounds
    given = without_padded_drafts(given, options)
    model = find_model(runtime, given, options)
    require_generative(model.path, model.header)
    settings = generation_settings(runtime, given, model, "--votes" if votes else None)
    grammar = read_grammar(runtime, options, options.quiet)
    arguments = template_options(options.template_arg)
    row_options = batches.BatchOptions(
        settings, grammar, options.schema is not None, votes, not options.no_early_stop, options.ignore_eos
    )
    resolved = resolve_encoding(runtime, model, settings, options)
    record = {
        "input": sha256(data).hexdigest(),
        "column": options.column,
        "template": options.template,
        **({"carry": True} if options.carry else {}),
        **({"batch invariance": "all types"} if options.batch_invariant else {}),
        "template arguments": arguments or None,
        **batches.batch_fingerprint(row_options, model, resolved.model, runtime.library),
    }
    result = open_result(runtime, output, record, rows, options)
    try:
        if unanswered := count_unanswered(rows, result):
            notify_of_experts(runtime, resolved.model, options)
            tuning = resolved.tuning("batch")
            loaded = open_model(
                runtime.open_backend,
                model,
                settings,
                template_options=arguments,
                parallel=plan_parallel(
                    parallel or tuning.slots, unanswered * (votes.maximum if votes else 1), options.batch_invariant
                ),
                file=resolved.model,
                tuning=tuning,
                step_costs=resolved.step_costs("ask") if settings.drafts else None,
            )
            try:
                events = batches.answer_rows(loaded.responder, rows, row_options, result, output == STANDARD)
                with naming_grammar_file(options):
                    render(events, loaded.responder.cancel, progress_sinks(runtime, loaded.model.name, output, options))
            finally:
                loaded.engine.close()
        else:
            batches.write_row_errors(rows, result)
            if not options.quiet:
                runtime.streams.info(batch_text(RowEvent(result.done, result.done, result.counts), 0, 0.0))
        result.complete()
    except Interrupted as error:
        hint = "" if output == STANDARD else resume_hint(result, len(rows), options.restart)
        raise Interrupted(error.exit_code - 128, hint) from error
    finally:
        result.close()
    return result.counts.failed + result.counts.undecided


def without_padded_drafts(given: Layer, options: ConcurrencyOptions) -> Layer:
    """Turn drafts off with `--batch-invariant`. Raises UsageError if both are asked for."""
    if not options.batch_invariant:
        return given
    if given.get("drafts"):
        raise UsageError("--batch-invariant and --drafts cannot be used together", "omit one of them")
    return {**given, "drafts": False}


def read_source(runtime: Runtime, source: Path) -> bytes:
    """Read the whole input. Raises UsageError."""
    if source != STANDARD:
        return read_input(source)
    if runtime.streams.piped is None:
        raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
    return require_size(runtime.streams.piped.read(MAX_INPUT_BYTES + 1), "standard input")


def parse_parallel(text: str | None) -> int | None:
    """Read `--parallel`; None chooses automatically. Raises UsageError."""
    if text in (None, "auto"):
        return None
    if text.isdecimal() and 1 <= int(text) <= MAX_PARALLEL:
        return int(text)
    raise UsageError(f"--parallel is {text!r}", f"it must be a number from 1 to {MAX_PARALLEL}, or auto")


def count_unanswered(rows: Sequence[Row], result: Result) -> int:
    return sum(row.conversation is not None for at, row in enumerate(rows) if at not in result.finished)


def plan_parallel(requested: int | None, samples: int, pad_steps: bool = False) -> Parallel:
    """Number of concurrent sequences, at most one per sample."""
    return Parallel(min(requested or AUTO_PARALLEL, samples), batch_invariant=True, pad_steps=pad_steps)


def notify_of_experts(runtime: Runtime, file: Model, options: BatchOptions) -> None:
    """Print a notice if the answers of a model with experts may vary in spite of `--batch-invariant`."""
    notice = expert_notice(file.header.expert_count, file.header.tensor_types)
    if notice and options.batch_invariant and not options.quiet and environment("GGML_CPU_TILED_MM") != "0":
        runtime.streams.notice(notice)


def open_result(
    runtime: Runtime, output: Path, record: Mapping[str, Any], rows: Sequence[Row], options: BatchOptions
) -> Result:
    """Open the result: a journal beside OUTPUT, or standard output."""
    if output == STANDARD:
        if options.retry_failed:
            raise UsageError("--retry-failed needs a file with the earlier answers", "give it as -o OUTPUT")
        return StreamedResult(rows, runtime.streams.answer)
    return open_journal(output, record, result_rows(rows), options.restart, options.retry_failed)


def progress_sinks(runtime: Runtime, model: str, output: Path, options: BatchOptions) -> list[Sink]:
    """Sinks that show progress on standard error, without a bar if something else writes to the same terminal."""
    if options.quiet:
        return []
    streams = runtime.streams
    shares_terminal = options.verbose or (output == STANDARD and streams.out_is_terminal)
    sinks: list[Sink] = [BatchProgress(streams, streams.can_redraw and not shares_terminal), NoticeSink(streams)]
    return sinks if options.verbose else [LoadLine(streams, model), *sinks]


def resume_hint(result: Result, total: int, restart: bool) -> str:
    return f"{result.done} of {total} rows done; run it again{' without --restart' if restart else ''} to resume"
