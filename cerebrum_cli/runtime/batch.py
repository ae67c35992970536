"""Answer many questions: the run of `cerebrum batch`."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.application.inference import batch as batches
from cerebrum_cli.application.inference.loading import Parallel, ResolvedModel, open_model, open_servers
from cerebrum_cli.application.inference.question import template_options
from cerebrum_cli.application.models.generative import require_generative
from cerebrum_cli.batches.files import output_paths
from cerebrum_cli.batches.input import InputFile, open_input, spool_input
from cerebrum_cli.batches.journal import Journal, open_journal
from cerebrum_cli.batches.readers import IndexedRows, detect_shape, read_rows
from cerebrum_cli.batches.result import StreamedResult
from cerebrum_cli.batches.rows import result_rows
from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.events import RowEvent
from cerebrum_cli.core.settings import environment
from cerebrum_cli.engine.plan import expert_notice
from cerebrum_cli.runtime.cluster import find_nodes
from cerebrum_cli.runtime.generation import generation_settings, naming_grammar_file, read_grammar
from cerebrum_cli.runtime.models import find_model, resolve_encoding
from cerebrum_cli.runtime.servers import find_endpoints, note_servers, noted_servers, noting_servers, without_local
from cerebrum_cli.terminal.bars import BatchProgress
from cerebrum_cli.terminal.progress import LoadLine
from cerebrum_cli.terminal.sinks import NoticeSink, Sink, render
from cerebrum_cli.terminal.tables import batch_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cerebrum_cli.application.inference.loading import LoadedModel
    from cerebrum_cli.application.models.model import Model
    from cerebrum_cli.batches.result import Result
    from cerebrum_cli.batches.rows import Rows
    from cerebrum_cli.core.settings import Layer
    from cerebrum_cli.engine.remote.endpoint import Endpoint
    from cerebrum_cli.runtime.cluster import RayNodes
    from cerebrum_cli.runtime.composition import Runtime
    from cerebrum_cli.runtime.options import BatchOptions, ConcurrencyOptions
    from cerebrum_cli.runtime.servers import Servers

STANDARD = Path("-")  # standard input or output
MAX_PARALLEL = 256  # sequences llama.cpp supports
AUTO_PARALLEL = 64  # more than this was nowhere faster


def batch(runtime: Runtime, source: Path, output: Path, given: Layer, options: BatchOptions) -> int:
    """Answer the rows that have no answer yet; return how many failed or have no winner.

    Raises Interrupted with how to resume.
    """
    if output != STANDARD:
        output_paths(output, None if source == STANDARD else source)
    with closing(open_source(runtime, source)) as file:
        shape = detect_shape(source, options.shape, file.head)
        rows = read_rows(file, shape, options.column, options.template, options.carry)
        return answer(runtime, rows, output, given, options)


@dataclass(frozen=True, slots=True)
class PreparedBatch:
    """How the rows of a batch are answered: their options, and the model or the servers that answer."""

    row_options: batches.BatchOptions
    model: Model
    resolved: ResolvedModel
    arguments: Mapping[str, Any]
    parallel: int | None
    pad_steps: bool
    endpoints: tuple[Endpoint, ...]
    nodes: RayNodes | None

    def open(self, runtime: Runtime, unanswered: int, earlier: Servers) -> LoadedModel:
        """Start to load the model for so many rows, or to connect to servers like the `earlier` ones."""
        settings, votes, tuning = self.row_options.settings, self.row_options.votes, self.resolved.tuning("batch")
        if self.endpoints:
            return open_servers(
                runtime.open_backend,
                self.endpoints,
                self.model,
                settings,
                template_options=self.arguments,
                window=self.parallel,
                earlier=earlier,
            )
        samples = unanswered * (votes.maximum if votes else 1)
        if self.nodes:
            parallel = plan_parallel(self.parallel, samples, self.pad_steps)
            return self.nodes.open(runtime, self.model, settings, self.arguments, parallel)
        return open_model(
            runtime.open_backend,
            self.model,
            settings,
            template_options=self.arguments,
            parallel=plan_parallel(self.parallel or tuning.slots, samples, self.pad_steps),
            file=self.resolved.model,
            tuning=tuning,
            step_costs=self.resolved.step_costs("ask") if settings.drafts else None,
        )

    def fingerprint(self, runtime: Runtime) -> dict[str, Any]:
        """Everything the answers depend on besides the prompts, by readable names."""
        return {
            **({"batch invariance": "all types"} if self.pad_steps else {}),
            **({"generated by": "servers"} if self.endpoints else {}),
            "template arguments": self.arguments or None,
            **batches.batch_fingerprint(self.row_options, self.model, self.resolved.model, runtime.library),
        }


def prepare(runtime: Runtime, given: Layer, options: BatchOptions) -> PreparedBatch:
    """Resolve the model and its settings. Raises UsageError, ModelNotFound."""
    parallel, votes = parse_parallel(options.parallel), options.vote_bounds
    endpoints = find_endpoints(runtime, options)
    given = without_padded_drafts(given, options)
    model = find_model(runtime, given, options)
    require_generative(model.path, model.header)
    nodes = find_nodes(runtime, model, options)
    settings = generation_settings(runtime, given, model, "--votes" if votes else None)
    settings = without_local(settings) if endpoints else settings
    grammar = read_grammar(runtime, options, options.quiet)
    is_json, early_stop = options.schema is not None, not options.no_early_stop
    return PreparedBatch(
        batches.BatchOptions(settings, grammar, is_json, votes, early_stop, options.ignore_eos),
        model,
        ResolvedModel(model) if nodes else resolve_encoding(runtime, model, settings, options),
        template_options(options.template_arg),
        parallel,
        options.batch_invariant,
        endpoints,
        nodes,
    )


def answer(runtime: Runtime, rows: IndexedRows, output: Path, given: Layer, options: BatchOptions) -> int:
    """Answer the rows of an input."""
    prepared = prepare(runtime, given, options)
    record = {
        "input": rows.sha256,
        "column": options.column,
        "template": options.template,
        **({"carry": True} if options.carry else {}),
        **prepared.fingerprint(runtime),
    }
    result = open_result(runtime, output, record, rows, options)
    try:
        if unanswered := count_unanswered(rows, result):
            notify_of_experts(runtime, prepared.resolved.model, options)
            generate(runtime, prepared, rows, result, unanswered, output, options)
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


def generate(
    runtime: Runtime,
    prepared: PreparedBatch,
    rows: IndexedRows,
    result: Result,
    unanswered: int,
    output: Path,
    options: BatchOptions,
) -> None:
    """Answer the unfinished rows, with progress, and note which servers did."""
    loaded = prepared.open(runtime, unanswered, noted_servers(result) if isinstance(result, Journal) else ())
    try:
        events = batches.answer_rows(loaded.responder, rows, prepared.row_options, result, output == STANDARD)
        if isinstance(result, Journal):
            events = noting_servers(events, result, loaded)
        with naming_grammar_file(options):
            render(events, loaded.responder.cancel, progress_sinks(runtime, loaded.model.name, output, options))
    finally:
        if isinstance(result, Journal):
            note_servers(result, loaded)
        loaded.engine.close()


def without_padded_drafts(given: Layer, options: ConcurrencyOptions) -> Layer:
    """Turn drafts off with `--batch-invariant`. Raises UsageError if both are asked for."""
    if not options.batch_invariant:
        return given
    if given.get("drafts"):
        raise UsageError("--batch-invariant and --drafts cannot be used together", "omit one of them")
    return {**given, "drafts": False}


def open_source(runtime: Runtime, source: Path) -> InputFile:
    """Open the input; standard input is copied. Raises UsageError and BatchError."""
    if source != STANDARD:
        return open_input(source)
    if runtime.streams.piped is None:
        raise UsageError("INPUT is `-`, but nothing is piped in", "pipe the questions in, or name a file")
    return spool_input(runtime.streams.piped.read, "standard input")


def parse_parallel(text: str | None) -> int | None:
    """Read `--parallel`; None chooses automatically. Raises UsageError."""
    if text in (None, "auto"):
        return None
    if text.isdecimal() and 1 <= int(text) <= MAX_PARALLEL:
        return int(text)
    raise UsageError(f"--parallel is {text!r}", f"it must be a number from 1 to {MAX_PARALLEL}, or auto")


def count_unanswered(rows: Rows, result: Result) -> int:
    """Number of unfinished rows with a question, up to as many as can run concurrently."""
    unfinished = (position for position in range(len(rows)) if position not in result.finished)
    return sum(1 for _ in islice((at for at in unfinished if rows[at].conversation is not None), MAX_PARALLEL))


def plan_parallel(requested: int | None, samples: int, pad_steps: bool = False) -> Parallel:
    """Number of concurrent sequences, at most one per sample."""
    return Parallel(min(requested or AUTO_PARALLEL, samples), batch_invariant=True, pad_steps=pad_steps)


def notify_of_experts(runtime: Runtime, file: Model, options: BatchOptions) -> None:
    """Print a notice if the answers of a model with experts may vary in spite of `--batch-invariant`."""
    notice = expert_notice(file.header.expert_count, file.header.tensor_types)
    if notice and options.batch_invariant and not options.quiet and environment("GGML_CPU_TILED_MM") != "0":
        runtime.streams.notice(notice)


def open_result(runtime: Runtime, output: Path, record: Mapping[str, Any], rows: Rows, options: BatchOptions) -> Result:
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
